/**
 * The project as Pulumi knows it, and where a stack's options lie.
 * @module
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { parse } from "yaml";
import { readJson } from "../system/files.ts";
import { processStart } from "../system/processes.ts";

/** The folder of this checkout or package. */
export const root = join(import.meta.dirname, "..");

/** The name of the project, with which the options' names begin. */
export function ownProject(): string {
  return String(readYaml(join(root, "Pulumi.yaml")).name);
}

/** The folder of the stacks' states, where these lie in the home folder. */
export const stacksFolder = (home: string): string => join(home, "pulumi/.pulumi/stacks", ownProject());

/** Whose the cluster of a stack of this project is; see `MachineRecord.owner`. */
export const ownerOf = (stack: string): string => `${ownProject()}/${stack}`;

/** A stack's options: in the folder that the command runs in, or beside the program. */
export function settingsFile(stack: string): string {
  const files = [process.cwd(), root].map((folder) => join(folder, `Pulumi.${stack}.yaml`));
  return files.find((file) => existsSync(file)) ?? files[1]!;
}

/** What is in a YAML file; nothing if there is none. */
export function readYaml(file: string): Record<string, unknown> {
  return existsSync(file) ? ((parse(readFileSync(file, "utf8")) as Record<string, unknown> | null) ?? {}) : {};
}

/** A lock of Pulumi's on a stack. */
interface PulumiLock {
  file: string;
  pid: number;
  since: string;
  /** Whether who took it may work on the stack still; of another host's nobody knows. */
  alive: boolean;
}

/** The locks on a stack whose state lies in the home folder. */
export function pulumiLocks(home: string, stack: string): PulumiLock[] {
  const folder = join(home, "pulumi/.pulumi/locks/organization", ownProject(), stack);
  const files = existsSync(folder) ? readdirSync(folder).filter((entry) => entry.endsWith(".json")) : [];
  return files.flatMap((entry) => {
    const file = join(folder, entry);
    const lock = readJson<{ pid: number; hostname: string; timestamp: string }>(file, "delete it");
    if (lock === undefined) return []; // it was released just now
    const alive = lock.hostname !== hostname() || isPulumi(lock.pid);
    return [{ file, pid: lock.pid, since: lock.timestamp, alive }];
  });
}

function isPulumi(pid: number): boolean {
  return processStart(pid) !== undefined && readFileSync(`/proc/${pid}/comm`, "utf8").trim() === "pulumi";
}
