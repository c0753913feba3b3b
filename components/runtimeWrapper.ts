import * as pulumi from "@pulumi/pulumi";
import { wanted } from "../artifacts/artifacts.ts";
import { wrapperPath } from "../artifacts/stage.ts";
import type { OciRule } from "../config/ociRules.ts";
import { rulesFor } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import type { KernelFacade } from "./kernelFacade.ts";
import type { QuirkProbe } from "./quirkProbe.ts";
import type { Sandbox } from "./sandbox.ts";

/** A component that has a program with runc's command line. */
export interface OciRuntime extends pulumi.Resource {
  /** What starts it in the sandbox: its path, or a loader's with the program behind it. */
  readonly command: pulumi.Output<string[]>;
  /** What it needs to have changed in every spec. */
  readonly rules: readonly OciRule[];
}

export interface RuntimeWrapperArgs {
  sandbox: Sandbox;
  probe: QuirkProbe;
  facade: KernelFacade;
  runtime: OciRuntime;
  /** Rules beside those that the quirks ask for. */
  rules: StackConfig["runtime"]["rules"];
}

/**
 * What containerd calls as the OCI runtime: the runtime itself, or, where there are rules or the runtime needs a
 * loader, a wrapper that rewrites each spec and becomes the runtime. It is put in place by a step that then runs a
 * container, before containerd starts.
 */
export class RuntimeWrapper extends pulumi.ComponentResource {
  /** The runtime by its path in the sandbox. */
  readonly path: pulumi.Output<string>;

  constructor(name: string, args: RuntimeWrapperArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:RuntimeWrapper", name, {}, options);
    const { sandbox, probe, facade, runtime } = args;
    const rulesFile = pulumi.all([runtime.command, probe.found]).apply(([command, found]) => {
      const rules = [...runtime.rules, ...rulesFor(found), ...args.rules];
      return rules.length === 0 && command.length === 1
        ? ""
        : `${JSON.stringify({ runtime: command, rules }, null, 2)}\n`;
    });
    const wrapper = wanted({ name: "wrapper" });
    this.path = pulumi
      .all([runtime.command, rulesFile])
      .apply(([command, content]) => (content ? wrapperPath(wrapper, content) : command[0]!));
    const check = { step: "runtime-check", params: { runtime: this.path, wrapper }, content: rulesFile } as const;
    sandbox.step(`${name}-check`, "memory", check, this, facade, runtime);
    this.registerOutputs({ path: this.path });
  }
}
