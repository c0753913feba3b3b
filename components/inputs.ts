/** Options that are outputs: of other resources, or secrets of the program's configuration. */
import * as pulumi from "@pulumi/pulumi";
import { InputError } from "../config/problems.ts";
import { parseStackConfig, type StackConfig, type StackConfigInput } from "../config/schema.ts";
import { withFiles } from "../config/stackConfig.ts";
import { readFile } from "../system/files.ts";

/** A value of which any part may be an output. */
export type Inputs<T> = pulumi.Input<
  T extends (infer E)[] ? Inputs<E>[] : T extends object ? { [K in keyof T]: Inputs<T[K]> } : T
>;

/** What only shapes the content of files or of the test pod: nothing has to be known of it before anything is made. */
const lateOptions = {
  registries: undefined, // as a whole
  proxy: undefined,
  containerd: ["snapshotter", "logLevel"],
  node: ["labels", "pruneImagesAt", "kubeletArgs", "apiServerArgs", "controllerManagerArgs", "schedulerArgs"],
  pod: ["namespace", "image", "args"],
} as const;
type LateOptions = typeof lateOptions;
type LateOption = keyof LateOptions;

/** The values of these options, each an output if any part of it was given as one. */
export type LateConfig = { [K in LateOption]: pulumi.Input<StackConfig[K]> };

/** A group of options of which some may be outputs. */
type WithInputs<T, P> = P extends readonly (infer K)[]
  ? Omit<NonNullable<T>, K & string> & { [Q in K & keyof NonNullable<T>]?: Inputs<NonNullable<T>[Q]> }
  : Inputs<T>;

/** The options of a stack, of which every one has a default: the name is the component's. */
export type ClusterArgs = Omit<StackConfigInput, "name" | LateOption> & { name?: string } & {
  [K in LateOption]?: WithInputs<StackConfigInput[K], LateOptions[K]>;
};

/** Options as {@link splitInputs} takes them apart. */
export interface SplitInputs {
  /** Those that are plain values. */
  plain: Record<string, unknown>;
  /** What is known of the others once the first are checked. */
  late: (config: StackConfig) => LateConfig;
}

/** Where an output may be, as options are written: "node.labels". */
const latePaths: readonly string[] = Object.entries(lateOptions).flatMap(([option, parts]) =>
  parts === undefined ? [option] : parts.map((part) => `${option}.${part}`),
);

/**
 * Takes what is given as outputs out of the options.
 * @throws InputError that names every option which has to be a plain value and is none
 */
export function splitInputs(args: Record<string, unknown>): SplitInputs {
  const isBelow = (path: string) => (late: string) => path === late || path.startsWith(`${late}.`);
  const outputs = Object.entries(args).flatMap(([option, value]) => outputsIn(option, value));
  const problems = outputs
    .filter((path) => !latePaths.some(isBelow(path)))
    .map((option) => ({ option, message: MUST_BE_PLAIN }));
  if (problems.length > 0) throw new InputError(problems);
  const late = latePaths.filter((path) => outputs.some((output) => isBelow(output)(path)));
  const plain = { ...args };
  for (const [option, part] of late.map((path) => path.split(".") as [string, string?])) {
    if (part === undefined) delete plain[option];
    else plain[option] = { ...(plain[option] as object), [part]: undefined };
  }
  const given = <K extends LateOption>(option: K, config: StackConfig): pulumi.Input<StackConfig[K]> =>
    late.some((path) => path.split(".")[0] === option)
      ? checked(option, pulumi.output(args[option]), plain)
      : config[option];
  return {
    plain,
    late: (config) => ({
      registries: given("registries", config),
      proxy: given("proxy", config),
      containerd: given("containerd", config),
      node: given("node", config),
      pod: given("pod", config),
    }),
  };
}

/**
 * An option that a program in another language gave as an output, as a whole: where some of it may be one, that stays
 * one, and so a secret.
 * @param value what it is, once it is known
 * @returns undefined if it has to be known, and is not
 */
export function keptOutput(option: string, given: pulumi.Output<unknown>, value: unknown): unknown {
  if (!Object.hasOwn(lateOptions, option)) return value;
  const parts = lateOptions[option as LateOption] as readonly string[] | undefined;
  if (parts === undefined) return given;
  if (typeof value !== "object" || value === null) return value;
  const late = parts.filter((part) => part in value);
  const partOf = (part: string) => given.apply((group) => (group as Record<string, unknown>)[part]);
  return { ...value, ...Object.fromEntries(late.map((part) => [part, partOf(part)])) };
}

const MUST_BE_PLAIN =
  "it is an output, which need not be known before the resources are declared, and this option says which these are; " +
  `give a plain value, or one of the program's configuration; these may be outputs: ${latePaths.join(", ")}`;

/** The option once it is known, with its defaults. */
function checked<K extends LateOption>(
  option: K,
  output: pulumi.Output<unknown>,
  plain: Record<string, unknown>,
): pulumi.Output<StackConfig[K]> {
  return output.apply((value): StackConfig[K] => {
    try {
      return parseStackConfig(withFiles({ ...plain, [option]: value }, readFile))[option];
    } catch (error) {
      throw error instanceof InputError ? new pulumi.RunError(error.message) : error;
    }
  }) as pulumi.Output<StackConfig[K]>;
}

/** The paths of the outputs in a value, as options are written: "sandbox.memory". */
function outputsIn(path: string, value: unknown): string[] {
  if (pulumi.Output.isInstance(value) || value instanceof Promise) return [path];
  if (typeof value !== "object" || value === null) return [];
  return Object.entries(value).flatMap(([key, part]) => outputsIn(`${path}.${key}`, part));
}

/** What follows from an input: at once if it is a plain value. */
export function lift<T, U>(value: pulumi.Input<T>, use: (value: T) => pulumi.Input<U>): pulumi.Input<U> {
  if (pulumi.Output.isInstance(value) || value instanceof Promise)
    return pulumi.output(value).apply((known) => use(known as T)) as pulumi.Output<U>;
  return use(value as T);
}
