import * as pulumi from "@pulumi/pulumi";
import { facadePlan } from "../config/facade.ts";
import { facadeFor } from "../config/quirks.ts";
import type { QuirkProbe } from "./quirkProbe.ts";
import type { Sandbox } from "./sandbox.ts";

/**
 * What a kubelet and runc look for and the sandbox lacks: tunables on an overlay over /proc/sys, /dev/kmsg, cgroup
 * mounts, a machine id.
 */
export class KernelFacade extends pulumi.ComponentResource {
  constructor(name: string, args: { sandbox: Sandbox; probe: QuirkProbe }, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:KernelFacade", name, {}, options);
    const { sandbox, probe } = args;
    const plan = probe.found.apply((found) => facadePlan(sandbox.ref.name, facadeFor(found)));
    sandbox.step(`${name}-apply`, "memory", { step: "facade", params: { plan } }, this, sandbox, probe);
    this.registerOutputs();
  }
}
