import * as pulumi from "@pulumi/pulumi";
import { stagedProgram } from "../artifacts/stage.ts";
import type { OciRule } from "../config/ociRules.ts";
import { crunOptionsFor } from "../config/quirks.ts";
import type { QuirkProbe } from "./quirkProbe.ts";
import type { OciRuntime } from "./runtimeWrapper.ts";
import type { Sandbox } from "./sandbox.ts";

export interface CrunArgs {
  sandbox: Sandbox;
  /** What decides on its options. */
  probe: QuirkProbe;
  /** Where it is on the host; see the option `runtime.path`. */
  path: string;
}

/**
 * crun before 1.9 refuses any spec that does not say 1.0 ("unknown version specified"); what it reads has not changed
 * since.
 */
export const crunRules: OciRule[] = [{ set: "ociVersion", value: "1.0.2" }];

/** crun as it is installed on the host, copied with its libraries. */
export class Crun extends pulumi.ComponentResource implements OciRuntime {
  readonly command: pulumi.Output<string[]>;
  readonly rules = crunRules;

  constructor(name: string, args: CrunArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Crun", name, {}, options);
    this.command = args.probe.found.apply((found) => [...stagedProgram(args.path, "crun"), ...crunOptionsFor(found)]);
    const own = [{ source: args.path, name: "crun" }];
    args.sandbox.step(`${name}-build`, "cache", { step: "build", params: { artifacts: [], own } }, this);
    this.registerOutputs({ command: this.command });
  }
}
