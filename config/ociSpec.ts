import { inSandbox } from "./paths.ts";
import { bytes, type StackConfig } from "./schema.ts";

/**
 * What root can do in the sandbox. It is gVisor that grants these, not the host's kernel, which the sandbox's processes
 * never reach.
 */
const CAPABILITIES = [
  "AUDIT_CONTROL",
  "AUDIT_WRITE",
  "CHOWN",
  "DAC_OVERRIDE",
  "DAC_READ_SEARCH",
  "FOWNER",
  "FSETID",
  "IPC_LOCK",
  "IPC_OWNER",
  "KILL",
  "LEASE",
  "LINUX_IMMUTABLE",
  "MKNOD",
  "NET_ADMIN",
  "NET_BIND_SERVICE",
  "NET_BROADCAST",
  "NET_RAW",
  "SETFCAP",
  "SETGID",
  "SETPCAP",
  "SETUID",
  "SYS_ADMIN",
  "SYS_BOOT",
  "SYS_CHROOT",
  "SYS_NICE",
  "SYS_PACCT",
  "SYS_PTRACE",
  "SYS_RESOURCE",
  "SYS_TIME",
  "SYS_TTY_CONFIG",
  "SYSLOG",
].map((name) => `CAP_${name}`);

/** Where programs in the sandbox look for others. */
export const SANDBOX_PATH = "/usr/local/bin:/bin:/sbin:/usr/bin:/usr/sbin";

/** The environment of everything that runs in the sandbox. */
export const SANDBOX_ENVIRONMENT = [
  `PATH=${SANDBOX_PATH}`,
  "HOME=/root",
  `KUBECONFIG=${inSandbox.kubeconfig}`,
  `CONTAINERD_ADDRESS=${inSandbox.containerdSocket}`,
];

const capabilities = (names: string[]) => ({ bounding: names, effective: names, permitted: names, inheritable: names });
const mount = (destination: string, type: string, options: string[] = []) => ({
  destination,
  type,
  source: type,
  options,
});
const bind = (source: string, destination: string, mode: "ro" | "rw") => ({
  destination,
  type: "bind",
  source,
  options: ["rbind", mode],
});

export interface SandboxSpec {
  name: string;
  /** The root file system, which is the sandbox's own to write. */
  rootfs: string;
  /** The file of the network namespace. */
  networkNamespace: string;
  /** The host's folder with what is in /bin, which the sandbox cannot write. */
  base: string;
  /** The host's artifact folder. */
  artifacts: string;
  /** sandbox-init by its path in the sandbox. */
  init: string;
  limits: Pick<StackConfig["sandbox"], "memory" | "cpus">;
}

/** runsc's config.json of a sandbox. A change restarts the sandbox; what lies in its folders stays. */
export function sandboxSpec({ name, rootfs, networkNamespace, base, artifacts, init, limits }: SandboxSpec) {
  const { memory, cpus } = limits;
  const period = 100_000; // µs, the kernel's default
  return {
    ociVersion: "1.1.0",
    process: {
      user: { uid: 0, gid: 0 },
      args: [init, "run"],
      env: SANDBOX_ENVIRONMENT,
      cwd: "/",
      capabilities: capabilities(CAPABILITIES),
      rlimits: [{ type: "RLIMIT_NOFILE", hard: 1_048_576, soft: 1_048_576 }],
    },
    root: { path: rootfs, readonly: false },
    hostname: name,
    mounts: [
      mount("/proc", "proc"),
      mount("/sys", "sysfs"),
      mount("/dev", "tmpfs"),
      mount("/run", "tmpfs", ["mode=0755"]),
      mount("/tmp", "tmpfs", ["mode=1777"]),
      // runsc follows links of the root file system within it only, whatever is planted there.
      bind(`${base}/bin`, "/bin", "ro"),
      bind(artifacts, inSandbox.artifacts, "ro"),
    ],
    linux: {
      namespaces: [
        ...["pid", "ipc", "uts", "mount"].map((type) => ({ type })),
        { type: "network", path: networkNamespace },
      ],
      cgroupsPath: `/gvisor-k3s/${name}`,
      resources: {
        ...(memory === null ? {} : { memory: { limit: bytes(memory) } }),
        ...(cpus === null ? {} : { cpu: { quota: Math.round(cpus * period), period } }),
      },
    },
  };
}

/**
 * The spec of the container that is run directly with the OCI runtime, before containerd comes into play. It asks for
 * what a pod's container asks for (namespaces, masked paths, a seccomp filter), so that what the sandbox cannot do
 * shows here, in the runtime's own words.
 */
export function runtimeCheckSpec(args: string[]) {
  const granted = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"];
  return {
    ociVersion: "1.2.0",
    process: {
      user: { uid: 0, gid: 0 },
      args,
      env: ["PATH=/bin"],
      cwd: "/",
      capabilities: capabilities(granted),
      noNewPrivileges: true,
    },
    root: { path: "rootfs", readonly: true },
    hostname: "runtime-check",
    mounts: [
      mount("/proc", "proc"),
      mount("/dev", "tmpfs", ["nosuid", "mode=755"]),
      { ...mount("/sys", "sysfs", ["nosuid", "noexec", "nodev", "ro"]) },
    ],
    linux: {
      cgroupsPath: "/runtime-check",
      // No cgroup namespace: gVisor has none, and containerd asks for one only where cgroups are version 2.
      namespaces: [
        ...["pid", "ipc", "uts", "mount"].map((type) => ({ type })),
        { type: "network", path: "/proc/1/ns/net" },
      ], // a pod's comes by its path as well
      maskedPaths: [
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
      ],
      readonlyPaths: ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
      seccomp: {
        defaultAction: "SCMP_ACT_ALLOW",
        architectures: [],
        syscalls: [{ names: ["acct"], action: "SCMP_ACT_ERRNO" }],
      },
      resources: { memory: { limit: 67_108_864 }, pids: { limit: 100 } },
    },
  };
}
