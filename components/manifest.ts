import * as pulumi from "@pulumi/pulumi";
import type { K3sNode } from "./k3sNode.ts";
import type { Sandbox } from "./sandbox.ts";

export interface ManifestArgs {
  sandbox: Sandbox;
  node: K3sNode;
  /** The file's name without extension, unique in the cluster. */
  manifest: string;
  /** The manifest, as YAML with any number of documents. */
  content: string;
  /** What its pods need. */
  after: pulumi.Resource[];
}

/** A manifest of the user's that the server applies and keeps applied, and whose workloads are awaited. */
export class Manifest extends pulumi.ComponentResource {
  constructor(name: string, args: ManifestArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Manifest", name, {}, options);
    applyManifest(this, name, args);
    this.registerOutputs();
  }
}

/**
 * The step that applies a manifest. A change is applied in place: what left the file is deleted. One with a Secret in it
 * is a secret as a whole.
 * @param parent the component that it is of
 */
export function applyManifest(parent: pulumi.Resource, name: string, args: ManifestArgs): pulumi.Resource {
  const { sandbox, node, manifest, content, after } = args;
  const secret = /^ *"?kind"?: *"?Secret\b/m.test(content);
  return sandbox.step(
    `${name}-apply`,
    "memory",
    {
      step: "manifest",
      undo: "manifest-remove",
      params: { server: node.client, manifest, pods: node.runsPods },
      content: secret ? pulumi.secret(content) : content,
    },
    parent,
    node,
    ...after,
  );
}
