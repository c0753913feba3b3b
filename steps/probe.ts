/**
 * What a sandbox can do, asked of the sandbox itself.
 * @module
 */
import { createHash } from "node:crypto";
import { blockersAmong, probedQuirks, type QuirkId, quirk, whyNoNode } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import type { Machine } from "../machines/machine.ts";
import { hostPaths } from "../machines/paths.ts";
import type { MachineRef } from "../machines/ref.ts";
import { inTrial } from "../machines/trial.ts";
import { readJson, writeWhole } from "../system/files.ts";
import { lastLines } from "../system/run.ts";
import type { OnMachine, Step } from "./step.ts";

/** A question to a sandbox, as node/init/probe takes it. */
export interface Probe {
  id: QuirkId;
  command: readonly string[];
  /** It is ended after these, and counts as one that hangs. */
  milliseconds: number;
}

/** The answer; yes means that the sandbox is free of the quirk. */
export interface Answer {
  id: QuirkId;
  yes: boolean;
  hung?: boolean;
  /** What the kernel said, where the answer is no. */
  reason: string;
}

/** Everything that the answers depend on: a change of any asks anew. */
export interface ProbeParams extends OnMachine {
  /** What the gVisor's abilities depend on, as far as it is chosen here. */
  gvisor: string[];
  probes: Probe[];
  mode: StackConfig["mode"];
}

/** The questions of the catalogue. Each takes some milliseconds; the time is for a machine that is busy. */
export const probes: Probe[] = probedQuirks.map((id) => ({ id, command: quirk(id).probe!, milliseconds: 10_000 }));

/**
 * Probes a sandbox for the quirks of the catalogue, notes the result and returns the ids of those that it has.
 * @throws Error if a probe hangs, or if the mode is `node` and something is missing that no remedy helps
 */
export const probeQuirks: Step<ProbeParams, QuirkId[]> = {
  name: () => "probe",
  async run(params, { machine }) {
    const found = quirksIn(await ask(machine, params.probes));
    const blockers = params.mode === "node" ? blockersAmong(found) : [];
    if (blockers.length > 0) {
      throw new Error(
        `this sandbox cannot run pods:\n${whyNoNode(blockers)}\nset mode: control-plane for an API server without ` +
          "pods, or use another gVisor",
      );
    }
    await writeWhole(resultFile(params.machine), JSON.stringify({ key: keyOf(params), found }));
    return found;
  },
};

/**
 * Has a sandbox answer the questions.
 * @param init what answers them there, unless it is the machine's own
 * @throws Error that names every probe that hung: what it asks cannot be known
 */
export async function ask(machine: Machine, questions: readonly Probe[], init?: string): Promise<Answer[]> {
  const options = { input: JSON.stringify(questions), timeout: 30_000 };
  const asked = init === undefined ? machine.init(["probe"], options) : machine.exec([init, "probe"], options);
  const told = new Map(
    Object.values(JSON.parse((await asked).stdout) as Answer[]).map((answer) => [answer.id, answer]),
  );
  // Of what was asked, and nothing else: the sandbox may say what it likes.
  const answers = questions.map(({ id }): Answer => {
    const { yes, hung = false, reason = "" } = told.get(id) ?? {};
    if (typeof yes !== "boolean") throw new Error(`the sandbox gives no answer to the probe ${id}`);
    return { id, yes, hung: Boolean(hung), reason: lastLines(String(reason)) };
  });
  const hung = questions.filter(({ id }) => answers.some((answer) => answer.id === id && answer.hung));
  if (hung.length === 0) return answers;
  const lines = hung.map(
    ({ id, command, milliseconds }) =>
      `probe ${id} gave no answer within ${milliseconds / 1000} s: ${command.join(" ")}`,
  );
  throw new Error(
    `${lines.join("\n")}\ntry again on a machine that is less busy, or name the sandbox's quirks with the option ` +
      "`quirks`, which probes nothing",
  );
}

/** The quirks that the answers tell. */
export function quirksIn(answers: readonly Answer[]): QuirkId[] {
  return answers.filter(({ yes }) => !yes).map(({ id }) => id);
}

/**
 * What {@link probeQuirks} will find, for a preview: what it found last if nothing changed since, else what a trial
 * machine tells.
 * @param spec what the machine will be started with
 * @returns undefined if only an update can tell, because something is not built or not copied yet, or does not start
 */
export async function foreseeQuirks(params: ProbeParams, spec: unknown): Promise<QuirkId[] | undefined> {
  const last = readJson<{ key: string; found: QuirkId[] }>(resultFile(params.machine), "delete it");
  if (last?.key === keyOf(params)) return last.found;
  return await inTrial(params.machine, spec, async (trial) => quirksIn(await ask(trial, params.probes))).catch(
    () => undefined,
  );
}

const resultFile = ({ name, home }: MachineRef) => hostPaths(name, home).quirks;

function keyOf({ gvisor, probes }: ProbeParams): string {
  return createHash("sha256")
    .update(JSON.stringify([gvisor, probes]))
    .digest("hex");
}
