/**
 * What is kept of a machine at other times, each in a folder of its own below the machine's, which is as secret as the
 * cluster: mode 0700, its files 0600. A folder has its name from the moment on at which it is whole.
 * @module
 */
import { createHash } from "node:crypto";
import { createReadStream, existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import type { StackConfig } from "../config/schema.ts";
import { readJson, syncFolder, writeWhole } from "../system/files.ts";
import type { ProcessId } from "../system/processes.ts";
import type { Kept, KeptAs } from "./machine.ts";
import { hostPaths } from "./paths.ts";
import type { MachineRef } from "./ref.ts";

/** What is written down of a snapshot. */
export interface Snapshot extends Kept {
  /** Of this form. */
  version: 1;
  name: string;
  /** The cluster's option `name`. */
  cluster: string;
  /** When it was made, as ISO 8601. */
  created: string;
  kind: KeptAs;
  /** The version of gvisor-k3s. */
  product: string;
  /** What it goes on from, or starts: as Kubernetes writes its version, and by its path in the sandbox. */
  kubernetes?: string;
  server: string;
  /** What runs the sandbox, and is its process 1. */
  runsc: string;
  init: string;
  /** The machine's own; see `MachineRecord.revision`. */
  revision: string;
  /** The hash of each option that it depends on. */
  options: Record<string, string>;
  /** What the processor can do, which programs whose memory was kept rely on. */
  cpu: string[];
  /** The process that made it for itself, and removes it again; where that is gone, whoever comes next does. */
  madeBy?: ProcessId;
}

const [MANIFEST, NEW, OLD] = ["manifest.json", ".new-", ".old-"];

/** What a snapshot may be called. */
export const SNAPSHOT_NAME = /^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$/i;

/** The folder of a machine's snapshot. */
export const snapshotFolder = ({ name, home }: MachineRef, snapshot: string): string =>
  join(hostPaths(name, home).snapshots, snapshot);

/** A machine's snapshots, the oldest first. */
export function snapshotsOf({ name, home }: MachineRef): Snapshot[] {
  const { snapshots } = hostPaths(name, home);
  const names = existsSync(snapshots) ? readdirSync(snapshots).filter((entry) => SNAPSHOT_NAME.test(entry)) : [];
  return names
    .flatMap((entry) => manifestIn(join(snapshots, entry)) ?? [])
    .sort((one, other) => one.created.localeCompare(other.created));
}

/** What is written down of what is kept in a folder; undefined if nothing whole is. */
export function manifestIn(folder: string): Snapshot | undefined {
  const file = join(folder, MANIFEST);
  return readJson<Snapshot>(file, `delete ${folder}: nothing else tells what is in it`);
}

/** What a machine was paused with; undefined if it is not paused. */
export const pausedWith = ({ name, home }: MachineRef): Snapshot | undefined =>
  manifestIn(hostPaths(name, home).paused);

/**
 * Makes a folder that has its name once all of it is there and on the disk.
 * @param fill makes what is in it, and says what is to be written down
 */
export async function keepIn(folder: string, fill: (half: string) => Promise<Snapshot>): Promise<Snapshot> {
  const half = beside(folder, NEW);
  await mkdir(half, { recursive: true, mode: 0o700 });
  try {
    const manifest = await fill(half);
    await writeWhole(join(half, MANIFEST), JSON.stringify(manifest));
    await rename(half, folder);
    await syncFolder(join(folder, ".."));
    return manifest;
  } catch (error) {
    await rm(half, { recursive: true, force: true });
    throw error;
  }
}

/** Removes a folder, which loses its name first: it is there as a whole or not at all. */
export async function drop(folder: string): Promise<void> {
  const old = beside(folder, OLD);
  await rename(folder, old);
  await rm(old, { recursive: true });
}

const beside = (folder: string, prefix: string) => {
  const name = folder.slice(folder.lastIndexOf("/") + 1);
  return join(folder, "..", `${prefix}${name}`);
};

/** Removes what a killed command has left of a folder that it made or removed. Nobody else may work on the machine. */
export async function dropHalfMade({ name, home }: MachineRef): Promise<void> {
  const { state, snapshots } = hostPaths(name, home);
  for (const folder of [state, snapshots]) {
    const entries = existsSync(folder) ? readdirSync(folder) : [];
    for (const entry of entries.filter((entry) => entry.startsWith(NEW) || entry.startsWith(OLD))) {
      await rm(join(folder, entry), { recursive: true, force: true });
    }
  }
}

/**
 * Looks whether files are as they were written.
 * @param which those that are looked at, by the beginning of their paths
 * @throws Error that names the first that is not
 */
export async function verify(folder: string, { files, name }: Snapshot, which: string): Promise<void> {
  const due = Object.entries(files).filter(([path]) => path.startsWith(which));
  await Promise.all(
    due.map(async ([path, { sha256 }]) => {
      const file = join(folder, path);
      const advice = `the snapshot ${name} cannot be used; delete it`;
      if (!existsSync(file)) throw new Error(`${file} is missing: ${advice}`);
      const hash = createHash("sha256");
      await pipeline(createReadStream(file, { highWaterMark: 2 ** 20 }), hash);
      if (hash.digest("hex") !== sha256) throw new Error(`${file} is damaged: ${advice}`);
    }),
  );
}

/** What the processors of this machine can do, all of them. */
export function cpuFeatures(): string[] {
  const lines = readFileSync("/proc/cpuinfo", "utf8").split("\n");
  const all = lines.filter((line) => /^(flags|Features)\s*:/.test(line)).map((line) => line.split(":")[1]!);
  return [...new Set(all.flatMap((line) => line.trim().split(" ")))].sort();
}

/** The options that a sandbox takes while it runs, and those that say nothing of what is in it. */
const LIVE = ["memory", "cpus", "hostPorts", "restart"];
const BESIDE = ["ports", "pod", "stack", "from"];

/** The hash of each option that a snapshot depends on. Some are secrets. */
export function optionHashes(config: StackConfig): Record<string, string> {
  const without = (value: object, keys: string[]) =>
    Object.entries(value).filter(([key, given]) => !keys.includes(key) && given !== undefined);
  const { sandbox, ...rest } = config;
  const all = [...without(rest, BESIDE), ...without(sandbox, LIVE).map(([key, given]) => [`sandbox.${key}`, given])];
  return Object.fromEntries(
    all.map(([key, given]) => [key, createHash("sha256").update(JSON.stringify(given)).digest("hex")]),
  );
}
