/**
 * A lock of the kernel's (flock(2)), which ends with the last of the processes that hold it, whatever ends them.
 * @module
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { provide, wanted } from "../artifacts/artifacts.ts";
import { inherited, printable } from "../system/run.ts";
import type { Lock, LockOptions } from "./machine.ts";

/**
 * Locks what a folder stands for: one file for whether somebody is alone with it, and one for each thing that is done.
 * @param folder is made, and removed with the last of its locks
 */
export async function lockIn(folder: string, { what, alone, init, say }: LockOptions): Promise<Lock> {
  const all = await lockFile(join(folder, "lock"), { init, shared: !alone, who: what, say });
  const own = await lockFile(join(folder, `${what}.lock`), { init, shared: false, who: what, say });
  return {
    release(gone = false) {
      own.release();
      // Nobody else has any of them then.
      if (gone) for (const entry of readdirSync(folder)) rmSync(join(folder, entry), { force: true });
      all.release(gone);
    },
  };
}

/** How a file is locked. */
interface FileLockOptions extends Pick<LockOptions, "init" | "say"> {
  /** Several may share it. */
  shared: boolean;
  /** Who locks it, for who comes second. */
  who: string;
}

/**
 * Locks a file, waiting for whoever has it. Programs that are run by `run` meanwhile hold it too, so it outlives a
 * process that is killed for as long as what it started goes on.
 */
export async function lockFile(file: string, { init, shared, who, say }: FileLockOptions): Promise<Lock> {
  for (;;) {
    mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
    const fd = openSync(file, constants.O_RDWR | constants.O_CREAT, 0o600);
    if (!(await flock(init, fd, shared, true))) {
      say(`waiting for ${holder(file)}`);
      await flock(init, fd, shared, false);
    }
    // Whoever had it may have removed the file: then the lock is on nothing.
    const [own, there] = [fstatSync(fd), statSync(file, { throwIfNoEntry: false })];
    if (there?.ino === own.ino && there.dev === own.dev) return held(fd, file, who);
    closeSync(fd);
  }
}

/**
 * Has two commands take turns that would be in each other's way: of two processes that they start, one would be known to
 * nobody.
 * @param say takes a line when somebody else is waited for
 */
export async function inTurn<T>(
  folder: string,
  who: string,
  work: () => Promise<T>,
  say: (line: string) => void = () => {},
): Promise<T> {
  const init = join(await provide(wanted({ name: "init" }), () => {}), "sandbox-init");
  const lock = await lockFile(join(folder, `${who}.lock`), { init, shared: false, who, say });
  try {
    return await work();
  } finally {
    lock.release();
  }
}

function held(fd: number, file: string, who: string): Lock {
  ftruncateSync(fd);
  writeSync(fd, `${who} (process ${process.pid}, since ${new Date().toISOString()})\n`, 0);
  inherited.add(fd);
  return {
    release(gone = false) {
      if (gone) rmSync(file, { force: true });
      if (inherited.delete(fd)) closeSync(fd);
      if (gone) for (const folder of [dirname(file), dirname(dirname(file))]) removeFolder(folder);
    },
  };
}

/** Removes a folder unless something is in it. */
function removeFolder(folder: string): void {
  try {
    rmdirSync(folder);
  } catch {} // others' locks are in it
}

/** Who has a file locked, as they wrote it. */
function holder(file: string): string {
  return printable(readFileSync(file, "utf8").slice(0, 200)).trim() || "another process";
}

/** The lock is that of the open file, which the program only inherits. */
async function flock(init: string, fd: number, shared: boolean, atOnce: boolean): Promise<boolean> {
  const args = ["flock", ...(shared ? ["--shared"] : []), ...(atOnce ? ["--nonblock"] : [])];
  const child = spawn(init, args, { stdio: ["ignore", "ignore", "pipe", fd] });
  let said = "";
  child.stderr!.on("data", (data: Buffer) => {
    said += data.toString("utf8");
  });
  const [code] = (await once(child, "close")) as [number | null];
  if (code === 0) return true;
  if (code === TAKEN && atOnce) return false;
  throw new Error(`${init} ${args.join(" ")} ended with ${code}: ${said.trim()}`);
}

/** sandbox-init's exit code where somebody else has the lock. */
const TAKEN = 4;
