import * as pulumi from "@pulumi/pulumi";
import { renderCoreDns } from "../config/coredns.ts";
import type { StackConfig } from "../config/schema.ts";
import { type AddonArgs, applyAddon } from "./addon.ts";

export interface ClusterDnsArgs extends AddonArgs {
  /** See the options `node.clusterDomain` and `node.clusterDns`. */
  domain: Pick<StackConfig["node"], "clusterDomain" | "clusterDns">;
}

/**
 * CoreDNS in kube-system: names of Services and pods for pods, and every other name by the node's name servers. A
 * change is a rolling update.
 */
export class ClusterDns extends pulumi.ComponentResource {
  constructor(name: string, args: ClusterDnsArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:ClusterDns", name, {}, options);
    applyAddon(this, name, "coredns", args, (image) => renderCoreDns(image, args.domain));
    this.registerOutputs();
  }
}
