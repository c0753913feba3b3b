/**
 * What a preview tells: each resource that changes, what its change restarts, and each file of the runtime that changes as a unified diff.
 * @module
 */
import { styleText } from "node:util";
import type { EngineEvent, OpType } from "@pulumi/pulumi/automation/index.js";
import { createTwoFilesPatch } from "diff";
import { parse, stringify } from "yaml";
import { inSandbox } from "../config/paths.ts";
import { conflistPath } from "../config/conflist.ts";
import type { StepName } from "../steps/main.ts";
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

/** The change that an event of a preview is about; undefined where it is about none. */
export function changeOf({ resourcePreEvent }: EngineEvent): Change | undefined {
  const metadata = resourcePreEvent?.metadata;
  if (!metadata || metadata.op === "same" || !isWork(metadata.type)) return undefined;
  const resource = nameOf(metadata.urn);
  const [before, after] = [metadata.old?.inputs, metadata.new?.inputs] as [Inputs, Inputs];
  const step = (after?.create ?? before?.create) as StepName;
  const { file, effect } = about[step] ?? {};
  const loss = { replace: "made anew: what is in it is lost", delete: "is removed" }[metadata.op as string];
  return {
    resource,
    operation: metadata.op,
    ...(metadata.op === "create" ? {} : { effect: loss ?? effect }),
    diffs: metadata.op === "update" || metadata.op === "replace" ? diffsOf(resource, file, before, after) : [],
  };
}

function diffsOf(resource: string, file: string | undefined, before: Inputs, after: Inputs): string[] {
  const [stdinBefore, stdinAfter] = [before?.stdin, after?.stdin].map(readable);
  const { stdin: _before, ...restBefore } = before ?? {};
  const { stdin: _after, ...restAfter } = after ?? {};
  return [unified(file ?? `${resource}.stdin`, stdinBefore!, stdinAfter!), unified(`${resource} (parameters)`, parameters(restBefore), parameters(restAfter))].filter((diff) => diff !== "");
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
  return stringify(environment ? { ...environment, STEP_PARAMS: params } : inputs, { lineWidth: 0, sortMapEntries: true });
}

function unified(file: string, before: string, after: string): string {
  return before === after ? "" : createTwoFilesPatch(`a/${file.replace(/^\//, "")}`, `b/${file.replace(/^\//, "")}`, before, after, undefined, undefined, { context: 3 }).replace(/^=+\n/, "");
}

const colours = { "+": "green", "-": "red", "@": "cyan" } as const;

/** Changes as text, in colours where that is wanted. */
export function asText(changes: readonly Change[], colour: boolean): string {
  const paint = (line: string) => {
    const style = /^(\+\+\+|---)/.test(line) ? "bold" : colours[line[0] as keyof typeof colours];
    return colour && style ? styleText(style, line, { validateStream: false }) : line;
  };
  const sign: Record<string, string> = { create: "+", delete: "-", update: "~" };
  return changes.map(({ resource, operation, effect, diffs }) => [`${sign[operation] ?? "±"} ${operation} ${resource}${effect ? `: ${effect}` : ""}`, ...diffs.map((diff) => diff.trimEnd().split("\n").map(paint).map((line) => `    ${line}`).join("\n"))].join("\n")).join("\n");
}
