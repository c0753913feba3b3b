/**
 * A machine that is there only to be asked what it can do.
 * @module
 */
import { existsSync } from "node:fs";
import { mkdir, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { artifactFolder } from "../artifacts/artifacts.ts";
import { processStart } from "../system/processes.ts";
import { driverFor, openMachine } from "./index.ts";
import type { Machine } from "./machine.ts";
import { machinesIn } from "./paths.ts";
import { readRecord } from "./record.ts";
import type { MachineRef } from "./ref.ts";

/** Begins the name of a trial machine; no stack can have such a name. */
const TRIAL = "try_";

/** Who a trial machine is made for. */
const OWNER = "a trial";

/**
 * Starts a machine that is like another one and there only for `use`; nothing of it stays. Of a kind that is not made
 * here, it is the machine itself, on which nothing is started.
 * @param spec what the other one is started with
 */
export async function inTrial<T>(like: MachineRef, spec: unknown, use: (trial: Machine) => Promise<T>): Promise<T> {
  const { home, kind } = like;
  const trialSpec = driverFor(like).trialOf?.(spec);
  if (trialSpec === undefined) return await whereItIs(like, use);
  await removeDeadTrials(home);
  const isNew = !existsSync(home);
  const trial = openMachine({ kind, name: `${TRIAL}${process.pid}`, home });
  await mkdir(home, { recursive: true, mode: 0o700 });
  try {
    await trial.start({ spec: trialSpec, owner: OWNER, incarnation: 1, repairs: 0 });
    return await use(trial);
  } finally {
    await trial.stop();
    if (isNew) await rmdir(home).catch(() => undefined); // somebody else has put something there meanwhile
  }
}

/** Asks the machine itself. What is brought there for that goes again, unless a node is there. */
async function whereItIs<T>(ref: MachineRef, use: (machine: Machine) => Promise<T>): Promise<T> {
  const machine = openMachine(ref);
  const isBare = () => readRecord(ref.name, ref.home) === undefined;
  if (!isBare()) return await use(machine);
  const folder = artifactFolder({ name: "init" });
  if (!existsSync(folder)) throw new Error("it is not built yet");
  const say = (line: string) => console.error(line);
  const lock = await machine.lock({ what: "trial", alone: true, init: join(folder, "sandbox-init"), say });
  try {
    return await use(machine);
  } finally {
    const gone = isBare();
    if (gone) await machine.stop();
    lock.release(gone);
  }
}

/** Removes trial machines whose process was killed. */
export async function removeDeadTrials(home: string): Promise<void> {
  for (const name of machinesIn(home)) {
    const owner = name.startsWith(TRIAL) ? Number(name.slice(TRIAL.length)) : Number.NaN;
    if (Number.isNaN(owner) || processStart(owner) !== undefined) continue;
    await openMachine({ kind: "managed", name, home }).stop();
  }
}
