/**
 * Files that matter: each is whole or absent, whenever the power goes or the disk is full.
 * @module
 */
import {
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { chmod, chown, mkdir, open, rename, rm, statfs, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";

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
  } catch (error) {
    throw unwritten(file, error);
  } finally {
    await rm(part, { force: true });
  }
  await syncFolder(dirname(file));
}

/** What is told of a file that could not be written, which is as it was. */
function unwritten(file: string, error: unknown): Error {
  const { code, message } = error as NodeJS.ErrnoException;
  const full = code === "ENOSPC" || code === "EDQUOT";
  const why = full ? `the disk of ${dirname(file)} is full (${code}); make room, and try again` : message;
  return new Error(`${file} cannot be written: ${why}`, { cause: error });
}

/** The same, unless the file holds that already. */
export async function keepWhole(file: string, content: string): Promise<void> {
  if (readFile(file) !== content) await writeWhole(file, content);
}

/** Replaces the content of a file of the user's: a link is followed, and its owner and permissions stay. */
export async function rewrite(file: string, content: string): Promise<void> {
  const target = linkTarget(file);
  const is = statSync(target, { throwIfNoEntry: false }) ?? { ...ownerOf(dirname(target)), mode: 0o600 };
  await writeWhole(target, content, is.mode & 0o777, is);
}

const ownerOf = (folder: string) => {
  const { uid, gid } = statSync(folder);
  return { uid, gid };
};

/** The file that a link leads to in the end, whether it is there or not. */
function linkTarget(file: string, depth = 0): string {
  const is = lstatSync(file, { throwIfNoEntry: false });
  if (!is?.isSymbolicLink()) return file;
  if (depth === 40) throw new Error(`${file} is a link to itself`); // as many as the kernel follows
  return linkTarget(resolve(dirname(file), readlinkSync(file)), depth + 1);
}

/** How much room there is for a folder, which need not be there yet: the folder that it would be in, and MiB. */
export async function roomFor(folder: string): Promise<{ existing: string; free: number }> {
  let existing = folder;
  while (!existsSync(existing)) existing = dirname(existing);
  const { bavail, bsize } = await statfs(existing);
  return { existing, free: Math.floor((bavail * bsize) / 2 ** 20) };
}

/** Has the kernel write what a folder holds to the disk: the new name as well. */
export async function syncFolder(folder: string): Promise<void> {
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
  try {
    writeFileSync(part, content, { mode: 0o600, flush: true });
    linkSync(part, file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw unwritten(file, error);
  } finally {
    rmSync(part, { force: true });
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
