import * as pulumi from "@pulumi/pulumi";
import { podSubnet, renderConflist } from "../config/conflist.ts";
import type { StackConfig } from "../config/schema.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import type { Sandbox } from "./sandbox.ts";

export interface PodNetworkArgs {
  sandbox: Sandbox;
  containerd: ContainerdConfig;
  network: StackConfig["network"];
  clusterCidr: string;
}

/** The pods' network: a CNI conflist for the bridge plugin of this project. With it the node becomes Ready. */
export class PodNetwork extends pulumi.ComponentResource {
  constructor(name: string, args: PodNetworkArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:PodNetwork", name, {}, options);
    const { sandbox, containerd, network, clusterCidr } = args;
    const content = renderConflist(network, podSubnet(clusterCidr), sandbox.address);
    sandbox.step(`${name}-apply`, "memory", { step: "network", params: {}, content }, this, containerd);
    this.registerOutputs();
  }
}
