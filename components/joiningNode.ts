import * as pulumi from "@pulumi/pulumi";
import { pathInSandbox, serverOf, wanted } from "../artifacts/artifacts.ts";
import type { JoiningNode as Description } from "../config/nodes.ts";
import { renderJoinConfig } from "../config/nodeYaml.ts";
import type { Invitation } from "../steps/member.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import type { K3sNode } from "./k3sNode.ts";
import type { Sandbox } from "./sandbox.ts";

export interface JoiningNodeArgs {
  /** The node's own machine. */
  sandbox: Sandbox;
  containerd: ContainerdConfig;
  node: Description;
  /** The cluster's server, and the machine that it is on. */
  server: { node: K3sNode; sandbox: Sandbox };
}

/**
 * A node that joins a cluster's server: a kubelet with certificates of its own, which it gets by a token, a secret. It is
 * there when the node is Ready. Its removal drains it; where the whole cluster goes, nothing is drained.
 */
export class JoiningNode extends pulumi.ComponentResource {
  constructor(name: string, args: JoiningNodeArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:JoiningNode", name, {}, options);
    const { sandbox, containerd, node, server } = args;
    const { config } = node;
    const artifact = { name: serverOf(config.kubernetes) };
    const program = pathInSandbox(artifact, "gvisor-k3s-node");
    // On the server's machine, and of that: where both go, nothing is asked of it.
    const member = server.sandbox.step(
      `${name}-member`,
      "disk",
      {
        step: "member",
        undo: "member-remove",
        params: { program, node: node.name, address: sandbox.address },
        secretOutput: true,
      },
      this,
      server.node,
      sandbox,
    );
    const invitation = pulumi.secret(member.stdout.apply((text) => JSON.parse(text) as Invitation));
    const api = `${server.sandbox.address}:${config.node.httpsListenPort}`;
    const params = {
      program,
      takes: { artifacts: [wanted(artifact)], own: [] },
      invitation,
      network: config.network,
      clusterCidr: config.node.clusterCidr,
      address: sandbox.address,
    };
    const content = renderJoinConfig(node, sandbox.address, api, config.node);
    sandbox.step(`${name}-join`, "memory", { step: "join", params, content }, this, containerd, member);
    this.registerOutputs();
  }
}
