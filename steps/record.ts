import { readFileSync } from "node:fs";
import type { sandboxPaths } from "../config/paths.ts";

/** What is written down of a sandbox that was started. */
export interface SandboxRecord {
  /** Counts the starts of the sandbox: 1 is the first. Everything that lives in the sandbox's memory is done anew when it changes. */
  incarnation: number;
  pid: number;
  /** The process's start, in clock ticks since the host's boot; with the pid it tells this process from any other. */
  startTime: string;
  /** What the sandbox was started with; another value means a restart. */
  revision: string;
}

/** The record of a sandbox; undefined if none was started under this name. */
export function readRecord(paths: ReturnType<typeof sandboxPaths>): SandboxRecord | undefined {
  try {
    return JSON.parse(readFileSync(paths.record, "utf8")) as SandboxRecord;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

export function isAlive(record: SandboxRecord | undefined): boolean {
  return record !== undefined && processStart(record.pid) === record.startTime;
}

/**
 * The incarnation that the next `up` is for: the one that runs, or the one that it will start. It is an input of everything that lives in
 * the sandbox's memory, so a preview shows what a sandbox that is dead, or described otherwise, will have done again.
 * @param revision what the sandbox is to be started with
 */
export function nextIncarnation(paths: ReturnType<typeof sandboxPaths>, revision: string): number {
  const record = readRecord(paths);
  if (record === undefined) return 1;
  return isAlive(record) && record.revision === revision ? record.incarnation : record.incarnation + 1;
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
