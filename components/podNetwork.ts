import * as pulumi from "@pulumi/pulumi";
import { renderConflist } from "../config/conflist.ts";
import type { StackConfig } from "../config/schema.ts";
import type { K3sNode } from "./k3sNode.ts";
import type { Sandbox } from "./sandbox.ts";

export interface PodNetworkArgs {
  sandbox: Sandbox;
  node: K3sNode;
  network: StackConfig["network"];
  clusterCidr: string;
}

/**
 * The pods' network: a CNI conflist for the bridge plugin of this project. With it the node becomes Ready, which is
 * awaited.
 */
export class PodNetwork extends pulumi.ComponentResource {
  constructor(name: string, args: PodNetworkArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:PodNetwork", name, {}, options);
    const { sandbox, node, network, clusterCidr } = args;
    const content = renderConflist(network, clusterCidr, sandbox.address);
    const params = { server: node.server };
    sandbox.step(`${name}-apply`, "memory", { step: "network", params, content }, this, node);
    this.registerOutputs();
  }
}
