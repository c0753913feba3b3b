/**
 * What gVisor's generations do to a Kubernetes node, and what removes it. One entry here is all that a quirk takes: the
 * probe, the remedy, the doctor's report and docs/quirks.md follow from it. Whether a sandbox has a quirk is asked of
 * the sandbox, never of a version.
 * @module
 */
import type { ContainerdKeys } from "./containerdKeys.ts";
import { cgroupMounts, type FacadeParts, kernelLog, TUNABLES, tunables } from "./facade.ts";
import type { OciRule } from "./ociRules.ts";

export interface Quirk {
  /** What people see and search for. */
  symptom: string;
  /** What does not work without the remedy. */
  needs: string;
  /**
   * A command in the sandbox: exit code 0 means that the sandbox is free of the quirk. "can" is sandbox-init's own (see
   * `abilities` in node/init/probe/can.go). Without a probe every gVisor has the quirk, and the remedy is always there.
   */
  probe?: readonly string[];
  remedy: Remedy;
  /** Where the fact comes from. */
  source: string;
}

/** What removes a quirk: exactly one of these. */
export type Remedy =
  /** A patch of runc, `toolchain/runc/patches/ID.patch`. */
  | { patch: string }
  /** A rule of the runtime wrapper. */
  | { rule: OciRule }
  /** Global options of crun. */
  | { crun: readonly string[] }
  /** Keys of containerd's config. */
  | { containerd: Partial<ContainerdKeys> }
  /** Something that the kernel facade puts there. */
  | { facade: FacadeParts }
  /** What this project does in every sandbox. */
  | { always: string }
  /** Nothing helps, and what needs it cannot run; what the sandbox's owner can do. */
  | { blocked: string }
  /** Nothing helps, and the rest works without it; what the sandbox's owner can do. */
  | { missing: string };

const measured = "measured here, see docs/runtimes.md";
const newerGvisor = "the sandbox's owner: a gVisor of 2025 or later";

/** What a pod may set without the kubelet's leave: its safe sysctls (kubelet: pkg/kubelet/sysctl/safe_sysctls.go). */
const SAFE_SYSCTLS = [
  "kernel/shm_rmid_forced",
  "net/ipv4/ip_local_port_range",
  "net/ipv4/tcp_syncookies",
  "net/ipv4/ping_group_range",
  "net/ipv4/ip_unprivileged_port_start",
  "net/ipv4/ip_local_reserved_ports",
  "net/ipv4/tcp_keepalive_time",
  "net/ipv4/tcp_fin_timeout",
  "net/ipv4/tcp_keepalive_intvl",
  "net/ipv4/tcp_keepalive_probes",
  "net/ipv4/tcp_rmem",
  "net/ipv4/tcp_wmem",
];

