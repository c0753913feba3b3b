/**
 * Where things lie in a sandbox. Everything that the host ever reads or writes there lies in one of these places; see
 * `places`.
 * @module
 */

/**
 * Paths within the sandbox. `/opt/gvisor-k3s` is the artifact cache of the host, read-only; all else is the sandbox's
 * own.
 */
export const inSandbox = {
  artifacts: "/opt/gvisor-k3s",
  containerdConfig: "/etc/containerd/config.toml",
  containerdSocket: "/run/containerd/containerd.sock",
  containerdCredentials: "/etc/containerd/conf.d/credentials.toml",
  /**
   * A link to containerd's overlayfs snapshots. An overlay's options have to fit into a page, with the path of each
   * layer: past that containerd gives them relative to a folder, which gVisor takes no overlay by (google/gvisor#14699).
   * By this path 127 layers fit, which is what Docker and containerd know at most.
   */
  snapshots: "/run/l",
  registries: "/etc/containerd/certs.d",
  cniConfig: "/etc/cni/net.d",
  /** Where the CNI plugin tells the service proxy of the pods' host ports; they end with the sandbox. */
  hostPorts: "/run/gvisor-k3s/host-ports",
  /** Where the CNI plugin has the service proxy put each pod's port in its place, as network policies have it. */
  policies: "/run/gvisor-k3s/policies",
  nodeConfig: "/etc/rancher/k3s/config.yaml",
  kubeconfig: "/etc/rancher/k3s/k3s.yaml",
  nodeData: "/var/lib/rancher/k3s",
  /** By which a node joins a server. */
  joinToken: "/etc/rancher/k3s/token",
  /** By which k3s knows a node again. */
  nodePassword: "/etc/rancher/node/password",
  logs: "/var/log/gvisor-k3s",
} as const;

/**
 * The folders and files of a sandbox that are ever read, written or removed from outside, through `Machine`, which
 * refuses any other. A path of a managed sandbox is never opened by the host but beneath a handle that cannot be led out
 * of it.
 */
export const places = [
  "/etc/containerd",
  "/etc/cni/net.d",
  "/etc/kubernetes",
  "/etc/rancher/k3s",
  "/etc/rancher/node",
  "/etc/passwd",
  "/etc/group",
  "/etc/hosts",
  "/etc/hostname",
  "/etc/resolv.conf",
  "/etc/os-release",
  "/run/gvisor-k3s",
  "/usr/local/bin",
  "/var/lib/kubelet/seccomp",
  "/var/lib/rancher/k3s",
  "/var/log/gvisor-k3s",
] as const;

/** Whether a path lies in one of the {@link places}. */
export function isPlace(path: string): boolean {
  const plain = !path.split("/").includes("..");
  return plain && places.some((place) => path === place || path.startsWith(`${place}/`));
}
