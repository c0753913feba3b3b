/**
 * Processes of this machine, each told from any other that had its id before.
 * @module
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { dirname } from "node:path";
import { waitFor } from "./wait.ts";

/** A process: its id, and its start in clock ticks since the machine's boot. */
export interface ProcessId {
  pid: number;
  startTime: string;
}

/**
 * When a process started, in clock ticks since boot; undefined if there is none, or only a zombie. Others of a zombie's
 * threads may run: until the last one has ended its files are open, and what it has locked is.
 */
export function processStart(pid: number): string | undefined {
  const fields = statOf(pid);
  return fields?.[0] === "Z" && Number(fields[17]) <= 1 ? undefined : fields?.[19];
}

/** What the kernel tells of a process, from field 3 on (see proc_pid_stat(5)); undefined if there is none. */
export function statOf(pid: number): string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
}

/** Whether a process runs, and is the one that is meant. */
export function isAlive(process: ProcessId | undefined | null): boolean {
  return process != null && processStart(process.pid) === process.startTime;
}

/**
 * Asks a process to end, and waits until it has.
 * @param seconds how long it may take; it is killed then
 */
export async function endProcess(ended: ProcessId | undefined | null, seconds: number): Promise<void> {
  const gone = () => (isAlive(ended) ? undefined : true);
  for (const [signal, patience] of [
    ["SIGTERM", seconds],
    ["SIGKILL", 20],
  ] as const) {
    if (!ended || !isAlive(ended)) return;
    signalTo(ended.pid, signal);
    await waitFor(`process ${ended.pid} ends`, patience, gone).catch((error: unknown) => {
      if (signal === "SIGKILL") throw error;
    });
  }
}

/** Kills every process that was started with these very arguments among others, and waits until they are gone. */
export async function killProcesses(...all: string[]): Promise<void> {
  const matching = () =>
    readdirSync("/proc")
      .filter((entry) => /^\d+$/.test(entry))
      .map(Number)
      .filter((pid) => pid !== process.pid && processStart(pid) !== undefined)
      .filter((pid) => {
        const given = argumentsOf(pid);
        return all.every((argument) => given.includes(argument));
      });
  await waitFor(`processes with ${all.join(" ")} end`, 20, () => {
    const pids = matching();
    for (const pid of pids) signalTo(pid, "SIGKILL");
    return pids.length === 0 || undefined;
  });
}

/** The parent of a process; 0 if it has ended. */
export const parentOf = (pid: number): number => Number(statOf(pid)?.[1] ?? 0);

/** The processes that have files of a folder open. */
export function holdersOf(folder: string): Set<number> {
  const pids = readdirSync("/proc").filter((entry) => /^\d+$/.test(entry));
  return new Set(pids.filter((pid) => openFiles(pid).some((file) => dirname(file) === folder)).map(Number));
}

function openFiles(pid: string): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).map((fd) => readlink(`/proc/${pid}/fd/${fd}`));
  } catch {
    return []; // it has ended
  }
}

function readlink(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return ""; // it was closed meanwhile
  }
}

/** Sends a signal to a process, which may have ended just before. */
export function signalTo(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

/** What a process was started with; nothing if it has ended. */
export function argumentsOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  } catch {
    return [];
  }
}
