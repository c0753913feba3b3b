/**
 * Processes of this host that outlive the one that starts them, each noted in a file.
 * @module
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, openSync } from "node:fs";
import { writeWhole } from "../system/files.ts";
import { type ProcessId, processStart } from "../system/processes.ts";

/** What is noted of such a process. */
export interface Outliving extends ProcessId {
  /** A hash of what it was started with. */
  revision: string;
}

/** A hash of what a process is started with. */
export const revisionOf = (what: unknown): string => createHash("sha256").update(JSON.stringify(what)).digest("hex");

/**
 * Starts one, and notes it at once: whatever happens to this process, it is known to the next one.
 * @param note what is noted, beside which process it is
 * @param log takes what it says
 * @param file where it is noted
 */
export async function startOutliving<Note extends { revision: string }>(
  [program, ...args]: readonly [string, ...string[]],
  note: Note,
  log: string,
  file: string,
): Promise<Note & Outliving> {
  const output = openSync(log, "a", 0o600);
  const child = spawn(program, args, { detached: true, stdio: ["ignore", output, output] });
  closeSync(output);
  child.on("error", () => {}); // told below
  child.unref();
  const { pid } = child;
  if (pid === undefined) throw new Error(`${program} cannot be started`);
  const noted = { ...note, pid, startTime: processStart(pid) ?? "" };
  await writeWhole(file, JSON.stringify(noted));
  return noted;
}
