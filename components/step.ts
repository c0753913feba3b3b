import { extname, relative } from "node:path";
import { local } from "@pulumi/command";
import * as pulumi from "@pulumi/pulumi";
import type { StepName, StepParams } from "../steps/main.ts";

/** A step of the stack: what it runs, and what its inputs are. */
export interface StepArgs<S extends StepName> {
  step: S;
  params: { [K in keyof StepParams<S>]: pulumi.Input<StepParams<S>[K]> };
  /** The file that the step is about; a preview shows a change of it line by line. */
  content?: pulumi.Input<string>;
  /** The step that undoes this one, with the same parameters. */
  undo?: StepName;
  /** Which start of the sandbox this is done for; another one has it done again. */
  incarnation?: number;
  /** How often the files that it writes were found edited; see `repairsOf`. */
  repairs?: number;
  /** The output is a secret and shown nowhere. */
  secretOutput?: boolean;
  /** Inputs whose change replaces what the step has made; leave it out wherever an update in place does. */
  replaceOn?: pulumi.Input<string>[];
}

// A path from where Pulumi runs, so that a checkout that was moved shows no difference. The npm package has it compiled.
const program = relative(process.cwd(), `${import.meta.dirname}/../steps/main${extname(import.meta.filename)}`);

/** A command that runs a step: to create, and again in place whenever an input changes. No shell is involved. */
export function step<S extends StepName>(name: string, args: StepArgs<S>, options: pulumi.CustomResourceOptions): local.Command {
  return new local.Command(
    name,
    {
      interpreter: ["node", program],
      create: args.step,
      ...(args.undo ? { delete: args.undo } : {}),
      environment: {
        STEP_PARAMS: pulumi.jsonStringify(args.params),
        ...(args.incarnation === undefined ? {} : { SANDBOX_INCARNATION: String(args.incarnation) }),
        ...(args.repairs ? { STEP_REPAIRS: String(args.repairs) } : {}),
      },
      ...(args.content === undefined ? {} : { stdin: args.content }),
      ...(args.secretOutput ? { logging: "none" as const } : {}),
      ...(args.replaceOn ? { triggers: args.replaceOn } : {}),
      addPreviousOutputInEnv: false,
    },
    { ...options, ...(args.secretOutput ? { additionalSecretOutputs: ["stdout", "stderr"] } : {}) },
  );
}