/** Every known quirk by its id, in the order in which the parts of a node meet them. */
export const quirks = {
  "no-cgroup-mounts": {
    symptom: "runc: no cgroup mount found in mountinfo",
    needs: "every container",
    probe: ["can", "group"],
    remedy: { facade: cgroupMounts },
    source: "gVisor: pkg/sentry/fsimpl/cgroupfs",
  },
  "kernel-tunables": {
    symptom:
      "kubelet: Failed to start ContainerManager: write /proc/sys/vm/overcommit_memory: input/output " +
      "error, open /proc/sys/vm/panic_on_oom: no such file",
    needs: "the kubelet",
    probe: ["can", "tune", ...Object.keys(TUNABLES)],
    remedy: { facade: tunables },
    source: "kubelet: cm.setupKernelTunables",
  },
  "dev-kmsg": {
    symptom: "kubelet: failed to create kubelet: open /dev/kmsg: no such file or directory",
    needs: "the kubelet",
    probe: ["can", "log"],
    remedy: { facade: kernelLog },
    source: "kubelet: oomwatcher",
  },
  rshared: {
    symptom: "kubelet: failed to make /var/lib/kubelet rshared: invalid argument",
    needs: "the kubelet",
    probe: ["can", "share-mounts"],
    remedy: { blocked: newerGvisor },
    source: measured,
  },
  "no-veth": {
    symptom: "ip link add: operation not supported",
    needs: "the pods' network",
    probe: ["can", "link", "veth"],
    remedy: { blocked: newerGvisor },
    source: "gVisor: pkg/sentry/socket/netlink/route",
  },
  "no-bridge": {
    symptom: "ip link add type bridge: operation not supported",
    needs: "the pods' network",
    probe: ["can", "link", "bridge"],
    remedy: { blocked: newerGvisor },
    source: "gVisor: pkg/sentry/socket/netlink/route",
  },
  "no-setns": {
    symptom: "runc: nsexec: failed to setns into net namespace: Operation not supported",
    needs: "containers, which join their pod's namespaces",
    probe: ["can", "join", "net"],
    remedy: { blocked: newerGvisor },
    source: measured,
  },
  "no-subreaper": {
    symptom: "crun: set child subreaper: Invalid argument; containerd's shim ends at once",
    needs: "containerd's shim",
    probe: ["can", "adopt-orphans"],
    remedy: { blocked: newerGvisor },
    source: measured,
  },
  "cap-last-cap": {
    symptom: "runc: open /proc/sys/kernel/cap_last_cap: no such file or directory",
    needs: "every container",
    probe: ["can", "read", "/proc/sys/kernel/cap_last_cap"],
    remedy: { patch: "cap-last-cap" },
    source: measured,
  },
  "devices-cgroup": {
    symptom: "runc: mountpoint for devices not found",
    needs: "every container",
    probe: ["can", "mount", "cgroup", "cgroup", "devices"],
    remedy: { patch: "devices-cgroup" },
    source: measured,
  },
  "procfs-root-inode": {
    symptom: "runc: unsafe procfs detected: incorrect procfs root inode number 87",
    needs: "every container",
    probe: ["can", "number-procfs"],
    remedy: { patch: "procfs-root-inode" },
    source: measured,
  },
  "tmpfs-nr-blocks": {
    symptom: "runc: can't mask dir /sys/firmware: mount tmpfs, data=nr_blocks=1,nr_inodes=1: invalid argument",
    needs: "every container",
    probe: ["can", "mount", "tmpfs", "tmpfs", "nr_blocks=1,nr_inodes=1"],
    remedy: { patch: "tmpfs-nr-blocks" },
    source: measured,
  },
  "cgroup-statfs": {
    symptom:
      "runc: unable to apply cgroup configuration: statfs /sys/fs/cgroup/cpuset/…/cpuset.cpus: " +
      "function not implemented",
    needs: "every container",
    probe: ["can", "stat-cgroups"],
    remedy: { patch: "cgroup-statfs" },
    source: measured,
  },
  "setns-exec": {
    symptom: "kubectl exec: error executing setns process: exit status 1",
    needs: "kubectl exec and exec probes",
    probe: ["can", "join", "pid"],
    remedy: { patch: "setns-exec" },
    source: "gVisor: Task.Setns, which had no case for pid namespaces",
  },
  "cgroup-namespace": {
    symptom: "runc: cgroup namespaces aren't enabled in the kernel",
    needs: "every container, where cgroups are version 2",
    probe: ["can", "isolate-cgroups"],
    remedy: { rule: { dropNamespace: "cgroup" } },
    source: "containerd asks for that namespace only with cgroup v2: pkg/cri spec_opts",
  },
  "no-freezer": {
    symptom: "crun: error opening file '/sys/fs/cgroup/freezer/…/freezer.state': No such file or directory",
    needs: "kubectl exec with crun",
    probe: ["can", "mount", "cgroup", "cgroup", "freezer"],
    // It asks whether a container is paused before it lets anybody in. Without cgroups nothing is accounted to single
    // containers.
    remedy: { crun: ["--cgroup-manager=disabled"] },
    source: "google/gvisor#13683",
  },
  "overlay-upper": {
    symptom: "containerd: mount overlay, upperdir=/var/lib/containerd/…: invalid argument",
    needs: "every container with the overlayfs snapshotter",
    probe: ["can", "overlay", "/var/lib"],
    remedy: { containerd: { snapshotter: "native" } },
    source: measured,
  },
  "old-kernel-cri": {
    symptom:
      "containerd: CRI plugin: unprivileged_icmp and unprivileged_port require kernel version greater " +
      "than or equal to 4.11",
    needs: "containerd's CRI plugin",
    probe: ["can", "tune", "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"],
    remedy: { containerd: { enable_unprivileged_icmp: false, enable_unprivileged_ports: false } },
    source: "containerd: ValidateEnableUnprivileged",
  },
  "no-netfilter": {
    symptom: "iptables: Table does not exist; nft: Protocol not supported",
    needs: "kube-proxy, in whose place the service proxy serves",
    probe: ["can", "filter"],
    remedy: { missing: "the sandbox's owner: runsc with --net-raw, where its netfilter suffices" },
    source: "gVisor: pkg/sentry/socket/netfilter",
  },
  "no-pod-filter": {
    symptom: "ip link set netns: operation not supported; open /dev/net/tun: no such file or directory",
    needs: "network policies, each of which gets an event that says that it is not enforced",
    probe: ["can", "filter-pods"],
    remedy: { missing: "the sandbox's owner: a gVisor of 2025 or later, with /dev/net/tun" },
    source: "gVisor: pkg/sentry/devices/tundev, pkg/tcpip/stack SetNICStack",
  },
  "no-pod-sysctls": {
    symptom:
      "runc: open sysctl kernel.shm_rmid_forced file: unsafe procfs detected; failed to write sysctl " +
      "net.ipv4.tcp_keepalive_time: input/output error",
    needs: "pods with sysctls, which are shown to them and have no effect",
    probe: ["can", "tune-pods", ...SAFE_SYSCTLS],
    remedy: { rule: { sysctls: "show" } },
    source: "gVisor: pkg/sentry/fsimpl/proc/tasks_sys.go; google/gvisor#1833",
  },
  "no-user-namespaces": {
    symptom: "containerd: failed to get user namespace fd: inappropriate ioctl for device",
    needs: "pods with hostUsers: false, each of which gets an event that says so",
    probe: ["can", "own-namespaces"],
    remedy: { missing: "nobody: gVisor has no ioctl NS_GET_USERNS; leave out hostUsers: false" },
    source: "containerd: pkg/netns, GetUserNamespace",
  },
  "no-setuid": {
    symptom: "sudo: effective uid is not 0, is sudo installed setuid root?",
    needs: "sudo, ping and su in pods of other users than root",
    probe: ["can", "set-uid"],
    remedy: { missing: "the sandbox's owner: runsc with --allow-suid (target: managed has the option sandbox.setuid)" },
    source: "gVisor: runsc/config, AllowSUID",
  },
  "session-keyring": {
    symptom: "runc: unable to join session keyring: unable to create session key: disk quota exceeded",
    needs: "every container after about 200",
    remedy: { always: "containerd's runtime option NoNewKeyring: containers have no keyring of their own" },
    source: "gVisor: pkg/sentry/kernel/auth, MaxSetSize; no key is ever taken back",
  },
  "machine-id": {
    symptom: "kubelet: no /etc/machine-id",
    needs: "the kubelet",
    remedy: { always: "the facade writes one, derived from the sandbox's name" },
    source: "cadvisor: machine.getInfoFromFiles",
  },
  "no-default-route": {
    symptom: "kubelet: can't get ip address of node: no default routes found",
    needs: "the kubelet",
    remedy: { always: "node key node-ip, the address of the sandbox's link" },
    source: "kubelet: nodestatus.NodeAddress",
  },
  eviction: {
    symptom: "kubelet: eviction threshold memory.available must be positive",
    needs: "the kubelet",
    remedy: { always: "kubelet setting: one threshold that makes sense" },
    source: measured,
  },
  "cgroup-v1": {
    symptom: "kubelet: kubelet is configured to not run on a host using cgroup v1",
    needs: "the kubelet",
    remedy: { always: "kubelet settings failCgroupV1: false, enforceNodeAllocatable: [none]" },
    source: "Kubernetes 1.35, KEP-5573",
  },
  "unpack-platform": {
    symptom: "ctr images import: unable to initialize unpacker: no unpack platforms defined",
    needs: "imports and pulls",
    remedy: { always: "containerd key unpack_config of the transfer plugin" },
    source: "containerd 2.x: plugins/transfer",
  },
  "bridge-hairpin": {
    symptom: "CNI bridge: failed to setup hairpin mode: operation not supported",
    needs: "the pods' network",
    remedy: { always: "the CNI plugin gvisor-bridge" },
    source: measured,
  },
  "ptp-route": {
    symptom: "CNI ptp: failed to add route … Src …: operation not supported",
    needs: "the pods' network",
    remedy: { always: "the CNI plugin gvisor-bridge" },
    source: measured,
  },
  "seccomp-less-runc": {
    symptom: "runc: seccomp: config provided but seccomp not supported",
    needs: "every container",
    remedy: { always: "runc is built with libseccomp" },
    source: "runc: BUILDTAGS",
  },
} as const satisfies Record<string, Quirk>;

