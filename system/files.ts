/**
 * Files that matter: each is whole or absent, whenever the power goes or the disk is full.
 * @module
 */
import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { chmod, chown, mkdir, open, rename, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

/**
 * Writes a file under a temporary name, syncs it and renames it. Folders above it are made with mode 0700. (The package
 * write-file-atomic, 7.0.1, takes a write that the full disk has cut short for whole, and renames it.)
 * @param mode the file's permissions, whatever the umask is
 * @param owner whose it is; default: this process's
 */
export async function writeWhole(
  file: string,
  content: string,
  mode = 0o600,
  owner?: { uid: number; gid: number },
): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  const part = `${file}.${process.pid}.tmp`;
  try {
    await writeFile(part, content, { mode: 0o600, flush: true });
    if (owner) await chown(part, owner.uid, owner.gid);
    await chmod(part, mode);
    await rename(part, file);
  } finally {
    await rm(part, { force: true });
  }
  await syncFolder(dirname(file));
}

/** Has the kernel write what a folder holds to the disk: the new name as well. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r");
  await handle.sync().finally(() => handle.close());
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

/** Empties a file that others append to, and that has grown too long. */
export function emptyIfLonger(file: string, bytes: number): void {
  if ((statSync(file, { throwIfNoEntry: false })?.size ?? 0) > bytes) truncateSync(file);
}

/** The plain files below a folder of this machine's own; none if there is no such folder. */
export function filesBelow(folder: string): string[] {
  const entries = existsSync(folder) ? readdirSync(folder, { recursive: true, withFileTypes: true }) : [];
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}

/** What is in a file; undefined if there is no such file, or nothing that can be read. */
export function readFile(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}
