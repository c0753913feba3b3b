import { readFileSync } from "node:fs";
import { rename, writeFile } from "node:fs/promises";

/** What is written down of a sandbox, or of its egress, that was started. */
export interface SandboxRecord {
  /**
   * Counts the starts of the sandbox: 1 is the first. Everything that lives in the sandbox's memory is done anew when
   * it changes.
   */
  incarnation: number;
  pid: number;
  /** The process's start, in clock ticks since the host's boot; with the pid it tells this process from any other. */
  startTime: string;
  /** What the sandbox was started with; another value means a restart. */
  revision: string;
}

/** A record by its file; undefined if there is none. */
export function readRecord({ record }: { record: string }): SandboxRecord | undefined {
  try {
    return JSON.parse(readFileSync(record, "utf8")) as SandboxRecord;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

/** Writes a record in one step: half of one would be in the way of every later command. */
export async function writeRecord(file: string, record: SandboxRecord): Promise<void> {
  await writeFile(`${file}.tmp`, JSON.stringify(record), { mode: 0o600 });
  await rename(`${file}.tmp`, file);
}

export function isAlive(record: SandboxRecord | undefined): boolean {
  return record !== undefined && processStart(record.pid) === record.startTime;
}

/**
 * The incarnation that the next `up` is for: the one that runs, or the one that it will start. It is an input of
 * everything that lives in the sandbox's memory, so a preview shows what a sandbox that is dead, or described
 * otherwise, will have done again.
 * @param revision what the sandbox is to be started with
 */
export function nextIncarnation(paths: { record: string }, revision: string): number {
  const record = readRecord(paths);
  return incarnationAfter(record, isAlive(record), revision);
}

/** The same, of a record that is at hand. */
export function incarnationAfter(record: SandboxRecord | undefined, alive: boolean, revision: string): number {
  if (record === undefined) return 1;
  return alive && record.revision === revision ? record.incarnation : record.incarnation + 1;
}

/** When a process started, in clock ticks since boot; undefined if there is none, or only a zombie. */
export function processStart(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" "); // from field 3 on; see proc_pid_stat(5)
    return fields[0] === "Z" ? undefined : fields[19];
  } catch {
    return undefined;
  }
}
