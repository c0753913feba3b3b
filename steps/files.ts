/**
 * The node's configuration files, and a note of what was written into each, so that one that was edited or removed by
 * hand is noticed by a preview, told by `status` and written again by the next `up`.
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { hostPath, sandboxPaths } from "../config/paths.ts";
import type { StepName } from "./main.ts";
import { initIn, type SandboxRef } from "./sandbox.ts";

/** A file by its path in the sandbox. */
export interface OwnFile {
  path: string;
  content: string;
  mode: number;
  /** Whether a process in the sandbox watches it: gVisor's inotify does not report what the host writes. */
  watched?: boolean;
}

/** What is noted of the files that a step writes. */
interface Note {
  /** How often they were found edited, and were written again. */
  repairs: number;
  /** The hash of each by its path in the sandbox. */
  files: Record<string, string>;
}

/** A file that is not as it was written. */
export interface Drift {
  step: StepName;
  /** Its path on the host. */
  file: string;
  what: "edited" | "removed";
}

const hash = (content: string | Uint8Array) => createHash("sha256").update(content).digest("hex");

const folderOf = ({ name, home }: SandboxRef) => join(sandboxPaths(name, home).state, "written");

/** Writes the files of a step, and notes them. */
export async function writeOwnFiles(ref: SandboxRef, step: StepName, files: readonly OwnFile[]): Promise<void> {
  for (const { path, content, mode, watched } of files) {
    if (watched) {
      await initIn(ref, ["write", path, mode.toString(8)], { input: content });
      continue;
    }
    const file = hostPath(ref, path);
    await mkdir(dirname(file), { recursive: true, mode: 0o755 });
    await writeFile(file, content, { mode });
  }
  const note: Note = {
    repairs: repairsNow(),
    files: Object.fromEntries(files.map(({ path, content }) => [path, hash(content)])),
  };
  await mkdir(folderOf(ref), { recursive: true, mode: 0o700 });
  await writeFile(join(folderOf(ref), `${step}.json`), JSON.stringify(note), { mode: 0o600 });
}

/** Every file that is not as it was written. */
export function driftOf(ref: SandboxRef): Drift[] {
  return notedSteps(ref).flatMap((step) => driftOfStep(ref, step));
}

/**
 * How often the files of each step are found edited, this time included: an input of the step, which then writes them
 * again.
 */
export function repairsOf(ref: SandboxRef): Partial<Record<StepName, number>> {
  const drifted = new Set(driftOf(ref).map(({ step }) => step));
  return Object.fromEntries(
    notedSteps(ref).map((step) => [step, (readNote(ref, step)?.repairs ?? 0) + (drifted.has(step) ? 1 : 0)]),
  );
}

/** The same as the step that runs is told it: what reads the files at its start is started again when it changes. */
export function repairsNow(): number {
  return Number(process.env.STEP_REPAIRS ?? 0);
}

function notedSteps(ref: SandboxRef): StepName[] {
  const folder = folderOf(ref);
  return (existsSync(folder) ? readdirSync(folder) : []).map((entry) => entry.replace(/\.json$/, "") as StepName);
}

function driftOfStep(ref: SandboxRef, step: StepName): Drift[] {
  return Object.entries(readNote(ref, step)?.files ?? {}).flatMap(([path, written]): Drift[] => {
    const file = hostPath(ref, path);
    if (!existsSync(file)) return [{ step, file, what: "removed" }];
    return hash(readFileSync(file)) === written ? [] : [{ step, file, what: "edited" }];
  });
}

function readNote(ref: SandboxRef, step: StepName): Note | undefined {
  const file = join(folderOf(ref), `${step}.json`);
  return existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as Note) : undefined;
}
