import * as pulumi from "@pulumi/pulumi";
import { fileDigest, imageArchive, imageName, type OwnImage, wanted } from "../artifacts/artifacts.ts";
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
    const own = (["pause", "testpod"] as const).map(ownArchive);
    const users = args.archives.map((path) => ({ path, sha256: fileDigest(path) }));
    importArchives(`${name}-import`, args, [...own, ...users], this, args.containerd);
    this.registerOutputs();
  }
}

/** The step that imports archives. */
export function importArchives(
  name: string,
  { sandbox, containerd }: Pick<ImagesArgs, "sandbox" | "containerd">,
  archives: { path: string; sha256: string }[],
  parent: pulumi.Resource,
  ...after: pulumi.Resource[]
): StepResource {
  const params = { ctr: containerd.ctr, takes: [wanted({ name: "images" })], labels: [PINNED], archives };
  return sandbox.step(name, "disk", { step: "images", params }, parent, ...after);
}

/** The archive of an image that is built here, as the step `images` takes it. */
export function ownArchive(image: OwnImage): { path: string; sha256: string } {
  return { path: imageArchive(image), sha256: imageName(image) };
}
