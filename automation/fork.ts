/**
 * Clusters that begin with what another one has.
 * @module
 */
import { nodesOf } from "../config/nodes.ts";
import { refuse } from "../config/problems.ts";
import { openMachine, refOf, whileLocked } from "../machines/index.ts";
import { readRecord } from "../machines/record.ts";
import { isPlanted, partOf, seedProblems } from "../machines/seed.ts";
import { runStep } from "../steps/steps.ts";
import { VERSION } from "../steps/versions.ts";
import { homeFolder } from "../system/folders.ts";
import { isAlive, processStart } from "../system/processes.ts";
import { type Cluster, up } from "./cluster.ts";
import { commandName, type NamedConfig } from "./options.ts";
import type { Progress } from "./progress.ts";
import { deleteSnapshot, listSnapshots, saveSnapshot } from "./snapshots.ts";
import { checkStackConfig, copyOptions, readConfig } from "./workspace.ts";

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
  const { progress, signal } = options;
  const say = (line: string) => progress.say(line);
  checkName(fresh);
  const source = await readConfig(name);
  const putBack = await copyOptions(name, fresh, say);
  try {
    const config = await readConfig(fresh);
    needNew(config);
    if (config.distribution !== "embedded" || openMachine(refOf(config)).keeper === undefined) {
      const message = "only a cluster with target: managed and distribution: embedded begins with what another one has";
      refuse([{ option: "NEW", value: fresh, message }]);
    }
    await checkStackConfig(fresh);
    const kept = options.from ?? `fork-${process.pid}`;
    if (options.from === undefined) {
      for (const { name: left, madeBy } of listSnapshots(source)) {
        if (madeBy !== undefined && !isAlive(madeBy)) await deleteSnapshot(source, left, say);
      }
      signal?.throwIfAborted();
      await saveSnapshot(source, kept, say, { pid: process.pid, startTime: processStart(process.pid)! });
    }
    try {
      signal?.throwIfAborted();
      await plant(config, `${source.name}/${kept}`, say);
    } finally {
      // What went wrong before is what is to be told.
      if (options.from === undefined)
        await deleteSnapshot(source, kept, say).catch((error: Error) => say(error.message));
    }
  } catch (error) {
    await putBack();
    throw error;
  }
  signal?.throwIfAborted();
  return await up(fresh, options);
}

/** What a stack may be called that has a file of options. */
function checkName(fresh: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9_.-]*$/.test(fresh)) return;
  const message = "letters, digits, dots, dashes and underscores are allowed, a letter or a digit first";
  refuse([{ option: "NEW", value: fresh, message }]);
}

function needNew(config: NamedConfig): void {
  const there = nodesOf(config)
    .map(refOf)
    .some((ref) => readRecord(ref.name, ref.home) !== undefined);
  if (!there) return;
  const name = commandName(config);
  const message = `it is there already; choose another name, or remove it first (\`gvisor-k3s destroy ${name}\`)`;
  refuse([{ option: "NEW", value: name, message }]);
}

/** Puts a snapshot where the new cluster's sandboxes begin with it, the server's last. */
async function plant(config: NamedConfig, from: string, say: (line: string) => void): Promise<void> {
  refuse(seedProblems(config, from, homeFolder()));
  // At once with what was looked at: a snapshot that is deleted now is an error of what reads it.
  const parts = nodesOf(config)
    .reverse()
    .map((node) => ({ machine: openMachine(refOf(node)), part: partOf(from, refOf(node)) }));
  try {
    for (const { machine, part } of parts) {
      if (part === undefined) continue; // a node that is new
      await whileLocked(machine, { what: "fork", alone: true, say }, async () => {
        needNew(config); // another one may have come first
        await machine.keeper!.plant(part.folder, part.snapshot, from);
      });
    }
  } catch (error) {
    for (const { machine } of parts.filter(({ machine }) => isPlanted(machine.ref))) {
      await runStep("sandbox-remove", { version: VERSION, machine: machine.ref }, "");
    }
    throw error;
  }
}
