import { join } from "node:path";
import { provide, wanted } from "../artifacts/artifacts.ts";
import type { StackConfig } from "../config/schema.ts";
import { homeFolder } from "../system/folders.ts";
import { isAlive } from "../system/processes.ts";
import { inside } from "./inside.ts";
import type { Driver, LockOptions, Machine } from "./machine.ts";
import { isRunningHere, managed } from "./managed.ts";
import { readRecord } from "./record.ts";
import type { Kind, MachineRef } from "./ref.ts";
import { pausedWith } from "./snapshots.ts";
import { ssh } from "./ssh.ts";

/** Every kind of machine, by the values of the option `target`. */
const drivers: Record<Kind, Driver> = { managed, inside, ssh } as Record<Kind, Driver<never>> as Record<Kind, Driver>;

/** The kind of machine that the options describe. */
export const driverOf = ({ target }: Pick<StackConfig, "target">): Driver => drivers[target];

/** What finds the machine that the options describe. */
export const refOf = (config: StackConfig): MachineRef => driverOf(config).refOf(config, homeFolder());

/** The kind of a machine. */
export const driverFor = ({ kind }: MachineRef): Driver => drivers[kind];

/** The machine that is found by this. */
export const openMachine = (ref: MachineRef): Machine => drivers[ref.kind].open(ref);

/** Works on a machine that is locked meanwhile; see {@link Machine.lock}. */
export async function whileLocked<T>(
  machine: Machine,
  options: Omit<LockOptions, "init">,
  work: () => Promise<T>,
): Promise<T> {
  const init = join(await provide(wanted({ name: "init" }), options.say), "sandbox-init");
  const lock = await machine.lock({ ...options, init });
  try {
    return await work();
  } finally {
    await lock.release(options.last);
  }
}

/** Whether a machine runs, as far as is told at once; one that is elsewhere would have to be asked. */
export function stateHere(ref: MachineRef): "running" | "stopped" | "paused" | "remote" {
  if (ref.kind === "ssh") return "remote";
  const runs = ref.kind === "managed" ? isRunningHere(ref) : isAlive(readRecord(ref.name, ref.home));
  if (runs) return "running";
  return pausedWith(ref) ? "paused" : "stopped";
}
