/**
 * What is written down of a machine on which a node was started.
 * @module
 */
import { existsSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { readJson, writeWhole } from "../system/files.ts";
import { isAlive } from "../system/processes.ts";
import { hostPaths } from "./paths.ts";
import type { Kind, MachineRef } from "./ref.ts";
import type { SshTarget } from "./sshConnection.ts";

/** What is written down of a machine, by the release that started it. */
export interface MachineRecord {
  /** Of the record's form; 1 is that of releases up to 0.2, which know less. */
  version: 1 | 2;
  kind: Kind;
  /** Whose cluster it is: "PROJECT/STACK". Records of version 1 name nobody. */
  owner?: string;
  /** The cluster that it joins, of a node that does. */
  joins?: string;
  /**
   * Counts the starts by `up`: 1 is the first. Everything that lives in the machine's memory is done anew when it
   * changes. A sandbox that its supervisor started again has had that done already.
   */
  incarnation: number;
  /** What it was started with; another value means a restart. */
  revision: string;
  /** The process that it lives and dies with. */
  pid: number;
  /** The process's start, in clock ticks since boot; with the pid it tells this process from any other. */
  startTime: string;
  /** How the machine is reached, if it is elsewhere. */
  ssh?: SshTarget;
  /** The node's address and the pods' bridge, of a machine that is not made here. */
  address?: string;
  bridge?: string;
  /** What tells the data that it began with, if those are another cluster's; see machines/seed.ts. */
  seed?: string;
  /** How often its supervisor, or its way out, was found gone and was brought back; see `Observed.repairs`. */
  repairs: number;
  /** The programs that it was started with, so that it is reached by these whatever is built later. */
  programs: {
    /** On the host. */
    runsc?: string;
    host?: string;
    /** In the sandbox. */
    init: string;
  };
}

/** What is written down of a machine; undefined if there is nothing. */
export function readRecord(name: string, home: string): MachineRecord | undefined {
  const { record } = hostPaths(name, home);
  const remedy = "delete it, and the next `gvisor-k3s up` starts the sandbox again with what is in it";
  const read = readJson<MachineRecord>(record, remedy);
  // What sandbox-init writes of the machine that it is on; until the step has ended nobody has added the rest.
  if (read?.version === 2) return { ...read, repairs: read.repairs ?? 0, programs: read.programs ?? { init: "" } };
  return read === undefined ? firstVersion(name, home) : elsewhere(read);
}

/**
 * Sees to it that a machine has one owner.
 * @throws Error that names the other one
 */
export function checkOwner(ref: MachineRef, record: MachineRecord | undefined, owner: string): void {
  const taken = takenBy(ref, record, owner);
  if (taken !== undefined) throw new Error(taken);
}

/** What is said of a machine of somebody else's; undefined if it is nobody else's. */
export function takenBy({ name }: MachineRef, record: MachineRecord | undefined, owner: string): string | undefined {
  if (record?.owner === undefined || record.owner === owner) return undefined;
  const advice = "give one of them another with the option name";
  return `${name} is the cluster of ${record.owner}, and ${owner} asks for one of the same name; ${advice}`;
}

/** Writes it down. */
export async function writeRecord(name: string, home: string, record: MachineRecord): Promise<void> {
  await writeWhole(hostPaths(name, home).record, JSON.stringify(record));
}

/** A record as releases up to 0.2 wrote it, with what the sandbox's own process tells. */
function firstVersion(name: string, home: string): MachineRecord | undefined {
  const { state, bundle } = hostPaths(name, home);
  const file = join(state, "sandbox.json");
  const remedy = "delete it, and the next `gvisor-k3s up` starts the sandbox again with what is in it";
  const old = readJson<Pick<MachineRecord, "incarnation" | "revision" | "pid" | "startTime">>(file, remedy);
  if (old === undefined) return undefined;
  const config = join(bundle, "config.json");
  const managed = existsSync(config);
  const spec = managed ? (JSON.parse(readFileSync(config, "utf8")) as { process: { args: string[] } }) : undefined;
  const programs = { init: spec?.process.args[0] ?? "", ...(managed ? { runsc: programOf(old) } : {}) };
  return { ...old, version: 1, kind: managed ? "managed" : "inside", repairs: 0, programs };
}

/** What releases up to 0.2 noted of a cluster on another machine: which start of it was the last. */
function elsewhere({ incarnation }: Pick<MachineRecord, "incarnation">): MachineRecord {
  const unknown = { revision: "", pid: 0, startTime: "", repairs: 0, programs: { init: "" } };
  return { version: 1, kind: "ssh", incarnation, ...unknown };
}

/** The program of a process; "" if it has ended. */
function programOf(process: { pid: number; startTime: string }): string {
  return isAlive(process) ? readlinkSync(`/proc/${process.pid}/exe`) : "";
}

/** The incarnation that the next `up` is for: the one that runs, or the one that it will start. */
export function incarnationAfter(record: MachineRecord | undefined, runs: boolean, revision: string): number {
  if (record === undefined) return 1;
  return runs && record.revision === revision ? record.incarnation : record.incarnation + 1;
}
