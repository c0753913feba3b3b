import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { provide, wanted } from "../artifacts/artifacts.ts";
import { printable } from "../system/run.ts";
import type { Lock, LockOptions, Machine } from "./machine.ts";
import { remotePaths } from "./sshConnection.ts";
import { uploadTo } from "./upload.ts";

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
  let problem = "";
  child.stderr.on("data", (data: Buffer) => {
    problem += data.toString("utf8");
  });
  const ended = new Promise<never>((_, reject) => {
    child.once("error", reject);
    child.once("close", (code) => reject(new Error(`${file} cannot be locked there (${code}): ${printable(problem)}`)));
  });
  ended.catch(() => undefined); // it ends at last, when nobody waits for it
  const held = (async () => {
    for await (const line of createInterface({ input: child.stdout })) {
      if (line === "held") return;
      say(printable(line));
    }
  })();
  await Promise.race([held, ended]);
  child.unref();
  return {
    release(gone = false) {
      child.stdin.end(gone ? "remove\n" : "");
    },
  };
}
