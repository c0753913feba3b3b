import { stringify } from "smol-toml";
import type { ContainerdKeys } from "./containerdKeys.ts";
import { inSandbox } from "./paths.ts";
import type { StackConfig } from "./schema.ts";

export interface ContainerdFiles {
  /** The OCI runtime or its wrapper by absolute path. */
  runtime: string;
  /** The folder of the CNI plugins. */
  cniPlugins: string;
  /** The image of the container that holds a pod's namespaces. */
  pauseImage: string;
}

const ON_LINUX: ContainerdKeys = {
  snapshotter: "overlayfs",
  enable_unprivileged_icmp: true,
  enable_unprivileged_ports: true,
};

/** Plugins that cannot work in gVisor (no block devices, no NRI) and only cost start time. */
const DISABLED = ["blockfile", "btrfs", "devmapper", "erofs", "zfs"].map(
  (name) => `io.containerd.snapshotter.v1.${name}`,
);

/**
 * containerd 2.x's config, version 3. A change of any line takes effect by a restart of containerd, which running pods
 * survive. Keys: containerd's docs/cri/config.md.
 * @param quirky keys that the sandbox's quirks ask for; see `containerdKeysFor`
 */
export function renderContainerdConfig(
  options: StackConfig["containerd"],
  files: ContainerdFiles,
  quirky: Partial<ContainerdKeys>,
): string {
  const { snapshotter: suitable, ...unprivileged } = { ...ON_LINUX, ...quirky };
  const snapshotter = options.snapshotter === "auto" ? suitable : options.snapshotter;
  return stringify({
    version: 3,
    // What is secret is a file of its own, so that a change of this one can be shown.
    imports: [inSandbox.containerdCredentials],
    root: "/var/lib/containerd",
    state: "/run/containerd",
    disabled_plugins: [...DISABLED, "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"],
    debug: { level: options.logLevel },
    grpc: { address: inSandbox.containerdSocket },
    plugins: {
      "io.containerd.cri.v1.images": {
        snapshotter,
        pinned_images: { sandbox: files.pauseImage },
        registry: { config_path: inSandbox.registries },
      },
      "io.containerd.cri.v1.runtime": {
        ...unprivileged,
        // As often as the kubelet's cAdvisor. It is for `crictl stats` alone (the kubelet asks its own), and each time
        // every container is asked by its shim: each second, as containerd has it, takes a CPU with a hundred pods.
        stats_collect_period: "10s",
        cni: { bin_dirs: [files.cniPlugins], conf_dir: inSandbox.cniConfig },
        containerd: {
          default_runtime_name: "runc",
          runtimes: {
            // The shim is the first on containerd's PATH. By its path containerd would ask it for its features with
            // each container, which is a process each. A session keyring for each container would use up the 200 keys
            // that gVisor has, which it never takes back: pkg/sentry/kernel/auth.
            runc: { runtime_type: "io.containerd.runc.v2", options: { BinaryName: files.runtime, NoNewKeyring: true } },
          },
        },
      },
      "io.containerd.snapshotter.v1.overlayfs": { root_path: inSandbox.snapshots },
      // `ctr images import` and pulls unpack with this plugin, not with the CRI's; left out, they fail with "no unpack
      // platforms defined".
      "io.containerd.transfer.v1.local": { unpack_config: [{ platform: "linux", snapshotter }] },
    },
  });
}
