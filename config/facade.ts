import { createHash } from "node:crypto";
import { inSandbox } from "./paths.ts";

/** What a kubelet and runc look for and gVisor does not have; `node/init/facade/facade.go` carries it out. */
export interface FacadePlan {
  /** Tunables that gVisor itself acts on: written before anything is mounted. */
  settings: { path: string; content: string }[];
  files: { path: string; content: string }[];
  mounts: { type: string; source: string; target: string; options: string; folders: string[]; optional: boolean }[];
  nodes: { path: string; major: number; minor: number }[];
  /** Symbolic links to folders, which are made as well. */
  links: { path: string; target: string }[];
  /** Folders that get a mount of their own, which is not shared. */
  private: string[];
  /** What is mounted at these folders or below is made shared, but for what is private. */
  shared: string[];
}

/** A part of a plan, as a quirk of the sandbox asks for it. */
export type FacadeParts = Partial<FacadePlan>;

/**
 * The kernel tunables that the kubelet sets at its start or refuses to run without (kubelet: cm.setupKernelTunables),
 * below /proc/sys.
 */
export const TUNABLES: Record<string, string> = {
  "vm/overcommit_memory": "1",
  "vm/panic_on_oom": "0",
  "kernel/panic": "10",
  "kernel/panic_on_oops": "1",
  "kernel/keys/root_maxkeys": "1000000",
  "kernel/keys/root_maxbytes": "25000000",
};

/**
 * The cgroup v1 controllers that gVisor accounts with (gVisor: pkg/sentry/fsimpl/cgroupfs); one that a generation lacks
 * is left out.
 */
const CONTROLLERS = ["cpu", "cpuacct", "cpuset", "devices", "memory", "pids"];

const upper = "/run/gvisor-k3s/proc-sys/upper";
const work = "/run/gvisor-k3s/proc-sys/work";

const mount = (
  type: string,
  source: string,
  target: string,
  options: string,
  folders: string[] = [],
  optional = false,
) => ({
  type,
  source,
  target,
  options,
  folders,
  optional,
});

/**
 * The tunables on an overlay over /proc/sys whose upper folder is on a tmpfs: processes read and write plain files
 * there, and nothing has to be intercepted.
 */
export const tunables: FacadeParts = {
  files: Object.entries(TUNABLES).map(([name, value]) => ({ path: `${upper}/${name}`, content: `${value}\n` })),
  mounts: [mount("overlay", "overlay", "/proc/sys", `lowerdir=/proc/sys,upperdir=${upper},workdir=${work}`, [work])],
};

/**
 * Each controller of cgroup v1 that the kernel has. The file tells the probe for cgroups that they are the facade's
 * (node/init/probe).
 */
export const cgroupMounts: FacadeParts = {
  files: [{ path: "/run/gvisor-k3s/cgroup-mounts", content: "" }],
  mounts: [
    mount("tmpfs", "cgroup", "/sys/fs/cgroup", "mode=0755"),
    ...CONTROLLERS.map((controller) =>
      mount("cgroup", controller, `/sys/fs/cgroup/${controller}`, controller, [], true),
    ),
  ],
};

/** The kubelet's OOM watcher reads the kernel log; there is none, so it reads what /dev/null gives: nothing. */
export const kernelLog: FacadeParts = { nodes: [{ path: "/dev/kmsg", major: 1, minor: 3 }] };

/** What tells a sandbox from others, as systemd's machine-id(5) does: of its name, so the same over restarts. */
export const machineId = (name: string) => ({
  path: "/etc/machine-id",
  content: `${createHash("sha256").update(`gvisor-k3s machine ${name}`).digest("hex").slice(0, 32)}\n`,
});

/**
 * The facade of a sandbox.
 * @param name the sandbox's name
 * @param parts what the sandbox's quirks ask for; see `facadeFor`
 */
export function facadePlan(name: string, parts: readonly FacadeParts[]): FacadePlan {
  const all = <K extends keyof FacadePlan>(kind: K) =>
    parts.flatMap((part) => (part[kind] ?? []) as FacadePlan[K][number][]);
  return {
    // Through an overlay over /proc/sys a write would read back and do nothing.
    settings: [{ path: "/proc/sys/net/ipv4/ip_forward", content: "1" }, ...all("settings")],
    files: [machineId(name), ...all("files")],
    mounts: all("mounts"),
    nodes: all("nodes"),
    links: [{ path: inSandbox.snapshots, target: "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs" }],
    // gVisor takes a mount for busy as long as a pod has a copy of it, and no pod needs containerd's: it could unpack no
    // image any more.
    private: ["/run/containerd", "/var/lib/containerd"],
    // Mounts of the node reach a pod that asks for them (mountPropagation) from mounts that are shared, as those of a
    // machine that systemd has started are.
    shared: ["/"],
  };
}
