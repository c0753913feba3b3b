/**
 * The link of a node on another machine to its cluster's other nodes: a process here that carries frames between a port of
 * the bridge on which those meet, in its network namespace, and a device there, over an SSH connection. So it is encrypted,
 * by the keys that the machine is reached with, and needs no port that is open to others.
 * @module
 */
import { rmSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { MESH_MTU } from "../config/mesh.ts";
import { readFile, readJson, writeWhole } from "../system/files.ts";
import { endProcess, isAlive, killProcesses } from "../system/processes.ts";
import { lastLines, run } from "../system/run.ts";
import { waitFor } from "../system/wait.ts";
import { hostToday } from "./base.ts";
import { inTurn } from "./lock.ts";
import { type Outliving, revisionOf, startOutliving } from "./outliving.ts";
import { hostPaths, meshNamespace } from "./paths.ts";
import type { MachineRef } from "./ref.ts";
import { sshCommand } from "./sshConnection.ts";

/** Seconds for the other end to answer. */
const PATIENCE = 30;

/** What the log says then; see host/nodewire. */
const ATTACHED = /^\S+ \S+ attached$/m;

const readWire = ({ name, home }: MachineRef) =>
  readJson<Outliving>(hostPaths(name, home).wireProcess, "delete it; the next `up` links the node again");

/** The node's end of a link, as it is on its machine. */
export interface FarEnd {
  /** The node's address. */
  address: string;
  /** What carries the frames there, by its standard input and output. */
  command: readonly string[];
}

/**
 * Has the link be there.
 * @throws Error with the words of what carries it if it is not
 */
export async function openWire(ref: MachineRef, end: FarEnd): Promise<void> {
  await inTurn(hostPaths(ref.name, ref.home).state, "wire", () => startWire(ref, end));
}

async function startWire(ref: MachineRef, { address, command }: FarEnd): Promise<void> {
  const { wire, wireProcess, logs, link } = hostPaths(ref.name, ref.home);
  const program = await hostToday(() => {});
  const log = join(logs, "wire.log");
  const spec = {
    namespace: meshNamespace(ref.joins!),
    link,
    node: address,
    mtu: MESH_MTU,
    command: sshCommand(ref.ssh!, undefined, command),
    log,
  };
  const revision = revisionOf([program, spec]);
  const previous = readWire(ref);
  if (previous && isAlive(previous) && previous.revision === revision) return;
  await endWire(ref);
  await mkdir(logs, { recursive: true, mode: 0o700 });
  for (const file of [log, startLog(logs)]) rmSync(file, { force: true });
  await writeWhole(wire, JSON.stringify(spec));
  const record = await startOutliving([program, "wire", wire], { revision }, startLog(logs), wireProcess);
  const said = () => lastLines([readFile(startLog(logs)), readFile(log)].join(""));
  await waitFor(
    "the node's link to the others is there",
    PATIENCE,
    () => {
      if (!isAlive(record)) throw new Error(`what carries it ended\n${said()}`);
      return ATTACHED.test(readFile(log) ?? "") || undefined;
    },
    () => said() || "ssh says nothing",
  ).catch(async (error: unknown) => {
    await endWire(ref);
    throw error;
  });
}

/** What it says before it has its own log, and when it ends. */
const startLog = (logs: string) => join(logs, "wire.start.log");

/** Ends the link, and removes what the host has of it. */
export async function endWire(ref: MachineRef): Promise<void> {
  const { wire, wireProcess, link } = hostPaths(ref.name, ref.home);
  await endProcess(readWire(ref), 15);
  await killProcesses("wire", wire); // one that nobody has noted
  await run(await hostToday(() => {}), ["network", "down", link, meshNamespace(ref.joins!)]);
  for (const file of [wire, wireProcess]) await rm(file, { force: true });
}

/** Whether what carries the link is there. */
export const hasWire = (ref: MachineRef): boolean => isAlive(readWire(ref));
