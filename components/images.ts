import * as pulumi from "@pulumi/pulumi";
import { fileDigest, imageArchive, type Wanted, wanted } from "../artifacts/artifacts.ts";
import { PINNED } from "../steps/images.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import type { Sandbox } from "./sandbox.ts";

export interface ImagesArgs {
  sandbox: Sandbox;
  containerd: ContainerdConfig;
  /** Archives on the host, beside those that are built here. */
  archives: string[];
  /** What pods have programs from, which is mounted and not imported; see `addonImages`. */
  programs: Wanted[];
}

/** Images that are imported from archives; another content of an archive is imported again, in place. */
export class Images extends pulumi.ComponentResource {
  constructor(name: string, args: ImagesArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Images", name, {}, options);
    const { sandbox, containerd, archives, programs } = args;
    const images = wanted({ name: "images" });
    const params = {
      ctr: containerd.ctr,
      takes: [images],
      programs,
      labels: [PINNED],
      archives: [
        { path: imageArchive(), sha256: images.id },
        ...archives.map((path) => ({ path, sha256: fileDigest(path) })),
      ],
    };
    sandbox.step(`${name}-import`, "disk", { step: "images", params }, this, containerd);
    this.registerOutputs();
  }
}
