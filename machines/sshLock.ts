import { spawn } from "node:child_process";
import { provide, wanted } from "../artifacts/artifacts.ts";
import { lastLines, oneLine } from "../system/run.ts";
import type { Lock, LockOptions, Machine } from "./machine.ts";
import { remotePaths } from "./sshConnection.ts";
import { uploadTo } from "./upload.ts";

/** Characters that the machine may say about its lock. */
const MOST = 64 * 2 ** 10;

/** Milliseconds for its first word. */
const PATIENCE = 60_000;

/** Milliseconds that what holds the lock may take to end. */
const END = 5000;

/**
 * Locks another machine for as long as this process lives and the connection holds: sandbox-init holds the lock there
 * until its standard input ends.
 */
export async function holdThere(machine: Machine, { what, alone, say }: LockOptions): Promise<Lock> {
  const init = wanted({ name: "init" });
  await uploadTo(machine, [await provide(init, say)], say);
  const program = `${remotePaths.artifacts}/${init.id}/sandbox-init`;
  const file = `/run/lock/gvisor-k3s/${machine.ref.name}/lock`;
  const [ssh, ...args] = machine.command([program, "hold", file, ...(alone ? [] : ["--shared"])]);
  const child = spawn(ssh!, args, { stdio: ["pipe", "pipe", "pipe"] });
  child.stdin.write(`${what} (process ${process.pid} of another machine)\n`);
  child.stdin.on("error", () => {}); // it has ended, which is told below
  let problem = "";
  child.stderr.on("data", (data: Buffer) => {
    problem = (problem + data.toString("utf8")).slice(-MOST);
  });
  const ended = new Promise<never>((_, reject) => {
    child.once("error", reject);
    child.once("close", (code) => reject(new Error(`${file} cannot be locked there (${code}): ${lastLines(problem)}`)));
  });
  ended.catch(() => undefined); // it ends at last, when nobody waits for it
  let silent: NodeJS.Timeout | undefined;
  const held = new Promise<void>((resolve, reject) => {
    silent = setTimeout(() => reject(new Error(`${file} cannot be locked there: nothing is said`)), PATIENCE);
    let said = 0;
    let rest = "";
    child.stdout.on("data", (data: Buffer) => {
      clearTimeout(silent);
      said += data.length;
      if (said > MOST) return reject(new Error(`${file} cannot be locked there: too much is said of it`));
      const lines = (rest + data.toString("utf8")).slice(-MOST).split("\n");
      rest = lines.pop()!;
      for (const line of lines) {
        if (line === "held") resolve();
        else say(oneLine(line));
      }
    });
  });
  try {
    await Promise.race([held, ended]);
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  } finally {
    clearTimeout(silent);
  }
  child.unref();
  return {
    // The machine could have it stay: it is told the end of its input, and killed if it does not follow.
    async release(gone = false) {
      child.stdin.end(gone ? "remove\n" : "");
      const timer = setTimeout(() => child.kill("SIGKILL"), END);
      await ended.catch(() => undefined);
      clearTimeout(timer);
    },
  };
}
