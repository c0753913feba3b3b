/**
 * The folder in the cache that holds artifacts, each whole or absent.
 * @module
 */
import { createHash } from "node:crypto";
import { accessSync, closeSync, constants, existsSync, openSync, readSync } from "node:fs";
import { chmod, mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { cacheFolder } from "../system/folders.ts";
import { Refusal } from "../system/refusal.ts";

/** The folder that holds all artifacts, which every sandbox sees read-only. */
export function artifactsFolder(): string {
  return join(cacheFolder(), "artifacts");
}

/**
 * Makes that folder.
 * @throws Refusal that says what to do where it cannot be made
 */
export async function makeArtifactsFolder(): Promise<string> {
  const folder = artifactsFolder();
  await mkdir(folder, { recursive: true, mode: 0o755 }).catch((cause: Error) => {
    throw unwritable(cause);
  });
  return folder;
}

function unwritable(cause: Error): Refusal {
  const advice = "set GVISOR_K3S_CACHE to a folder that can";
  return new Refusal(`the cache ${cacheFolder()} cannot be written (${whyNot(cacheFolder(), cause)}); ${advice}`);
}

/** Making folders tells of one that is not there, where the one above it cannot be written. */
function whyNot(folder: string, { message }: Error): string {
  if (!existsSync(folder)) return whyNot(dirname(folder), { name: "", message });
  try {
    accessSync(folder, constants.W_OK);
    return message;
  } catch (error) {
    return (error as Error).message;
  }
}

/** Fills a folder under a temporary name and moves it into place at once, so that a folder that exists is whole. */
export async function intoPlace(folder: string, fill: (work: string) => Promise<void>): Promise<string> {
  await makeArtifactsFolder();
  const work = await mkdtemp(`${folder}.tmp-`).catch((cause: Error) => {
    throw unwritable(cause);
  });
  try {
    await fill(work);
    await chmod(work, 0o755);
    await rename(work, folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error; // another process was faster
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return folder;
}

/** The SHA-256 of a file of any size, in hex. */
export function fileDigest(path: string): string {
  const [hash, buffer, file] = [createHash("sha256"), Buffer.alloc(2 ** 20), openSync(path, "r")];
  try {
    for (let size = readSync(file, buffer); size > 0; size = readSync(file, buffer))
      hash.update(buffer.subarray(0, size));
    return hash.digest("hex");
  } finally {
    closeSync(file);
  }
}
