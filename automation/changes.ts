/**
 * What a preview tells: each resource that changes, what its change restarts, and each file of the runtime that changes
 * as a unified diff.
 * @module
 */
import { styleText } from "node:util";
import type { EngineEvent, OpType } from "@pulumi/pulumi/automation/index.js";
import { createTwoFilesPatch } from "diff";
import { parse, stringify } from "yaml";
import { conflistPath } from "../config/conflist.ts";
import { inSandbox } from "../config/paths.ts";
import { driverFor } from "../machines/index.ts";
import type { MachineRef } from "../machines/ref.ts";
import type { ServerRef } from "../servers/server.ts";
import type { StepName } from "../steps/steps.ts";
import { VERSION } from "../steps/versions.ts";
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
const about: Partial<
  Record<StepName, { file?: string; effect?: string | ((before: Inputs, after: Inputs) => string) }>
> = {
  sandbox: { effect: effectOnSandbox },
  containerd: { file: inSandbox.containerdConfig, effect: "restarts containerd; running pods live on" },
  registries: { file: `${inSandbox.registries} (by path)` },
  server: { file: inSandbox.nodeConfig, effect: effectOnServer },
  ready: { effect: "waits until the node is Ready again, and restarts nothing" },
  network: { file: conflistPath },
  proxy: { effect: "restarts the service proxy: connections through Services break" },
};

type Inputs = Record<string, unknown> | undefined;

/** What a change of the sandbox's own step does: some of it takes effect while the sandbox runs. */
function effectOnSandbox(before: Inputs, after: Inputs): string {
  const [old, next] = [startOf(before), startOf(after)];
  if (old === undefined || next === undefined || old.revision !== next.revision || old.start !== next.start) {
    return "restarts the sandbox, and every pod in it";
  }
  return "takes effect at once, and restarts nothing in the sandbox";
}

/** What a change of the server's step does: another version is told. */
function effectOnServer(before: Inputs, after: Inputs): string {
  const [old, next] = [before, after].map((inputs) => paramsOf<{ server?: ServerRef }>(inputs)?.server?.version);
  if (old === undefined || next === undefined || old === next)
    return "restarts the node's server; running pods live on";
  return `takes the node's server from ${old} to ${next}; running pods and all data live on`;
}

/** The parameters of a step; undefined where they are not known yet. */
function paramsOf<T>(inputs: Inputs): T | undefined {
  const { STEP_PARAMS: text } = (inputs?.environment ?? {}) as Record<string, unknown>;
  return typeof text === "string" && text.startsWith("{") ? (JSON.parse(text) as T) : undefined;
}

/** What decides on whether a sandbox is started anew; undefined where that is not known yet, or in no form of today. */
function startOf(inputs: Inputs): { revision: string; start: unknown } | undefined {
  const { SANDBOX_INCARNATION: start } = (inputs?.environment ?? {}) as Record<string, unknown>;
  const params = paramsOf<{ version?: number; machine: MachineRef; spec: unknown }>(inputs);
  if (params === undefined) return undefined;
  const { version, machine, spec } = params;
  return version === VERSION ? { revision: driverFor(machine).revisionOf(spec, machine), start } : undefined;
}

/** Pulumi's own marks, of which each stands for a value (sdk/go/common/resource: SecretSig, UnknownStringValue). */
const [MARK, SECRET, UNKNOWN] = [
  "4dabf18193072939515e22adb298388d",
  "1b47061264138c4ac30d75fd1eb44270",
  "04da6b54-80e4-46f7-96ec-b56ff0331ba9",
];

/** Whether a value in an event of Pulumi's stands for a secret. */
export function isSecret(value: unknown): boolean {
  return typeof value === "object" && value !== null && (value as Record<string, unknown>)[MARK] === SECRET;
}

/** Inputs with words in place of Pulumi's marks. */
function plain(value: unknown): unknown {
  if (value === UNKNOWN) return "[known after up]";
  if (Array.isArray(value)) return value.map(plain);
  if (isSecret(value)) return "[secret]";
  if (typeof value !== "object" || value === null) return value;
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
    ...(metadata.op === "create"
      ? {}
      : { effect: loss ?? (typeof effect === "function" ? effect(before, after) : effect) }),
    diffs: metadata.op === "update" || metadata.op === "replace" ? diffsOf(resource, file, before, after) : [],
  };
}

/** The step that a command runs. */
const stepOf = (command: unknown) => String(command) as StepName;

function diffsOf(resource: string, file: string | undefined, before: Inputs = {}, after: Inputs = {}): string[] {
  const { stdin: contentBefore, ...restBefore } = before;
  const { stdin: contentAfter, ...restAfter } = after;
  return [
    unified(file ?? `${resource}.stdin`, readable(contentBefore), readable(contentAfter)),
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
  if (before === after) return "";
  const name = file.replace(/^\//, "");
  const context = { context: 3 };
  const patch = createTwoFilesPatch(`a/${name}`, `b/${name}`, before, after, undefined, undefined, context);
  return patch.replace(/^=+\n/, "");
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
