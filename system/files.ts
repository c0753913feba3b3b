/**
 * Files that matter: each is whole or absent, whenever the power goes or the disk is full.
 * @module
 */
import { existsSync, linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import writeFileAtomic from "write-file-atomic";

/**
 * Writes a file under a temporary name, syncs it and renames it. Folders above it are made with mode 0700.
 * @param mode the file's permissions, whatever the umask is
 */
export async function writeWhole(file: string, content: string | Buffer, mode = 0o600): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  await writeFileAtomic(file, content, { mode });
}

/**
 * Writes a file that is to be written once: whoever comes second gets what the first one wrote.
 * @returns what is in it
 */
export function writeOnce(file: string, content: string): string {
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
  const part = `${file}.${process.pid}.tmp`;
  writeFileSync(part, content, { mode: 0o600, flush: true });
  try {
    linkSync(part, file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  } finally {
    rmSync(part);
  }
  return readFileSync(file, "utf8");
}

/**
 * What a file of ours holds, which is JSON.
 * @param remedy what to do about one that cannot be read whole
 * @returns undefined if there is no such file
 * @throws Error that names the file and the remedy
 */
export function readJson<T>(file: string, remedy: string): T | undefined {
  if (!existsSync(file)) return undefined;
  try {
    return JSON.parse(readFileSync(file, "utf8")) as T;
  } catch (error) {
    throw new Error(`${file} cannot be read (${(error as Error).message}); ${remedy}`, { cause: error });
  }
}

/** What is in a file; undefined if there is no such file, or nothing that can be read. */
export function readFile(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
