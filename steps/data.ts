/**
 * The cluster's data while its server is upgraded: the copy to go back to. Whatever ends a step, and wherever, what was
 * the cluster's is there in full, under one name or another, and the next step knows which.
 *
 *     db                 the cluster's data; the server's to write
 *     db.before-A-B      the data of the server A, whole, made before the server B was given them
 *     db.after-B         what the server B, which did not become ready, has made of the data
 *     db.part            a copy that is being made, or one that is being deleted: of no use
 *
 * @module
 */
import { digest } from "../artifacts/artifacts.ts";
import { inSandbox } from "../config/paths.ts";
import type { Machine } from "../machines/machine.ts";

const folder = `${inSandbox.nodeData}/server`;
const [db, part] = ["db", "db.part"];

/** Whether it is a copy; of those of releases up to 0.2 (db.before-upgrade) nobody can tell for which server. */
const isCopy = (name: string) => name.startsWith("db.before-");

/** Milliseconds that a copy may take. */
const PATIENCE = 600_000;

const idOf = (server: string) => digest(server);
const copyOf = (server: string, other: string) => `db.before-${idOf(server)}-${idOf(other)}`;
const remainsOf = (id: string) => `db.after-${id}`;

/** A copy of a server's data: its name, and the id of the server that the data were given to. */
function copyIn(names: readonly string[], server: string): { name: string; other: string } | undefined {
  const prefix = `db.before-${idOf(server)}-`;
  const name = names.find((entry) => entry.startsWith(prefix));
  return name === undefined ? undefined : { name, other: name.slice(prefix.length) };
}

async function entries(machine: Machine): Promise<string[]> {
  const script = 'cd "$1" 2> /dev/null && ls -A || true';
  const { stdout } = await machine.exec(["/bin/sh", "-c", script, "sh", folder]);
  return stdout.split("\n").filter((name) => name === db || name.startsWith("db."));
}

const inFolder = (name: string) => `${folder}/${name}`;

/** Renames a folder; the new name must be free. */
async function move(machine: Machine, from: string, to: string): Promise<void> {
  await machine.exec(["/bin/mv", "-T", inFolder(from), inFolder(to)]);
}

async function remove(machine: Machine, name: string): Promise<void> {
  await machine.exec(["/bin/rm", "-rf", inFolder(name)]);
}

/** Deletes a folder in such a way that half of it is never taken for the whole. */
async function discard(machine: Machine, name: string): Promise<void> {
  await remove(machine, part);
  await move(machine, name, part);
  await remove(machine, part);
}

/**
 * Copies the data, which no server may have open. A copy that is there already is the good one: an upgrade was
 * interrupted, and the data may be the other server's since.
 * @param server the server whose data they are
 * @param other the server that they are given to
 */
export async function keepData(machine: Machine, server: string, other: string): Promise<void> {
  if (copyIn(await entries(machine), server)) return;
  await remove(machine, part);
  await machine.exec(["/bin/cp", "-a", inFolder(db), inFolder(part)], { timeout: PATIENCE });
  await machine.exec(["/bin/sync"], { timeout: PATIENCE });
  await move(machine, part, copyOf(server, other));
}

/** Brings the copied data of a server back; what another server has made of them stays beside them. */
export async function restoreData(machine: Machine, server: string): Promise<void> {
  const names = await entries(machine);
  const copy = copyIn(names, server);
  if (copy === undefined) return;
  if (names.includes(db)) {
    const remains = remainsOf(copy.other);
    if (names.includes(remains)) await discard(machine, remains);
    await move(machine, db, remains);
  }
  await move(machine, copy.name, db);
}

/**
 * Whether an upgrade was interrupted in such a way that the data are not those of the server that is to run now.
 * @param server the server that was ready last
 * @param next the server that is to run
 */
export async function isUnsettled(machine: Machine, server: string, next: string): Promise<boolean> {
  const names = await entries(machine);
  const copy = copyIn(names, server);
  return copy !== undefined && (!names.includes(db) || copy.other !== idOf(next));
}

/** Whether there is a copy: somebody upgrades the server, or was interrupted in that. */
export async function isUpgraded(machine: Machine): Promise<boolean> {
  return (await entries(machine)).some(isCopy);
}

/**
 * Deletes every copy: the server that runs is ready with its data.
 * @param all deletes also what servers that did not become ready have made of the data
 */
export async function dropCopies(machine: Machine, all: boolean): Promise<void> {
  for (const name of await entries(machine)) {
    if (name === part) await remove(machine, name);
    else if (isCopy(name)) await discard(machine, name);
    else if (all && name.startsWith("db.after-")) await discard(machine, name);
  }
}
