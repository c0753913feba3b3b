import * as pulumi from "@pulumi/pulumi";
import { type Artifact, pathInSandbox, wanted } from "../artifacts/artifacts.ts";
import { stagedPath } from "../artifacts/stage.ts";
import { patchesFor } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import type { QuirkProbe } from "./quirkProbe.ts";
import type { OciRuntime } from "./runtimeWrapper.ts";
import type { Sandbox } from "./sandbox.ts";

export interface PatchedRuncArgs {
  sandbox: Sandbox;
  /** What decides on the patches, beside `patches`. */
  probe: QuirkProbe;
  /** See the option `runtime.patches`. */
  patches: StackConfig["runtime"]["patches"];
  /** A static runc of the user's, which is taken as it is. */
  path?: string | undefined;
}

/**
 * runc, built statically with seccomp and with those patches only that the sandbox's quirks or the user ask for; without
 * any it is upstream's.
 */
export class PatchedRunc extends pulumi.ComponentResource implements OciRuntime {
  /** runc by its path in the sandbox; another build is another path. */
  readonly command: pulumi.Output<string[]>;
  readonly rules = [];

  constructor(name: string, args: PatchedRuncArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:PatchedRunc", name, {}, options);
    const { sandbox, probe, path } = args;
    const build = (artifacts: pulumi.Input<ReturnType<typeof wanted>[]>, own: { source: string; name: string }[]) =>
      sandbox.step(`${name}-build`, "cache", { step: "build", params: { artifacts, own } }, this);
    if (path) {
      this.command = pulumi.output([stagedPath(path, "runc")]);
      build([], [{ source: path, name: "runc" }]);
    } else {
      const artifact = probe.found.apply((found) => runcWith([...patchesFor(found), ...args.patches]));
      this.command = artifact.apply((runc) => [pathInSandbox(runc, "runc")]);
      build(
        artifact.apply((runc) => [wanted(runc)]),
        [],
      );
    }
    this.registerOutputs({ command: this.command });
  }
}

function runcWith(patches: string[]): Artifact {
  const ids = [...new Set(patches)].sort();
  return { name: "runc", ...(ids.length > 0 ? { patches: ids } : {}) };
}
