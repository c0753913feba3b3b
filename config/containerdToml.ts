import { stringify } from "smol-toml";
import { inSandbox } from "./paths.ts";
import type { StackConfig } from "./schema.ts";

export interface ContainerdFiles {
  /** The shim by absolute path, so that one of another version on PATH is never taken. */
  shim: string;
  /** The OCI runtime or its wrapper by absolute path. */
  runtime: string;
  /** The folder of the CNI plugins. */
  cniPlugins: string;
  /** The image of the container that holds a pod's namespaces. */
  pauseImage: string;
}

/** Plugins that cannot work in gVisor (no block devices, no NRI) and only cost start time. */
const DISABLED = ["blockfile", "btrfs", "devmapper", "erofs", "zfs"].map((name) => `io.containerd.snapshotter.v1.${name}`);

/**
 * containerd 2.x's config, version 3. A change of any line takes effect by a restart of containerd, which running pods survive.
 * Keys: containerd's docs/cri/config.md.
 */
export function renderContainerdConfig(options: StackConfig["containerd"], files: ContainerdFiles): string {
  return stringify({
    version: 3,
    root: "/var/lib/containerd",
    state: "/run/containerd",
    disabled_plugins: [...DISABLED, "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"],
    debug: { level: options.logLevel },
    grpc: { address: inSandbox.containerdSocket },
    plugins: {
      "io.containerd.cri.v1.images": {
        snapshotter: options.snapshotter,
        pinned_images: { sandbox: files.pauseImage },
        registry: { config_path: inSandbox.registries },
      },
      "io.containerd.cri.v1.runtime": {
        // gVisor has neither net.ipv4.ip_unprivileged_port_start nor ping_group_range, whatever kernel it reports.
        enable_unprivileged_icmp: false,
        enable_unprivileged_ports: false,
        cni: { bin_dirs: [files.cniPlugins], conf_dir: inSandbox.cniConfig },
        containerd: {
          default_runtime_name: "runc",
          runtimes: {
            runc: { runtime_type: "io.containerd.runc.v2", runtime_path: files.shim, options: { BinaryName: files.runtime } },
          },
        },
      },
      // `ctr images import` and pulls unpack with this plugin, not with the CRI's; left out, they fail with "no unpack platforms defined".
      "io.containerd.transfer.v1.local": { unpack_config: [{ platform: "linux", snapshotter: options.snapshotter }] },
    },
  });
}
