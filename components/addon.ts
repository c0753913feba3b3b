import type * as pulumi from "@pulumi/pulumi";
import { imageName, type OwnImage } from "../toolchain/artifacts.ts";
import { ownArchive } from "./images.ts";
import type { K3sNode } from "./k3sNode.ts";
import { applyManifest } from "./manifest.ts";
import type { Sandbox } from "./sandbox.ts";
import { step } from "./step.ts";

/** What every addon that runs in pods takes. */
export interface AddonArgs {
  sandbox: Sandbox;
  node: K3sNode;
  /** Its image; default: the one that is built here, which is then imported. */
  image: string | undefined;
  /** What its pod needs: network, images, Services. */
  after: pulumi.Resource[];
}

/**
 * The steps of an addon that is one manifest with one image.
 * @param parent the component that they are of
 * @param addon the name of the manifest and of the image that is built here
 */
export function applyAddon(
  parent: pulumi.Resource,
  name: string,
  addon: OwnImage,
  { sandbox, node, image, after }: AddonArgs,
  render: (image: string) => string,
): void {
  const own =
    image === undefined
      ? [
          step(
            `${name}-image`,
            {
              step: "images",
              params: { ...sandbox.reachedFromHere(), archives: [ownArchive(addon)] },
              ...sandbox.again,
            },
            sandbox.inside(parent, ...after),
          ),
        ]
      : [];
  applyManifest(parent, name, {
    sandbox,
    node,
    manifest: addon,
    content: render(image ?? imageName(addon)),
    after: [...after, ...own],
  });
}
