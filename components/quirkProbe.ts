import * as pulumi from "@pulumi/pulumi";
import type { QuirkId } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import { driverFor } from "../machines/index.ts";
import { foreseeQuirks, probes } from "../steps/probe.ts";
import type { Sandbox } from "./sandbox.ts";

export interface QuirkProbeArgs {
  sandbox: Sandbox;
  /** What the node is to be: as a control plane it starts where no pod could run. */
  mode: StackConfig["mode"];
  /** `auto` asks the sandbox; a list is taken as it is, and nothing is asked. */
  quirks: StackConfig["quirks"];
}

/**
 * What the sandbox's gVisor lacks. It is asked once, and again when runsc, its platform, its network or the questions
 * change; a sandbox that was only restarted is not asked again.
 */
export class QuirkProbe extends pulumi.ComponentResource {
  /** The ids of the quirks that were found; the option `quirks` takes them as they are. */
  readonly found: pulumi.Output<QuirkId[]>;

  constructor(name: string, args: QuirkProbeArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:QuirkProbe", name, {}, options);
    this.found = args.quirks === "auto" ? probed(this, name, args) : pulumi.output(args.quirks);
    this.registerOutputs({ found: this.found });
  }
}

function probed(parent: QuirkProbe, name: string, { sandbox, mode }: QuirkProbeArgs): pulumi.Output<QuirkId[]> {
  const { ref, spec, process } = sandbox;
  const params = { gvisor: driverFor(ref).gvisorOf(spec), mode, probes };
  const { stdout } = sandbox.step(`${name}-ask`, "disk", { step: "probe", params }, parent, process);
  const answer = stdout.apply((ids) => JSON.parse(ids) as QuirkId[]);
  if (!pulumi.runtime.isDryRun()) return answer;
  // A preview cannot know what a command will print, and yet is to show the lines that follow from it.
  const foreseen = foreseeQuirks({ machine: ref, ...params }, spec);
  return pulumi.output(foreseen.then((ids) => ids ?? answer));
}
