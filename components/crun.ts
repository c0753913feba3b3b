import * as pulumi from "@pulumi/pulumi";
import { stagedProgram } from "../toolchain/artifacts.ts";
import type { OciRuntime } from "./runtimeWrapper.ts";
import { step } from "./step.ts";

/** crun as it is installed on the host, copied with its libraries. */
export class Crun extends pulumi.ComponentResource implements OciRuntime {
  readonly command: pulumi.Output<string[]>;

  constructor(name: string, args: { path: string }, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Crun", name, {}, options);
    this.command = pulumi.output(stagedProgram(args.path, "crun"));
    step(`${name}-build`, { step: "build", params: { artifacts: [], own: [{ source: args.path, name: "crun" }] } }, { parent: this });
    this.registerOutputs({ command: this.command });
  }
}
