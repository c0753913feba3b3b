import * as pulumi from "@pulumi/pulumi";
import { artifactOf, fileDigest, imageArchive, imageName, type OwnImage, wanted } from "../artifacts/artifacts.ts";
import { PINNED } from "../steps/images.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import type { Sandbox } from "./sandbox.ts";
import type { StepResource } from "./step.ts";

export interface ImagesArgs {
  sandbox: Sandbox;
  containerd: ContainerdConfig;
  /** Archives on the host, beside those of the pause and the test image. */
  archives: string[];
}

/** Images that are imported from archives; another content of an archive is imported again, in place. */
export class Images extends pulumi.ComponentResource {
  constructor(name: string, args: ImagesArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Images", name, {}, options);
    importArchives(`${name}-import`, args, ["pause", "testpod"], args.archives, this, args.containerd);
    this.registerOutputs();
  }
}

/**
 * The step that imports images.
 * @param own those that are built here
 * @param archives others' archives, on the host
 */
export function importArchives(
  name: string,
  { sandbox, containerd }: Pick<ImagesArgs, "sandbox" | "containerd">,
  own: OwnImage[],
  archives: string[],
  parent: pulumi.Resource,
  ...after: pulumi.Resource[]
): StepResource {
  const takes = [...new Set(own.map((image) => artifactOf(image).name))].map((artifact) => wanted({ name: artifact }));
  const params = {
    ctr: containerd.ctr,
    takes,
    labels: [PINNED],
    archives: [
      ...own.map((image) => ({ path: imageArchive(image), sha256: imageName(image) })),
      ...archives.map((path) => ({ path, sha256: fileDigest(path) })),
    ],
  };
  return sandbox.step(name, "disk", { step: "images", params }, parent, ...after);
}
