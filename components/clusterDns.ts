import * as pulumi from "@pulumi/pulumi";
import { renderCoreDns } from "../config/coredns.ts";
import type { StackConfig } from "../config/schema.ts";
import { imageName } from "../toolchain/artifacts.ts";
import { ownArchive } from "./images.ts";
import type { K3sNode } from "./k3sNode.ts";
import { applyManifest } from "./manifest.ts";
import type { Sandbox } from "./sandbox.ts";
import { step } from "./step.ts";

export interface ClusterDnsArgs {
  sandbox: Sandbox;
  node: K3sNode;
  /** See the options `node.clusterDomain` and `node.clusterDns`. */
  domain: Pick<StackConfig["node"], "clusterDomain" | "clusterDns">;
  /** See the option `addons.coredns.image`. */
  image: string | undefined;
  /** What its pod needs: network, images, Services. */
  after: pulumi.Resource[];
}

/** CoreDNS in kube-system: names of Services and pods for pods, and every other name by the node's name servers. A change is a rolling update. */
export class ClusterDns extends pulumi.ComponentResource {
  constructor(name: string, args: ClusterDnsArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:ClusterDns", name, {}, options);
    const { sandbox, node, domain, image = imageName("coredns"), after } = args;
    const own = args.image === undefined ? [step(`${name}-image`, { step: "images", params: { ...sandbox.ref, archives: [ownArchive("coredns")] } }, sandbox.inside(this, ...after))] : [];
    applyManifest(this, name, { sandbox, node, manifest: "coredns", content: renderCoreDns(image, domain), after: [...after, ...own] });
    this.registerOutputs();
  }
}
