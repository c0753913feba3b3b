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
    const { sandbox, node } = args;
    sandbox.step(
      `${name}-apply`,
      {
        step: "network",
        params: { ...sandbox.ref, ...node.program },
        content: renderConflist(args.network, args.clusterCidr, sandbox.address),
        incarnation: sandbox.incarnation,
        repairs: sandbox.repairs("network"),
      },
      sandbox.inside(this, node),
    );
    this.registerOutputs();
  }
}
