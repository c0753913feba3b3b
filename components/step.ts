import { extname, relative } from "node:path";
import { local } from "@pulumi/command";
import * as pulumi from "@pulumi/pulumi";
import type { StepName, StepParams } from "../steps/steps.ts";
import { VERSION } from "../steps/versions.ts";

/** A step of the stack: what it runs, and what its inputs are. */
export interface StepArgs<S extends StepName> extends CommandArgs {
  step: S;
  params: { [K in keyof StepParams<S>]: pulumi.Input<StepParams<S>[K]> };
  /** The step that undoes this one, with the same parameters. */
  undo?: StepName;
}

/** What a command has beside what it runs. */
export interface CommandArgs {
  /** The file that the step is about; a preview shows a change of it line by line. */
  content?: pulumi.Input<string>;
  /** Variables by their names; a change of any is an update in place. */
  variables?: Record<string, pulumi.Input<string>>;
  /** The output is a secret and shown nowhere. */
  secretOutput?: boolean;
  /** Inputs whose change replaces what the step has made; leave it out wherever an update in place does. */
  replaceOn?: pulumi.Input<string>[];
}

// A path from where Pulumi runs, so that a checkout that was moved shows no difference. The npm package has it compiled.
const program = relative(process.cwd(), `${import.meta.dirname}/../steps/main${extname(import.meta.filename)}`);

/** What a step's command tells. */
export type StepResource = pulumi.CustomResource & { readonly stdout: pulumi.Output<string> };

/** A command that runs a step: to create, and again in place whenever an input changes. No shell is involved. */
export function step<S extends StepName>(
  name: string,
  { step, params, undo, ...args }: StepArgs<S>,
  options: pulumi.CustomResourceOptions,
): StepResource {
  return command(name, step, params, { ...args, ...(undo ? { undo } : {}) }, options);
}

/** The same, of what is done on no machine. */
export function command(
  name: string,
  create: string,
  params: object,
  args: CommandArgs & { undo?: string },
  options: pulumi.CustomResourceOptions,
): StepResource {
  const { content, variables = {}, secretOutput, replaceOn, undo } = args;
  return new local.Command(
    name,
    {
      interpreter: ["node", program],
      create,
      ...(undo ? { delete: undo } : {}),
      environment: { STEP_PARAMS: pulumi.jsonStringify({ version: VERSION, ...params }), ...variables },
      ...(content === undefined ? {} : { stdin: content }),
      ...(secretOutput ? { logging: "none" as const } : {}),
      ...(replaceOn ? { triggers: replaceOn } : {}),
      addPreviousOutputInEnv: false,
    },
    { ...options, ...(secretOutput ? { additionalSecretOutputs: ["stdout", "stderr"] } : {}) },
  );
}
