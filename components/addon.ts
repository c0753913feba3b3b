import type * as pulumi from "@pulumi/pulumi";
import { type AddonImage, imageName, pathInSandbox, programOf } from "../artifacts/artifacts.ts";
import type { ImageOfAddon } from "../config/systemPod.ts";
import type { K3sNode } from "./k3sNode.ts";
import { applyManifest } from "./manifest.ts";
import type { Sandbox } from "./sandbox.ts";

/** What every addon that runs in pods takes. */
export interface AddonArgs {
  sandbox: Sandbox;
  node: K3sNode;
  /** Its image; default: the one that is built here. */
  image: string | undefined;
  /** What its pod needs: network, images, Services. */
  after: pulumi.Resource[];
}

/**
 * The step of an addon that is one manifest with one image.
 * @param parent the component that it is of
 * @param addon the name of the image that is built here
 * @param manifest the manifest's name
 */
export function applyAddon(
  parent: pulumi.Resource,
  name: string,
  addon: AddonImage,
  { sandbox, node, image, after }: AddonArgs,
  render: (image: ImageOfAddon) => string,
  manifest: string = addon,
): void {
  const own = { name: imageName(addon), program: pathInSandbox(programOf(addon), addon) };
  const content = render(image === undefined ? own : { name: image });
  applyManifest(parent, name, { sandbox, node, manifest, content, after });
}
