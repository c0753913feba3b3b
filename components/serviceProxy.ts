import * as pulumi from "@pulumi/pulumi";
import { renderRefusal } from "../config/networkPolicies.ts";
import type { StackConfig } from "../config/schema.ts";
import { serviceProxy } from "../servers/embedded.ts";
import type { JoiningNode } from "./joiningNode.ts";
import type { K3sNode } from "./k3sNode.ts";
import { applyManifest } from "./manifest.ts";
import type { QuirkProbe } from "./quirkProbe.ts";
import type { Sandbox } from "./sandbox.ts";

export interface ServiceProxyArgs {
  sandbox: Sandbox;
  /** The cluster's server. */
  node: K3sNode;
  /** What has the node join, where it is another one than the server's. */
  joined?: JoiningNode;
  probe: QuirkProbe;
  network: StackConfig["network"];
}

/**
 * What serves Services on the node and enforces network policies, in userspace: gVisor has no netfilter, without which
 * kube-proxy cannot run. A change of it is one restart, which breaks the connections that pass through it.
 */
export class ServiceProxy extends pulumi.ComponentResource {
  /** Done once every Service is served. */
  readonly applied: pulumi.Resource;

  constructor(name: string, args: ServiceProxyArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:ServiceProxy", name, {}, options);
    const { sandbox, node, joined, probe, network } = args;
    // Of the node's own version.
    const proxy = serviceProxy((joined ?? node).server.kubectl);
    const filters = probe.found.apply((found) => !found.includes("no-pod-filter"));
    const params = {
      server: node.client,
      proxy,
      link: network.bridge,
      address: sandbox.address,
      filters,
      ...(sandbox.mesh === undefined ? {} : { mesh: sandbox.mesh }),
      ...(joined ? { joined: true } : {}),
    };
    this.applied = sandbox.step(`${name}-apply`, "memory", { step: "proxy", params }, this, joined ?? node);
    if (network.policies === "refuse" && !joined) {
      const refusal = { manifest: "gvisor-k3s-network-policies", content: renderRefusal() };
      applyManifest(this, `${name}-policies`, { sandbox, node, ...refusal, after: [] });
    }
    this.registerOutputs();
  }
}
