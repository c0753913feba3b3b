import { createHash } from "node:crypto";

/** What a kubelet and runc look for and gVisor does not have; `node/init/facade.go` carries it out. */
export interface FacadePlan {
  /** Tunables that gVisor itself acts on: written before anything is mounted. */
  settings: { path: string; content: string }[];
  files: { path: string; content: string }[];
  mounts: { type: string; source: string; target: string; options: string; folders: string[]; optional: boolean }[];
  nodes: { path: string; major: number; minor: number }[];
}

/** The kernel tunables that the kubelet sets at its start or refuses to run without (kubelet: cm.setupKernelTunables). */
const TUNABLES: Record<string, string> = {
  "vm/overcommit_memory": "1",
  "vm/panic_on_oom": "0",
  "kernel/panic": "10",
  "kernel/panic_on_oops": "1",
  "kernel/keys/root_maxkeys": "1000000",
  "kernel/keys/root_maxbytes": "25000000",
};

/** The cgroup v1 controllers that gVisor accounts with (gVisor: pkg/sentry/fsimpl/cgroupfs); one that a generation lacks is left out. */
const CONTROLLERS = ["cpu", "cpuacct", "cpuset", "devices", "memory", "pids"];

const upper = "/run/gvisor-k3s/proc-sys/upper";
const work = "/run/gvisor-k3s/proc-sys/work";

/**
 * The facade of a sandbox. The tunables lie on an overlay over /proc/sys whose upper folder is on a tmpfs: processes read and write
 * plain files there, and nothing has to be intercepted.
 * @param name the sandbox's name; its machine id is derived from it, so that it stays the same over restarts
 */
export function facadePlan(name: string): FacadePlan {
  const mount = (type: string, source: string, target: string, options: string, folders: string[] = [], optional = false) => ({
    type,
    source,
    target,
    options,
    folders,
    optional,
  });
  return {
    // Through the overlay a write would read back and do nothing.
    settings: [{ path: "/proc/sys/net/ipv4/ip_forward", content: "1" }],
    files: [
      { path: "/etc/machine-id", content: `${createHash("sha256").update(`gvisor-k3s machine ${name}`).digest("hex").slice(0, 32)}\n` },
      ...Object.entries(TUNABLES).map(([name, value]) => ({ path: `${upper}/${name}`, content: `${value}\n` })),
    ],
    mounts: [
      mount("overlay", "overlay", "/proc/sys", `lowerdir=/proc/sys,upperdir=${upper},workdir=${work}`, [work]),
      mount("tmpfs", "cgroup", "/sys/fs/cgroup", "mode=0755"),
      ...CONTROLLERS.map((controller) => mount("cgroup", controller, `/sys/fs/cgroup/${controller}`, controller, [], true)),
    ],
    // The kubelet's OOM watcher reads the kernel log; there is none, so it reads what /dev/null gives: nothing.
    nodes: [{ path: "/dev/kmsg", major: 1, minor: 3 }],
  };
}
