import * as pulumi from "@pulumi/pulumi";
import { fileDigest, imageArchive, imageName, type OwnImage } from "../toolchain/artifacts.ts";
import type { K3sNode } from "./k3sNode.ts";
import type { Sandbox } from "./sandbox.ts";
import { step } from "./step.ts";

export interface ImagesArgs {
  sandbox: Sandbox;
  node: K3sNode;
  /** Archives on the host, beside those of the pause and the test image. */
  archives: string[];
}

/** Images that are imported from archives; another content of an archive is imported again, in place. */
export class Images extends pulumi.ComponentResource {
  constructor(name: string, args: ImagesArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Images", name, {}, options);
    const { sandbox, node } = args;
    const build = step(
      `${name}-build`,
      { step: "build", params: { artifacts: [{ name: "images" }], own: [] } },
      { parent: this },
    );
    const archives = [
      ...["pause" as const, "testpod" as const].map(ownArchive),
      ...args.archives.map((path) => ({ path, sha256: fileDigest(path) })),
    ];
    step(
      `${name}-import`,
      { step: "images", params: { ...sandbox.reachedFromHere(), archives }, ...sandbox.again },
      sandbox.inside(this, node, build),
    );
    this.registerOutputs();
  }
}

/** The archive of an image that is built here, as the step `images` takes it. */
export function ownArchive(image: OwnImage): { path: string; sha256: string } {
  return { path: imageArchive(image), sha256: imageName(image) };
}
