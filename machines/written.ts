/**
 * A note of what each step has left on the machine: what was written into the node's configuration files, and which
 * service was started. So a file that was edited or removed by hand, and a service that is gone, are noticed by a preview,
 * told by `status`, and made again by the next `up`.
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { readJson, writeWhole } from "../system/files.ts";
import { hostPaths } from "./paths.ts";
import type { MachineFile, MachineRef } from "./ref.ts";

/** What is noted of a step. */
interface Note {
  /** How often something was found not as it was left, and was made again. */
  repairs: number;
  /** The services that it keeps running; one, as releases before wrote it. */
  service?: string | string[];
  /** The hash of each by its path on the machine. */
  files: Record<string, string>;
}

/** A file that is not as it was written. */
export interface Drift {
  /** The step that writes it. */
  step: string;
  /** Its path on the machine. */
  file: string;
  what: "edited" | "removed";
}

/** What sandbox-init tells of a file; see `files hash` in node/init. */
export type Hashes = Record<string, { sha256?: string; absent?: boolean; problem?: string }>;

/** Notes what a step has written, and the service that it starts. */
export async function noteWritten(
  { name, home }: MachineRef,
  step: string,
  files: readonly MachineFile[],
  repairs: number,
  service?: string | string[],
): Promise<void> {
  const hash = (content: string) => createHash("sha256").update(content).digest("hex");
  const hashes = Object.fromEntries(files.map(({ path, content }) => [path, hash(content)]));
  const note: Note = { repairs, files: hashes, ...(service === undefined ? {} : { service }) };
  await writeWhole(join(hostPaths(name, home).written, `${step}.json`), JSON.stringify(note));
}

/** The files that something is noted of. */
export function writtenFiles(ref: MachineRef): string[] {
  return Object.values(notesOf(ref)).flatMap(({ files }) => Object.keys(files));
}

/** The files that a step has written last. */
export function writtenBy(ref: MachineRef, step: string): string[] {
  return Object.keys(notesOf(ref)[step]?.files ?? {});
}

/** Every file that is not as it was written, by what the machine tells of them. */
export function driftIn(ref: MachineRef, hashes: Hashes): Drift[] {
  return Object.entries(notesOf(ref)).flatMap(([step, { files }]) =>
    Object.entries(files).flatMap(([file, written]): Drift[] => {
      const found = hashes[file];
      if (found === undefined || found.sha256 === written) return [];
      return [{ step, file, what: found.absent ? "removed" : "edited" }];
    }),
  );
}

/**
 * How often what each step has left is found changed or gone, this time included: an input of the step, which then makes
 * it again.
 * @param services those that are there, running or about to be started again; undefined if that is not known
 */
export function repairsOf(
  ref: MachineRef,
  drift: readonly Drift[],
  services: Record<string, unknown> | undefined,
): Record<string, number> {
  const drifted = new Set(drift.map(({ step }) => step));
  const isGone = (service: Note["service"] = []) => services && [service].flat().some((name) => !(name in services));
  const due = (step: string, { service }: Note) => drifted.has(step) || isGone(service);
  const steps = Object.entries(notesOf(ref));
  return Object.fromEntries(steps.map(([step, note]) => [step, note.repairs + (due(step, note) ? 1 : 0)]));
}

function notesOf({ name, home }: MachineRef): Record<string, Note> {
  const { written } = hostPaths(name, home);
  const files = existsSync(written) ? readdirSync(written).filter((file) => file.endsWith(".json")) : [];
  const read = (file: string) => readJson<Note>(join(written, file), "delete it; the next `up` writes the files anew");
  return Object.fromEntries(files.map((file) => [file.replace(/\.json$/, ""), read(file)!]));
}
