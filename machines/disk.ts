/**
 * What a machine's disk holds, told by the machine itself.
 * @module
 */
import { inSandbox } from "../config/paths.ts";
import { CommandError } from "../system/run.ts";
import { ANSWER } from "./base.ts";
import type { Machine } from "./machine.ts";

/** Seconds that a machine has to look at its disk. */
const SECONDS = 5;

/** The folders that are told apart, with what is kept in them. */
const folders = {
  /** All of the machine's own file system. */
  root: "/",
  /** Images as they came, and unpacked, with what running containers have written. */
  images: "/var/lib/containerd",
  /** Of the node's services and of its pods. */
  logs: "/var/log",
  /** The cluster's objects. */
  database: `${inSandbox.nodeData}/server/db`,
  /** Of pods: claims that are bound here, and what ends with its pod. */
  claims: `${inSandbox.nodeData}/storage`,
  volumes: "/var/lib/kubelet",
} as const;

/** What a disk holds, in bytes. */
export interface DiskUsage extends Record<keyof typeof folders, number> {
  /** Of the disk that the machine's root is on; a managed sandbox's is the host's. */
  size: number;
  free: number;
  /** Whether all was looked at in time; else it is more. */
  whole: boolean;
}

/** What a machine that runs tells of its disk; undefined where it cannot tell. */
export async function diskUsage(machine: Machine): Promise<DiskUsage | undefined> {
  const input = JSON.stringify({ folders: Object.values(folders), seconds: SECONDS });
  const answer = await machine
    .init(["files", "usage"], { input, timeout: SECONDS * 1000 + ANSWER })
    .catch((error: unknown) => {
      if (error instanceof CommandError) return undefined;
      throw error;
    });
  if (answer === undefined) return undefined;
  type Told = { size: number; free: number; whole: boolean; used: Record<string, number> };
  const { used, ...disk } = JSON.parse(answer.stdout) as Told;
  const parts = Object.entries(folders).map(([part, folder]) => [part, used[folder] ?? 0]);
  return { ...disk, ...(Object.fromEntries(parts) as Record<keyof typeof folders, number>) };
}
