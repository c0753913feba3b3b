/**
 * Clusters that begin with what another one has.
 * @module
 */

import { join } from "node:path";
import { provide, wanted } from "../artifacts/artifacts.ts";
import { refuse } from "../config/problems.ts";
import { driverOf, openMachine } from "../machines/index.ts";
import { readRecord } from "../machines/record.ts";
import { seedProblems, snapshotNamed } from "../machines/seed.ts";
import { homeFolder } from "../system/folders.ts";
import { type Cluster, up } from "./cluster.ts";
import { commandName, type NamedConfig } from "./options.ts";
import type { Progress } from "./progress.ts";
import { deleteSnapshot, saveSnapshot } from "./snapshots.ts";
import { copyOptions, readConfig } from "./workspace.ts";

/** What {@link fork} takes. */
export interface ForkOptions {
  /** One of the cluster's snapshots. Default: one that is made now, and removed again. */
  from?: string;
  progress: Progress;
  /** Ends the command in good order: what runs is ended first. */
  signal?: AbortSignal;
}

/**
 * Makes another cluster that has what a cluster has now, or had in a snapshot: objects, images, volumes. Its identity is
 * its own: names, addresses, certificates, keys, tokens. Its options are those of the cluster, but for `name`, `ports`
 * and `sandbox.subnet`, unless there is a `Pulumi.NAME.yaml` for it.
 * @param name the cluster
 * @param fresh what the other one is called, which must not be there yet
 * @throws InputError that lists everything that is wrong, before anything is made; else as `up`
 */
export async function fork(name: string, fresh: string, options: ForkOptions): Promise<Cluster> {
  const { progress } = options;
  const say = (line: string) => progress.say(line);
  const source = await readConfig(name);
  const putBack = await copyOptions(name, fresh, say);
  try {
    const config = await readConfig(fresh);
    needNew(config);
    const kept = options.from ?? (await saveSnapshot(source, temporary(fresh), say)).name;
    try {
      await plant(config, `${source.name}/${kept}`, say);
    } finally {
      if (options.from === undefined) await deleteSnapshot(source, kept, say);
    }
  } catch (error) {
    await putBack();
    throw error;
  }
  return await up(fresh, options);
}

/** The name of a snapshot that is removed again. */
const temporary = (fresh: string) => `for-${fresh}-${process.pid}`;

function needNew(config: NamedConfig): void {
  const ref = driverOf(config).refOf(config, homeFolder());
  if (readRecord(ref.name, ref.home) === undefined) return;
  const name = commandName(config);
  const message = `it is there already; choose another name, or remove it first (\`gvisor-k3s destroy ${name}\`)`;
  refuse([{ option: "NEW", value: name, message }]);
}

/** Puts a snapshot where the new cluster's sandbox begins with it. */
async function plant(config: NamedConfig, from: string, say: (line: string) => void): Promise<void> {
  const home = homeFolder();
  const machine = openMachine(driverOf(config).refOf(config, home));
  const { keeper } = machine;
  if (keeper === undefined || config.distribution !== "embedded") {
    const message = "only a cluster with target: managed and distribution: embedded begins with what another one has";
    refuse([{ option: "NEW", value: commandName(config), message }]);
  }
  refuse(seedProblems(config, from, home));
  const { folder, snapshot } = snapshotNamed(from, home)!;
  const init = join(await provide(wanted({ name: "init" }), say), "sandbox-init");
  const lock = await machine.lock({ what: "fork", alone: true, init, say });
  try {
    await keeper!.plant(folder, snapshot, from);
  } finally {
    lock.release();
  }
}
