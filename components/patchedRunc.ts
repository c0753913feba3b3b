import * as pulumi from "@pulumi/pulumi";
import type { StackConfig } from "../config/schema.ts";
import { type Artifact, pathInSandbox, stagedPath } from "../toolchain/artifacts.ts";
import { step } from "./step.ts";

/** runc, built statically with seccomp and with the patches that are asked for; the build waits for no sandbox. */
export class PatchedRunc extends pulumi.ComponentResource {
  /** runc by its path in the sandbox; another build is another path. */
  readonly path: string;

  constructor(name: string, args: Pick<StackConfig["runtime"], "patches" | "runc">, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:PatchedRunc", name, {}, options);
    const artifact: Artifact = { name: "runc", ...(args.patches.length > 0 ? { patches: args.patches } : {}) };
    this.path = args.runc ? stagedPath(args.runc, "runc") : pathInSandbox(artifact, "runc");
    step(
      `${name}-build`,
      { step: "build", params: args.runc ? { artifacts: [], own: [{ source: args.runc, name: "runc" }] } : { artifacts: [artifact], own: [] } },
      { parent: this },
    );
    this.registerOutputs({ path: this.path });
  }
}
