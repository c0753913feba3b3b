import * as pulumi from "@pulumi/pulumi";
import type { StackConfig } from "../config/schema.ts";
import { wrapperPath } from "../toolchain/artifacts.ts";
import type { KernelFacade } from "./kernelFacade.ts";
import type { PatchedRunc } from "./patchedRunc.ts";
import type { Sandbox } from "./sandbox.ts";
import { step } from "./step.ts";

export interface RuntimeWrapperArgs {
  sandbox: Sandbox;
  facade: KernelFacade;
  runc: PatchedRunc;
  rules: StackConfig["runtime"]["rules"];
}

/** What containerd calls as the OCI runtime: runc itself, or, where there are rules, a wrapper that rewrites each spec. Its check runs a container before containerd starts. */
export class RuntimeWrapper extends pulumi.ComponentResource {
  /** The runtime by its path in the sandbox. */
  readonly path: string;

  constructor(name: string, args: RuntimeWrapperArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:RuntimeWrapper", name, {}, options);
    const { sandbox, facade, runc, rules } = args;
    const rulesFile = `${JSON.stringify({ runtime: runc.path, rules }, null, 2)}\n`;
    this.path = rules.length > 0 ? wrapperPath(rulesFile) : runc.path;
    const installed = rules.length > 0 ? [step(`${name}-install`, { step: "wrapper", params: {}, content: rulesFile }, { parent: this })] : [];
    step(
      `${name}-check`,
      { step: "runtime-check", params: { ...sandbox.ref, runtime: this.path }, incarnation: sandbox.incarnation },
      sandbox.inside(this, facade, runc, ...installed),
    );
    this.registerOutputs({ path: this.path });
  }
}
