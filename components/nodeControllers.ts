import * as pulumi from "@pulumi/pulumi";
import { renderStorageClass } from "../config/storageClass.ts";
import type { K3sNode } from "./k3sNode.ts";
import { applyManifest } from "./manifest.ts";
import type { Sandbox } from "./sandbox.ts";

export interface NodeControllersArgs {
  sandbox: Sandbox;
  node: K3sNode;
  /** Whether claims are bound; see the option `addons.localStorage`. */
  claims: boolean;
}

/**
 * What of the embedded server another one does not have, as a process beside that: addresses for load balancers, events
 * at pods that ask for what gVisor lacks, the service proxy's rights, and volumes for claims. A change is one restart of it.
 */
export class NodeControllers extends pulumi.ComponentResource {
  constructor(name: string, args: NodeControllersArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:NodeControllers", name, {}, options);
    const { sandbox, node, claims } = args;
    const params = { program: node.server.kubectl, claims, config: node.revision };
    const running = sandbox.step(`${name}-apply`, "memory", { step: "controllers", params }, this, node);
    const [manifest, content] = ["gvisor-k3s-local-storage", renderStorageClass()];
    if (claims) applyManifest(this, `${name}-class`, { sandbox, node, manifest, content, after: [running] });
    this.registerOutputs();
  }
}