export type QuirkId = keyof typeof quirks;

/** The quirk of an id, without the narrowness of its literal type. */
export const quirk = (id: QuirkId): Quirk => quirks[id];

/** The quirks that a sandbox may have or not: those that are asked for. */
export const probedQuirks = (Object.keys(quirks) as QuirkId[]).filter((id) => quirk(id).probe !== undefined);

/** The remedies of one kind for these quirks, in the catalogue's order, whatever order the ids came in. */
function remedies<K extends string>(kind: K, found: readonly QuirkId[]): Extract<Remedy, Record<K, unknown>>[K][] {
  type Of = Extract<Remedy, Record<K, unknown>>;
  const all = probedQuirks.filter((id) => found.includes(id)).map((id) => quirk(id).remedy);
  return all.filter((remedy): remedy is Of => kind in remedy).map((remedy) => remedy[kind]);
}

/** The ids of the patches that runc needs in a sandbox with these quirks. */
export const patchesFor = (found: readonly QuirkId[]) => remedies("patch", found);
/** The rules that the runtime wrapper needs. */
export const rulesFor = (found: readonly QuirkId[]) => remedies("rule", found);
/** The global options that crun needs. */
export const crunOptionsFor = (found: readonly QuirkId[]): string[] => remedies("crun", found).flat();
/** The keys of containerd's config that differ from what it takes on Linux. */
export const containerdKeysFor = (found: readonly QuirkId[]): Partial<ContainerdKeys> =>
  Object.assign({}, ...remedies("containerd", found));
