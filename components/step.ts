import { readFileSync } from "node:fs";
import { extname, relative } from "node:path";
import { local, remote, type types } from "@pulumi/command";
import * as pulumi from "@pulumi/pulumi";
import { remotePaths, type SshTarget } from "../config/ssh.ts";
import type { StepInput, StepName, StepParams } from "../steps/main.ts";
import { asRoot, hostKey } from "../steps/ssh.ts";

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

// A path from where Pulumi runs, so that a checkout that was moved shows no difference. The npm package has it
// compiled.
const program = relative(process.cwd(), `${import.meta.dirname}/../steps/main${extname(import.meta.filename)}`);

/** What a step's command tells. */
export type StepResource = pulumi.CustomResource & { readonly stdout: pulumi.Output<string> };

/** A command that runs a step: to create, and again in place whenever an input changes. No shell is involved. */
export function step<S extends StepName>(
  name: string,
  args: StepArgs<S>,
  options: pulumi.CustomResourceOptions,
): StepResource {
  return new local.Command(
    name,
    {
      interpreter: ["node", program],
      create: args.step,
      ...(args.undo ? { delete: args.undo } : {}),
      environment: { STEP_PARAMS: pulumi.jsonStringify(args.params), ...variables(args) },
      ...(args.content === undefined ? {} : { stdin: args.content }),
      ...common(args),
    },
    resourceOptions(args, options),
  );
}

/**
 * The same on another machine, by the runner that was copied there. What it gets comes by its standard input: an SSH
 * server takes variables only if it is told which, and they would be seen among its processes.
 */
export function remoteStep<S extends StepName>(
  ssh: SshTarget,
  name: string,
  args: StepArgs<S>,
  options: pulumi.CustomResourceOptions,
): StepResource {
  const run = `${asRoot(ssh)}${remotePaths.runner}/run`;
  const input: { [K in keyof StepInput]: pulumi.Input<unknown> } = {
    params: args.params,
    environment: variables(args),
    content: args.content,
  };
  return new remote.Command(
    name,
    {
      connection: connectionTo(ssh),
      create: `${run} ${args.step}`,
      // A machine that was set up anew has no runner, and nothing to undo.
      ...(args.undo ? { delete: `test ! -e ${remotePaths.runner} || ${run} ${args.undo}` } : {}),
      stdin: pulumi.jsonStringify(input),
      ...common(args),
    },
    resourceOptions(args, options),
  );
}

function connectionTo(ssh: SshTarget): pulumi.Input<types.input.remote.ConnectionArgs> {
  return {
    host: ssh.host,
    port: ssh.port,
    user: ssh.user,
    ...(ssh.privateKey === undefined ? {} : { privateKey: pulumi.secret(readFileSync(ssh.privateKey, "utf8")) }),
    hostKey: hostKey(ssh)!,
    dialErrorLimit: 3, // the machine was reached just before
  };
}

function variables({
  incarnation,
  repairs,
}: Pick<StepArgs<StepName>, "incarnation" | "repairs">): Record<string, string> {
  return {
    ...(incarnation === undefined ? {} : { SANDBOX_INCARNATION: String(incarnation) }),
    ...(repairs ? { STEP_REPAIRS: String(repairs) } : {}),
  };
}

function common({ secretOutput, replaceOn }: Pick<StepArgs<StepName>, "secretOutput" | "replaceOn">) {
  return {
    ...(secretOutput ? { logging: "none" as const } : {}),
    ...(replaceOn ? { triggers: replaceOn } : {}),
    addPreviousOutputInEnv: false,
  };
}

function resourceOptions(
  { secretOutput }: Pick<StepArgs<StepName>, "secretOutput">,
  options: pulumi.CustomResourceOptions,
): pulumi.CustomResourceOptions {
  return { ...options, ...(secretOutput ? { additionalSecretOutputs: ["stdout", "stderr"] } : {}) };
}
