/**
 * Where things lie, on the host and in the sandbox. Pure: the same input gives the same paths.
 * @module
 */
import { homedir } from "node:os";
import { join } from "node:path";

/**
 * Paths within the sandbox. Of a managed one `/etc` and the logs are folders of the host's state folder, and
 * `/opt/gvisor-k3s` is its artifact cache, read-only.
 */
export const inSandbox = {
  artifacts: "/opt/gvisor-k3s",
  containerdConfig: "/etc/containerd/config.toml",
  containerdSocket: "/run/containerd/containerd.sock",
  containerdCredentials: "/etc/containerd/conf.d/credentials.toml",
  registries: "/etc/containerd/certs.d",
  cniConfig: "/etc/cni/net.d",
  nodeConfig: "/etc/rancher/k3s/config.yaml",
  kubeconfig: "/etc/rancher/k3s/k3s.yaml",
  nodeData: "/var/lib/rancher/k3s",
  logs: "/var/log/gvisor-k3s",
} as const;

/** The folder of everything that is kept between commands: `GVISOR_K3S_HOME`, by default `/var/lib/gvisor-k3s`. */
export function homeFolder(environment: NodeJS.ProcessEnv = process.env): string {
  return environment.GVISOR_K3S_HOME || "/var/lib/gvisor-k3s";
}

/**
 * The folder of what is built, safe to delete while no sandbox exists: `GVISOR_K3S_CACHE`, by default `gvisor-k3s` in
 * `XDG_CACHE_HOME` or `~/.cache`.
 */
export function cacheFolder(environment: NodeJS.ProcessEnv = process.env): string {
  return environment.GVISOR_K3S_CACHE || join(environment.XDG_CACHE_HOME || join(homedir(), ".cache"), "gvisor-k3s");
}

/** A sandbox's own folders and names on the host. */
export function sandboxPaths(name: string, home = homeFolder()) {
  const state = join(home, "sandboxes", name);
  return {
    state,
    /** The OCI bundle: config.json and the root file system. */
    bundle: join(state, "bundle"),
    rootfs: join(state, "bundle", "rootfs"),
    etc: join(state, "etc"),
    logs: join(state, "log"),
    /** runsc's own state. */
    runsc: join(state, "runsc"),
    /** What is known of the sandbox's process; see `readRecord`. */
    record: join(state, "sandbox.json"),
    /** What is known of the process of its egress; as the record. */
    egress: join(state, "egress.json"),
    /** What is noted of the machine that the cluster is on, if that is another one; see `noteMachine`. */
    machine: join(state, "machine.json"),
    /** What is known of the process that leads to that machine's API server; as the record. */
    tunnel: join(state, "tunnel.json"),
    kubeconfig: join(state, inSandbox.kubeconfig),
    /** The network namespace and the host's end of the link; at most 15 characters, as the kernel wants it of links. */
    link: `gk-${name}`,
    networkNamespace: `/run/netns/gk-${name}`,
  };
}

/**
 * A file of a sandbox by the path that the host has for it.
 * @param runsc the path of runsc; without one the sandbox is the machine that this runs on, and the path is the same
 */
export function hostPath({ name, home, runsc }: { name: string; home: string; runsc?: string }, path: string): string {
  if (runsc === undefined) return path;
  const { state, rootfs, logs } = sandboxPaths(name, home);
  if (path.startsWith("/etc/")) return join(state, path);
  return path.startsWith(`${inSandbox.logs}/`) ? join(logs, path.slice(inSandbox.logs.length)) : join(rootfs, path);
}
