/**
 * What can be asked of a program of this machine at once.
 * @module
 */
import { execFileSync } from "node:child_process";
import { accessSync, constants, existsSync, statSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";

/** What a program prints on standard output; "" if it is not there, fails, or takes longer than ten seconds. */
export function says(program: string, ...args: string[]): string {
  return answerOf(program, args) ?? "";
}

/** The same; undefined if it fails. */
export function answerOf(program: string, args: readonly string[]): string | undefined {
  try {
    return execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], timeout: 10_000 });
  } catch {
    return undefined;
  }
}

/** Whether a path is a program that can be started. */
export function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile(); // a folder's permission to enter it looks the same
  } catch {
    return false;
  }
}

/** A program by its name, as a shell finds it on PATH; undefined if there is none. */
export function findProgram(name: string): string | undefined {
  const folders = (process.env.PATH ?? "").split(delimiter).filter((folder) => folder !== "");
  return folders.map((folder) => join(folder, name)).find(isExecutable);
}

/** Whether a folder can be written, or made. */
export function isWritable(folder: string): boolean {
  const there = existsSync(folder);
  try {
    if (there) accessSync(folder, constants.W_OK);
  } catch {
    return false;
  }
  return there || isWritable(dirname(folder));
}