/** What the kernel facade has to put there. */
export const facadeFor = (found: readonly QuirkId[]): FacadeParts[] => remedies("facade", found);
/** The quirks for which nothing helps, and with which a pod cannot run. */
export const blockersAmong = (found: readonly QuirkId[]) =>
  probedQuirks.filter((id) => found.includes(id) && "blocked" in quirk(id).remedy);

/** A remedy in words, and who can change what it is for. */
export function describeRemedy(remedy: Remedy): { remedy: string; by: string } {
  const ours = (text: string) => ({ remedy: text, by: "gvisor-k3s does" });
  if ("patch" in remedy) return ours(`runc patch ${remedy.patch}`);
  if ("rule" in remedy) return ours(`wrapper rule ${JSON.stringify(remedy.rule)}`);
  if ("crun" in remedy) return ours(`crun ${remedy.crun.join(" ")}`);
  if ("containerd" in remedy)
    return ours(
      `containerd ${Object.entries(remedy.containerd)
        .map(([key, value]) => `${key} = ${value}`)
        .join(", ")}`,
    );
  if ("facade" in remedy) return ours("kernel facade");
  if ("always" in remedy) return ours(remedy.always);
  if ("blocked" in remedy) return { remedy: "none: no pods", by: remedy.blocked };
  return { remedy: "none: the rest works", by: remedy.missing };
}

/** What a node cannot run without and this sandbox does not have, a line for each quirk. */
export function whyNoNode(blockers: readonly QuirkId[]): string {
  return blockers
    .map(
      (id) =>
        `${id}: ${quirk(id).needs} cannot run here ("${quirk(id).symptom}"); who can change it: ` +
        `${(quirk(id).remedy as { blocked: string }).blocked}`,
    )
    .join("\n");
}
