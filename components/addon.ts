import type * as pulumi from "@pulumi/pulumi";
import { imageName, type OwnImage } from "../artifacts/artifacts.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import { importArchives } from "./images.ts";
import type { K3sNode } from "./k3sNode.ts";
import { applyManifest } from "./manifest.ts";
import type { Sandbox } from "./sandbox.ts";

/** What every addon that runs in pods takes. */
export interface AddonArgs {
  sandbox: Sandbox;
  containerd: ContainerdConfig;
  node: K3sNode;
  /** Its image; default: the one that is built here, which is then imported. */
  image: string | undefined;
  /** What its pod needs: network, images, Services. */
  after: pulumi.Resource[];
}

/**
 * The steps of an addon that is one manifest with one image.
 * @param parent the component that they are of
 * @param addon the name of the image that is built here
 * @param manifest the manifest's name
 */
export function applyAddon(
  parent: pulumi.Resource,
  name: string,
  addon: OwnImage,
  args: AddonArgs,
  render: (image: string) => string,
  manifest: string = addon,
): void {
  const { sandbox, node, image, after } = args;
  const own = image === undefined ? [importArchives(`${name}-image`, args, [addon], [], parent, ...after)] : [];
  const content = render(image ?? imageName(addon));
  applyManifest(parent, name, { sandbox, node, manifest, content, after: [...after, ...own] });
}
