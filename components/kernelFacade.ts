import * as pulumi from "@pulumi/pulumi";
import { facadePlan } from "../config/facade.ts";
import type { Sandbox } from "./sandbox.ts";
import { step } from "./step.ts";

/** What a kubelet and runc look for and gVisor lacks: tunables on an overlay over /proc/sys, /dev/kmsg, cgroup mounts, a machine id. */
export class KernelFacade extends pulumi.ComponentResource {
  constructor(name: string, args: { sandbox: Sandbox }, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:KernelFacade", name, {}, options);
    const { sandbox } = args;
    step(
      `${name}-apply`,
      { step: "facade", params: { ...sandbox.ref, plan: facadePlan(sandbox.ref.name) }, incarnation: sandbox.incarnation },
      sandbox.inside(this, sandbox),
    );
    this.registerOutputs();
  }
}
