import * as pulumi from "@pulumi/pulumi";
import { pathInSandbox } from "../artifacts/artifacts.ts";
import type { K3sNode } from "./k3sNode.ts";
import type { Sandbox } from "./sandbox.ts";

export interface ServiceProxyArgs {
  sandbox: Sandbox;
  node: K3sNode;
  /** The node's link to its pods; see the option `network.bridge`. */
  link: string;
}

/**
 * What serves Services on the node, in userspace: gVisor has no netfilter, without which kube-proxy cannot run. A change
 * of it is one restart, which breaks the connections that pass through it.
 */
export class ServiceProxy extends pulumi.ComponentResource {
  /** Done once every Service is served. */
  readonly applied: pulumi.Resource;

  constructor(name: string, args: ServiceProxyArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:ServiceProxy", name, {}, options);
    const { sandbox, node, link } = args;
    const proxy = pathInSandbox({ name: "server" }, "service-proxy");
    const params = { server: node.client, proxy, link, address: sandbox.address };
    this.applied = sandbox.step(`${name}-apply`, "memory", { step: "proxy", params }, this, node);
    this.registerOutputs();
  }
}
