import * as pulumi from "@pulumi/pulumi";
import { pathInSandbox } from "../toolchain/artifacts.ts";
import type { K3sNode } from "./k3sNode.ts";
import type { Sandbox } from "./sandbox.ts";

export interface ServiceProxyArgs {
  sandbox: Sandbox;
  node: K3sNode;
  /** The node's link to its pods; see the option `network.bridge`. */
  link: string;
}

/**
 * What serves Services on the node, in userspace: gVisor has no netfilter, without which kube-proxy cannot run. A
 * change of it is one restart, which breaks the connections that pass through it.
 */
export class ServiceProxy extends pulumi.ComponentResource {
  /** Done once every Service is served. */
  readonly applied: pulumi.Resource;

  constructor(name: string, args: ServiceProxyArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:ServiceProxy", name, {}, options);
    const { sandbox, node, link } = args;
    const params = {
      ...sandbox.ref,
      proxy: pathInSandbox({ name: "server" }, "service-proxy"),
      link,
      address: sandbox.address,
      distribution: node.program.distribution,
    };
    this.applied = sandbox.step(
      `${name}-apply`,
      { step: "proxy", params, incarnation: sandbox.incarnation },
      sandbox.inside(this, node),
    );
    this.registerOutputs();
  }
}
