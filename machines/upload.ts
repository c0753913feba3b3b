/**
 * Folders of the artifact cache, copied to a machine: each once, since its name tells its content, and checked by
 * SHA-256.
 * @module
 */
import { readdir, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { Readable } from "node:stream";
import { create } from "tar";
import { fileDigest } from "../artifacts/artifacts.ts";
import type { ExecOptions, Machine } from "./machine.ts";
import { remotePaths } from "./sshConnection.ts";

/** Milliseconds that a copy may take: some hundred MiB over a slow line. */
const PATIENCE = 30 * 60_000;

/** Copies folders unless they are there. */
export async function uploadTo(
  machine: Machine,
  folders: readonly string[],
  say: (line: string) => void,
): Promise<void> {
  if (folders.length === 0) return;
  const shell = async (script: string, args: string[], input?: ExecOptions["input"]) =>
    await machine.exec(["sh", "-c", script, "sh", ...args], {
      ...(input === undefined ? {} : { input }),
      timeout: PATIENCE,
    });
  const { artifacts } = remotePaths;
  const there = (await shell('mkdir -p "$1" && ls -A "$1"', [artifacts])).stdout.split("\n");
  for (const folder of folders.filter((path) => !there.includes(basename(path)))) {
    const files = await filesBelow(folder);
    const sizes = await Promise.all(files.map(async (file) => (await stat(join(folder, file))).size));
    const size = sizes.reduce((sum, one) => sum + one, 0);
    say(`copying ${basename(folder)}, ${Math.ceil(size / 2 ** 20)} MiB`);
    // Two copies of one folder may be under way at once: each has a name of its own until it is whole.
    const part = `${basename(folder)}.${process.pid}.part`;
    const archive = Readable.from(create({ cwd: folder, portable: true }, ["."]));
    await shell('cd "$1" && rm -rf "$2" && mkdir "$2" && tar -x -f - -C "$2"', [artifacts, part], archive);
    const sums = files.map((file) => `${fileDigest(join(folder, file))}  ${file}\n`);
    const place = 'cd .. && { [ -e "$3" ] && rm -rf "$2" || mv "$2" "$3"; }';
    await shell(
      `cd "$1/$2" && sha256sum -c - > /dev/null && ${place}`,
      [artifacts, part, basename(folder)],
      sums.join(""),
    );
  }
}

async function filesBelow(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1));
}
