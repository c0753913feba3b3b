import * as pulumi from "@pulumi/pulumi";
import { sandboxPaths } from "../config/paths.ts";
import { egressRevision } from "../steps/egress.ts";
import { nextIncarnation } from "../steps/record.ts";
import { artifactFolder } from "../toolchain/artifacts.ts";
import type { Sandbox } from "./sandbox.ts";
import { step } from "./step.ts";

export interface EgressArgs {
  sandbox: Sandbox;
  /** The pods' network. */
  clusterCidr: string;
}

/**
 * The sandbox's way out: a process on the host that makes connections for the node and its pods, to anything but the
 * host itself, and answers DNS from the host's name servers. It is started again by the next `up` if it died; a change
 * is a restart, which breaks the connections through it.
 */
export class Egress extends pulumi.ComponentResource {
  constructor(name: string, args: EgressArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Egress", name, {}, options);
    const { sandbox, clusterCidr } = args;
    const { home, name: of } = sandbox.ref;
    const params = {
      name: of,
      home,
      program: `${artifactFolder({ name: "egress" })}/egress`,
      pods: clusterCidr,
      sandbox: sandbox.incarnation,
    };
    const incarnation = nextIncarnation({ record: sandboxPaths(of, home).egress }, egressRevision(params));
    step(`${name}-apply`, { step: "egress", params, incarnation }, sandbox.inside(this, sandbox));
    this.registerOutputs();
  }
}
