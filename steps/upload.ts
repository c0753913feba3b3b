/**
 * What is built here, copied to the machine that runs it: each folder once, since its name tells its content, and
 * checked by SHA-256. Pulumi's own CopyToRemote would have all of it hashed by the engine at every preview, and cannot
 * write where only root may.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { mkdir, readdir, stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { Readable } from "node:stream";
import { create } from "tar";
import { sandboxPaths } from "../config/paths.ts";
import { remotePaths, type SshTarget } from "../config/ssh.ts";
import { fileDigest } from "../toolchain/artifacts.ts";
import { run } from "./run.ts";
import { removeState } from "./sandbox.ts";
import { sshCommand } from "./ssh.ts";

/** Where something is copied to. */
export interface UploadParams {
  ssh: SshTarget;
  /** The cluster that it is for. */
  name: string;
  /** The home folder here. */
  home: string;
}

/** Copies folders of the artifact cache, unless they are there. */
export async function upload(
  { ssh }: UploadParams,
  folders: readonly string[],
  say: (line: string) => void,
): Promise<void> {
  const there = (await onMachine(ssh, 'mkdir -p "$1" && ls -A "$1"', [remotePaths.artifacts])).split("\n");
  for (const folder of folders.filter((path) => !there.includes(basename(path)))) {
    const files = await filesBelow(folder);
    const size = (await Promise.all(files.map((file) => stat(join(folder, file))))).reduce(
      (sum, file) => sum + file.size,
      0,
    );
    say(`copying ${basename(folder)}, ${Math.ceil(size / 2 ** 20)} MiB`);
    // Two copies of one folder may be under way at once: each has a name of its own until it is whole.
    const part = `${basename(folder)}.${process.pid}.part`;
    const archive = Readable.from(create({ cwd: folder, portable: true }, ["."]));
    await onMachine(
      ssh,
      'cd "$1" && rm -rf "$2" && mkdir "$2" && tar -x -f - -C "$2"',
      [remotePaths.artifacts, part],
      archive,
    );
    const sums = files.map((file) => `${fileDigest(join(folder, file))}  ${file}\n`);
    await onMachine(
      ssh,
      'cd "$1/$2" && sha256sum -c - > /dev/null && cd .. && { [ -e "$3" ] && rm -rf "$2" || mv "$2" "$3"; }',
      [remotePaths.artifacts, part, basename(folder)],
      sums.join(""),
    );
  }
}

/** Has the steps that follow run by this runner. */
export async function useRunner({ ssh }: UploadParams, folder: string): Promise<void> {
  await onMachine(ssh, 'ln -sfn "$1" "$2"', [join(remotePaths.artifacts, basename(folder)), remotePaths.runner]);
}

/** What is noted here of the machine that a cluster is on. */
export interface MachineNote {
  host: string;
  port: number;
  /** The start of its sandbox-init that is to come, or came last. */
  incarnation: number;
}

/** The note of a cluster; undefined if it is on no other machine. */
export function notedMachine({ name, home }: Pick<UploadParams, "name" | "home">): MachineNote | undefined {
  const { machine } = sandboxPaths(name, home);
  return existsSync(machine) ? (JSON.parse(readFileSync(machine, "utf8")) as MachineNote) : undefined;
}

/**
 * Notes here that a machine holds this cluster, and which start of it is to come: a machine that has lost everything,
 * because it was set up anew, must not be taken for the same.
 */
export async function noteMachine({ name, home, ssh: { host, port } }: UploadParams): Promise<void> {
  const { state, machine } = sandboxPaths(name, home);
  const note: MachineNote = { host, port, incarnation: Number(process.env.SANDBOX_INCARNATION ?? 1) };
  await mkdir(state, { recursive: true, mode: 0o700 });
  await writeFile(machine, JSON.stringify(note), { mode: 0o600 });
}

/** Removes everything that was copied, and what is noted here, unless the cluster has moved to another machine. */
export async function removeUploads(params: UploadParams): Promise<void> {
  await removeCopies(params.ssh);
  const noted = notedMachine(params);
  if (noted === undefined || (noted.host === params.ssh.host && noted.port === params.ssh.port))
    await removeState(params);
}

/** Removes everything that was copied to a machine, unless a node is there that needs it. */
export async function removeCopies(ssh: SshTarget): Promise<void> {
  await onMachine(
    ssh,
    '[ -n "$(ls -A "$2/sandboxes" 2> /dev/null)" ] || { rm -rf "$1" && { rmdir "$2" 2> /dev/null || true; }; }',
    [remotePaths.cache, remotePaths.home],
  );
}

/** Runs a script on the machine; what it is about comes as arguments, so that no script is made of it. */
async function onMachine(
  ssh: SshTarget,
  script: string,
  args: readonly string[],
  input: string | Readable = "",
): Promise<string> {
  const [program, ...rest] = sshCommand(ssh, ["sh", "-c", script, "sh", ...args]);
  return (await run(program!, rest, { input })).stdout;
}

async function filesBelow(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort();
}
