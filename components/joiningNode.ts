import * as pulumi from "@pulumi/pulumi";
import type { JoiningNode as Description } from "../config/nodes.ts";
import { renderJoinConfig } from "../config/nodeYaml.ts";
import type { StackConfig } from "../config/schema.ts";
import { distributionOf } from "../servers/index.ts";
import type { Invitation, ServerRef } from "../servers/server.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import { lift } from "./inputs.ts";
import { type K3sNode, programsOf } from "./k3sNode.ts";
import type { Sandbox } from "./sandbox.ts";

export interface JoiningNodeArgs {
  /** The node's own machine. */
  sandbox: Sandbox;
  containerd: ContainerdConfig;
  node: Description;
  /** The options `node` of the cluster. */
  options: pulumi.Input<StackConfig["node"]>;
  /** The cluster's server, and the machine that it is on. */
  server: { node: K3sNode; sandbox: Sandbox };
  /** The node before it, whose kubelet is exchanged first. Nodes that are new, or that were down, do not wait. */
  after?: JoiningNode;
}

/**
 * A node that joins a cluster's server: a kubelet with certificates of its own, which it gets by a token, a secret. It is
 * there when the node is Ready. Its removal drains it; where the whole cluster goes, nothing is drained.
 */
export class JoiningNode extends pulumi.ComponentResource {
  /** What its kubelet is of. */
  readonly server: ServerRef;
  /** Done when the node is Ready and takes pods. */
  readonly ready: pulumi.Resource;

  constructor(name: string, args: JoiningNodeArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:JoiningNode", name, {}, options);
    const { sandbox, containerd, node, server, after } = args;
    const { config } = node;
    const distribution = distributionOf(config);
    this.server = distribution.refOf(config);
    const { takes, downloads } = programsOf(name, sandbox, config, this);
    // On the server's machine, and of that: where both go, nothing is asked of it.
    const asked = { program: server.node.server.kubectl, node: node.name };
    const { version } = this.server;
    const drained = node.drain && version !== undefined;
    const kubelet = drained ? { kubelet: version } : {};
    const member = server.sandbox.step(
      `${name}-member`,
      "disk",
      {
        step: "member",
        undo: "member-remove",
        params: { ...asked, address: sandbox.address, ...kubelet },
        secretOutput: true,
      },
      this,
      server.node,
      sandbox,
      ...(after ? [sandbox.wasRunning.apply((was): pulumi.Resource => (was ? after.ready : server.node))] : []),
    );
    const invitation = pulumi.secret(member.stdout.apply((text) => JSON.parse(text) as Invitation));
    const api = `${server.sandbox.address}:${config.node.httpsListenPort}`;
    const params = {
      server: this.server,
      takes,
      invitation,
      network: config.network,
      clusterCidr: config.node.clusterCidr,
      address: sandbox.address,
    };
    const content = lift(args.options, (options) =>
      renderJoinConfig(node, sandbox.address, api, options, distribution.tellsAgents),
    );
    const join = sandbox.step(
      `${name}-join`,
      "memory",
      { step: "join", params, content },
      this,
      containerd,
      member,
      ...downloads,
    );
    this.ready = drained
      ? server.sandbox.step(
          `${name}-return`,
          "disk",
          { step: "member-return", params: { ...asked, ...kubelet } },
          this,
          join,
        )
      : join;
    this.registerOutputs();
  }
}
