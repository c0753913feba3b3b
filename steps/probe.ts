/**
 * What a sandbox can do, asked of the sandbox itself.
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { sandboxPaths } from "../config/paths.ts";
import { blockersAmong, probedQuirks, type QuirkId, quirk, whyNoNode } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import { artifactFolder } from "../toolchain/artifacts.ts";
import { processStart } from "./record.ts";
import { run } from "./run.ts";
import { ensureSandbox, initIn, removeSandbox, type SandboxParams, type SandboxRef } from "./sandbox.ts";

/** A question to a sandbox, as node/init/probe.go takes it. */
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
export type ProbeParams = SandboxRef &
  Partial<Pick<SandboxParams, "runscDigest" | "platform" | "network">> & { probes: Probe[]; mode: StackConfig["mode"] };

/** The questions of the catalogue. Each takes some milliseconds; the time is for a machine that is busy. */
export const probes: Probe[] = probedQuirks.map((id) => ({ id, command: quirk(id).probe!, milliseconds: 10_000 }));

/**
 * Probes a sandbox for the quirks of the catalogue and notes the result.
 * @returns the ids of those that it has, as a list in JSON
 * @throws Error if a probe hangs, or if the mode is `node` and something is missing that no remedy helps
 */
export async function probeQuirks(params: ProbeParams): Promise<QuirkId[]> {
  const found = quirksIn(await ask(params.probes, (input) => initIn(params, ["probe"], { input, timeout: 30_000 })));
  const blockers = params.mode === "node" ? blockersAmong(found) : [];
  if (blockers.length > 0)
    throw new Error(
      `this sandbox cannot run pods:\n${whyNoNode(blockers)}\nset mode: control-plane for an API ` +
        "server without pods, or use another gVisor",
    );
  await writeFile(resultFile(params), JSON.stringify({ key: keyOf(params), found }));
  return found;
}

/**
 * Has a sandbox-init answer the questions.
 * @param run runs `sandbox-init probe` with this standard input
 * @throws Error that names every probe that hung: what it asks cannot be known
 */
export async function ask(
  questions: readonly Probe[],
  run: (input: string) => Promise<{ stdout: string }>,
): Promise<Answer[]> {
  const answers = JSON.parse((await run(JSON.stringify(questions))).stdout) as Answer[];
  const hung = questions.filter(({ id }) => answers.some((answer) => answer.id === id && answer.hung));
  if (hung.length > 0) {
    const lines = hung.map(
      ({ id, command, milliseconds }) =>
        `probe ${id} gave no answer within ${milliseconds / 1000} s: ${command.join(" ")}`,
    );
    throw new Error(
      `${lines.join("\n")}\ntry again on a machine that is less busy, or name the sandbox's quirks ` +
        `with the option \`quirks\`, which probes nothing`,
    );
  }
  return answers;
}

/** The quirks that the answers tell. */
export function quirksIn(answers: readonly Answer[]): QuirkId[] {
  return answers.filter(({ yes }) => !yes).map(({ id }) => id);
}

/**
 * What {@link probeQuirks} will find, for a preview: what it found last if nothing changed since, else what a trial
 * sandbox tells.
 * @returns undefined if only an update can tell, because runsc or sandbox-init are not built yet, not on the other
 *   machine yet, or do not start
 */
export async function foreseeQuirks(params: ProbeParams): Promise<QuirkId[] | undefined> {
  if (params.ssh)
    return await ask(params.probes, (input) => initIn(params, ["probe"], { input, timeout: 30_000 })).then(
      quirksIn,
      () => undefined,
    );
  const file = resultFile(params);
  const last = existsSync(file)
    ? (JSON.parse(readFileSync(file, "utf8")) as { key: string; found: QuirkId[] })
    : undefined;
  if (last?.key === keyOf(params)) return last.found;
  const init = join(artifactFolder({ name: "init" }), "sandbox-init");
  if (!existsSync(init)) return undefined;
  const { home, runsc, platform, network } = params;
  const answers =
    runsc === undefined || platform === undefined || network === undefined
      ? ask(params.probes, (input) => run(init, ["probe"], { input, timeout: 30_000 }))
      : existsSync(runsc)
        ? inTrialSandbox({ home, runsc, platform, network }, (trial) =>
            ask(params.probes, (input) => initIn(trial, ["probe"], { input, timeout: 30_000 })),
          )
        : Promise.reject(new Error("no runsc yet"));
  return await answers.then(quirksIn, () => undefined);
}

function resultFile({ name, home }: SandboxRef): string {
  return join(sandboxPaths(name, home).state, "quirks.json");
}

function keyOf({ runsc, runscDigest, platform, network, probes }: ProbeParams): string {
  return createHash("sha256")
    .update(JSON.stringify([runsc, runscDigest, platform, network, probes]))
    .digest("hex");
}

/** Begins the name of a trial sandbox; no stack can have such a name. */
const TRIAL = "try_";

/** Starts a sandbox that is there only for `use`; nothing of it stays. */
export async function inTrialSandbox<T>(
  like: Pick<SandboxParams, "home" | "runsc" | "platform" | "network">,
  use: (trial: SandboxRef) => Promise<T>,
): Promise<T> {
  const { home, runsc, platform, network } = like;
  await removeDeadTrials(home);
  const isNew = !existsSync(home);
  const slot = process.pid % 64;
  // A link-local network, which no stack has; two trials at once are told apart by their processes.
  const trial = {
    name: `${TRIAL}${process.pid}`,
    home,
    runsc,
    platform,
    network,
    subnet: `169.254.107.${slot * 4}/30`,
    limits: { memory: null, cpus: null },
  };
  await mkdir(home, { recursive: true, mode: 0o700 });
  try {
    await ensureSandbox(trial);
    return await use(trial);
  } finally {
    await removeSandbox(trial);
    if (isNew) await rmdir(home).catch(() => undefined); // somebody else has put something there meanwhile
  }
}

/** Removes trial sandboxes whose process was killed. */
export async function removeDeadTrials(home: string): Promise<void> {
  const folder = join(home, "sandboxes");
  for (const name of existsSync(folder) ? readdirSync(folder) : []) {
    const owner = name.startsWith(TRIAL) ? Number(name.slice(TRIAL.length)) : Number.NaN;
    if (!Number.isNaN(owner) && processStart(owner) === undefined) await removeSandbox({ name, home });
  }
}
