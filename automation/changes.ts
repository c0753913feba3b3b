/**
 * What a preview tells: each resource that changes, what its change restarts, and each file of the runtime that changes
 * as a unified diff.
 * @module
 */
import { styleText } from "node:util";
import type { EngineEvent, OpType } from "@pulumi/pulumi/automation/index.js";
import { createTwoFilesPatch } from "diff";
import { parse, stringify } from "yaml";
import { inSandbox } from "../config/paths.ts";
import { conflistPath } from "../config/conflist.ts";
import type { StepInput, StepName } from "../steps/main.ts";
import { isWork, nameOf } from "./progress.ts";

/** A resource that changes. */
export interface Change {
  resource: string;
  operation: OpType;
  /** What is restarted or lost by it; none if nothing is. */
  effect?: string;
  /** Its file and its parameters as unified diffs. */
  diffs: string[];
}

/** What a change of a step's resource does beyond the step itself, and the file that it writes. */
const about: Partial<Record<StepName, { file?: string; effect?: string }>> = {
  sandbox: { effect: "restarts the sandbox, and every pod in it" },
  inside: { effect: "restarts the node's services" },
  egress: { effect: "restarts the way out: connections through it break" },
  containerd: { file: inSandbox.containerdConfig, effect: "restarts containerd; running pods live on" },
  registries: { file: `${inSandbox.registries} (by path)` },
  server: { file: inSandbox.nodeConfig, effect: "restarts the node's server; running pods live on" },
  network: { file: conflistPath },
  proxy: { effect: "restarts the service proxy: connections through Services break" },
  facade: {},
};

type Inputs = Record<string, unknown> | undefined;

/** Pulumi's own marks, of which each stands for a value (sdk/go/common/resource: SecretSig, UnknownStringValue). */
const [MARK, SECRET, UNKNOWN] = [
  "4dabf18193072939515e22adb298388d",
  "1b47061264138c4ac30d75fd1eb44270",
  "04da6b54-80e4-46f7-96ec-b56ff0331ba9",
];

/** Inputs with words in place of Pulumi's marks. */
function plain(value: unknown): unknown {
  if (value === UNKNOWN) return "[known after up]";
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  if ((value as Record<string, unknown>)[MARK] === SECRET) return "[secret]";
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
}

/** The change that an event of a preview is about; undefined where it is about none. */
export function changeOf({ resourcePreEvent }: EngineEvent): Change | undefined {
  const metadata = resourcePreEvent?.metadata;
  if (!metadata || metadata.op === "same" || !isWork(metadata.type)) return undefined;
  const resource = nameOf(metadata.urn);
  const [before, after] = [plain(metadata.old?.inputs), plain(metadata.new?.inputs)] as [Inputs, Inputs];
  const step = stepOf(after?.create ?? before?.create);
  const { file, effect } = about[step] ?? {};
  const loss = { replace: "made anew: what is in it is lost", delete: "is removed" }[metadata.op as string];
  return {
    resource,
    operation: metadata.op,
    ...(metadata.op === "create" ? {} : { effect: loss ?? effect }),
    diffs: metadata.op === "update" || metadata.op === "replace" ? diffsOf(resource, file, before, after) : [],
  };
}

/** The step that a command runs; on another machine its runner stands before it. */
const stepOf = (command: unknown) => String(command).split(" ").at(-1) as StepName;

/** Inputs with the file and the parameters where a local step has them. */
function asLocal(inputs: Inputs): Inputs {
  if (inputs?.connection === undefined || typeof inputs.stdin !== "string" || !inputs.stdin.startsWith("{"))
    return inputs;
  const { params, environment, content } = JSON.parse(inputs.stdin) as StepInput;
  const { connection: _, ...rest } = inputs;
  return { ...rest, stdin: content, environment: { ...environment, STEP_PARAMS: JSON.stringify(params) } };
}

function diffsOf(resource: string, file: string | undefined, beforeThere: Inputs, afterThere: Inputs): string[] {
  const [before, after] = [asLocal(beforeThere), asLocal(afterThere)];
  const [stdinBefore, stdinAfter] = [before?.stdin, after?.stdin].map(readable);
  const { stdin: _before, ...restBefore } = before ?? {};
  const { stdin: _after, ...restAfter } = after ?? {};
  return [
    unified(file ?? `${resource}.stdin`, stdinBefore!, stdinAfter!),
    unified(`${resource} (parameters)`, parameters(restBefore), parameters(restAfter)),
  ].filter((diff) => diff !== "");
}

/** A file as it is; JSON on one line is laid out, so that a change is one of lines. */
function readable(content: unknown): string {
  const text = typeof content === "string" ? content : content === undefined ? "" : JSON.stringify(content, null, 2);
  return text.endsWith("\n") || text === "" ? text : `${text}\n`;
}

/** Inputs as YAML; the parameters of a step are JSON in its environment. */
function parameters(inputs: Record<string, unknown>): string {
  const environment = inputs.environment as Record<string, string> | undefined;
  const given = environment?.STEP_PARAMS;
  const params = typeof given === "string" && given.startsWith("{") ? (parse(given) as unknown) : given;
  return stringify(environment ? { ...environment, STEP_PARAMS: params } : inputs, {
    lineWidth: 0,
    sortMapEntries: true,
  });
}

function unified(file: string, before: string, after: string): string {
  return before === after
    ? ""
    : createTwoFilesPatch(
        `a/${file.replace(/^\//, "")}`,
        `b/${file.replace(/^\//, "")}`,
        before,
        after,
        undefined,
        undefined,
        { context: 3 },
      ).replace(/^=+\n/, "");
}

const colours = { "+": "green", "-": "red", "@": "cyan" } as const;

/** Changes as text, in colours where that is wanted. */
export function asText(changes: readonly Change[], colour: boolean): string {
  const paint = (line: string) => {
    const style = /^(\+\+\+|---)/.test(line) ? "bold" : colours[line[0] as keyof typeof colours];
    return colour && style ? styleText(style, line, { validateStream: false }) : line;
  };
  const sign: Record<string, string> = { create: "+", delete: "-", update: "~" };
  return changes
    .map(({ resource, operation, effect, diffs }) =>
      [
        `${sign[operation] ?? "±"} ${operation} ${resource}${effect ? `: ${effect}` : ""}`,
        ...diffs.map((diff) =>
          diff
            .trimEnd()
            .split("\n")
            .map(paint)
            .map((line) => `    ${line}`)
            .join("\n"),
        ),
      ].join("\n"),
    )
    .join("\n");
}
