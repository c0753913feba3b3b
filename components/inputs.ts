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

/** What only shapes the content of files, so that nothing has to be known of it before anything is made. */
const lateOptions = ["registries", "proxy"] as const;
type LateOption = (typeof lateOptions)[number];

/** The values of these options, each an output if any part of it was given as one. */
export type LateConfig = { [K in LateOption]: pulumi.Input<StackConfig[K]> };

/** The options of a stack, of which every one has a default: the name is the component's. */
export type ClusterArgs = Omit<StackConfigInput, "name" | LateOption> & { name?: string } & {
  [K in LateOption]?: Inputs<StackConfigInput[K]>;
};

/** Options as {@link splitInputs} takes them apart. */
export interface SplitInputs {
  /** Those that are plain values. */
  plain: Record<string, unknown>;
  /** What is known of the others once the first are checked. */
  late: (config: StackConfig) => LateConfig;
}

/**
 * Takes what is given as outputs out of the options.
 * @throws InputError that names every option which has to be a plain value and is none
 */
export function splitInputs(args: Record<string, unknown>): SplitInputs {
  const isLate = (option: string) => (lateOptions as readonly string[]).includes(option);
  const problems = Object.entries(args)
    .filter(([option]) => !isLate(option))
    .flatMap(([option, value]) => outputsIn(option, value))
    .map((option) => ({ option, message: MUST_BE_PLAIN }));
  if (problems.length > 0) throw new InputError(problems);
  const isOutput = ([option, value]: [string, unknown]) => isLate(option) && outputsIn(option, value).length > 0;
  const entries = Object.entries(args);
  const plain = Object.fromEntries(entries.filter((entry) => !isOutput(entry)));
  const outputs = Object.fromEntries(entries.filter(isOutput)) as Partial<Record<LateOption, unknown>>;
  const lateValue = <K extends LateOption>(option: K, config: StackConfig): pulumi.Input<StackConfig[K]> =>
    option in outputs ? checked(option, pulumi.output(outputs[option]), plain) : config[option];
  return {
    plain,
    late: (config) => ({ registries: lateValue("registries", config), proxy: lateValue("proxy", config) }),
  };
}

const MUST_BE_PLAIN =
  "it is an output, which need not be known before the resources are declared, and this option says which these are; " +
  `give a plain value, or one of the program's configuration (${lateOptions.join(" and ")} may be outputs)`;

/** The option once it is known, with its defaults. */
function checked<K extends LateOption>(
  option: K,
  given: pulumi.Output<unknown>,
  plain: Record<string, unknown>,
): pulumi.Output<StackConfig[K]> {
  return given.apply((value): StackConfig[K] => {
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
