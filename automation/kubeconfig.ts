/**
 * A cluster's entry in the user's own kubeconfig: merged, chosen, taken back. What else is in the file stays as it is,
 * comments included.
 * @module
 */
import { createHash } from "node:crypto";
import { chownSync, closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { type Document, isMap, isSeq, parse, parseDocument, type YAMLMap, type YAMLSeq } from "yaml";
import { readJson, rewrite, writeWhole } from "../system/files.ts";
import { homeFolder } from "../system/folders.ts";
import { waitFor } from "../system/wait.ts";

const LISTS = ["clusters", "users", "contexts"] as const;

/** The name of a cluster's entries. */
export const entryName = (cluster: string) => `gvisor-k3s-${cluster}`;

/** The user's own kubeconfig, which kubectl writes to: the first file of KUBECONFIG, or the one in the home folder. */
export function userKubeconfig(environment: NodeJS.ProcessEnv = process.env): string {
  return environment.KUBECONFIG?.split(delimiter).find((file) => file !== "") ?? join(homedir(), ".kube/config");
}

interface Entry {
  name: string;
  cluster?: unknown;
  user?: unknown;
}

/**
 * A kubeconfig with a cluster's entries in it, or in place of those of before.
 * @param text the kubeconfig so far; "" if there is none
 * @param own the cluster's own kubeconfig, of one cluster and one user
 * @param choose whether its context becomes the current one
 */
export function merged(text: string, own: string, cluster: string, choose: boolean): string {
  const document =
    text.trim() === ""
      ? parseDocument("apiVersion: v1\nkind: Config\nclusters: []\nusers: []\ncontexts: []\n")
      : checked(text);
  const { clusters, users } = parse(own) as Record<"clusters" | "users", [Entry]>;
  const name = entryName(cluster);
  removeEntries(document, name);
  add(document, "clusters", { name, cluster: clusters[0].cluster });
  add(document, "users", { name, user: users[0].user });
  add(document, "contexts", { name, context: { cluster: name, user: name } });
  if (choose) document.set("current-context", name);
  return document.toString({ lineWidth: 0 });
}

/** A kubeconfig with a cluster's context as the current one; undefined if it has none. */
export function chosen(text: string, cluster: string): string | undefined {
  const document = checked(text);
  const contexts = (document.toJS() as { contexts?: { name: string }[] } | null)?.contexts ?? [];
  if (!contexts.some(({ name }) => name === entryName(cluster))) return undefined;
  document.set("current-context", entryName(cluster));
  return document.toString({ lineWidth: 0 });
}

/** A kubeconfig without a cluster's entries; undefined if nothing is left in it. */
export function without(text: string, cluster: string): string | undefined {
  const document = checked(text);
  const name = entryName(cluster);
  if (!removeEntries(document, name)) return text;
  if (document.get("current-context") === name) document.delete("current-context");
  const rest = document.toJS() as Record<string, unknown[] | undefined>;
  return LISTS.every((list) => (rest[list] ?? []).length === 0) ? undefined : document.toString({ lineWidth: 0 });
}

function checked(text: string): Document {
  const document = parseDocument(text, { prettyErrors: false });
  const [error] = document.errors;
  if (error) throw new Error(`the kubeconfig is no YAML (${error.message}); nothing was changed`);
  if (document.contents !== null && !isMap(document.contents)) {
    throw new Error("it holds something else than a kubeconfig; nothing was changed");
  }
  return document;
}

function add(document: Document, list: string, entry: object): void {
  if (!isSeq(document.get(list))) document.set(list, document.createNode([]));
  const seq = document.get(list) as YAMLSeq;
  seq.flow = false; // an empty list is written as []
  seq.add(document.createNode(entry));
}

function removeEntries(document: Document, name: string): boolean {
  return LISTS.map((list) => {
    const seq = document.get(list);
    if (!isSeq(seq)) return false;
    const before = seq.items.length;
    seq.items = seq.items.filter((item) => (item as YAMLMap).get("name") !== name);
    return seq.items.length < before;
  }).some(Boolean);
}

/** What {@link undo} takes back. */
interface Undo {
  file: string;
  /** undefined: there was no file. */
  before?: string;
  /** The hash of what was written. */
  after: string;
}

const undoFile = () => join(homeFolder(), "kubeconfig-undo.json");
const hash = (text: string) => createHash("sha256").update(text).digest("hex");

/** How long another program may have the user's kubeconfig locked, in seconds. */
const PATIENCE = 10;

/**
 * Changes the user's own kubeconfig, in such a way that {@link undo} can take it back. It is locked as kubectl locks it;
 * a link is followed, and the file's owner and permissions stay.
 * @param change takes what is in it, "" if there is none, and returns what is to be in it; undefined changes nothing
 * @returns whether something was changed
 * @throws Error that names the file
 */
export async function changeUserKubeconfig(
  file: string,
  change: (text: string) => string | undefined,
): Promise<boolean> {
  return await locked(file, async () => {
    const before = content(file);
    const text = inContext(file, () => change(before ?? ""));
    if (text === undefined) return false;
    const note: Undo = { file, ...(before === undefined ? {} : { before }), after: hash(text) };
    await writeWhole(undoFile(), JSON.stringify(note));
    await rewrite(file, text);
    return true;
  });
}

/**
 * Takes the last change of a kubeconfig back.
 * @returns the file
 * @throws Error if there is none, or if the file was changed since
 */
export async function undo(): Promise<string> {
  const noted = readJson<Undo>(undoFile(), "delete it: the last change of a kubeconfig cannot be taken back then");
  if (noted === undefined) throw new Error("there is no change of a kubeconfig to take back");
  const { file, before, after } = noted;
  await locked(file, async () => {
    if (hash(content(file) ?? "") !== after) {
      const advice = `what it held before is in ${undoFile()}`;
      throw new Error(`${file} was changed since by something else; nothing was changed. ${advice}`);
    }
    if (before === undefined) rmSync(file);
    else await rewrite(file, before);
  });
  rmSync(undoFile());
  return file;
}

/** Takes the entries of a cluster that is gone out of the user's kubeconfig. */
export async function forget(cluster: string): Promise<void> {
  const file = userKubeconfig();
  if (!content(file)?.includes(entryName(cluster))) return;
  await locked(file, async () => {
    const text = content(file) ?? "";
    const rest = inContext(file, () => without(text, cluster));
    if (rest === undefined) rmSync(file);
    else if (rest !== text) await rewrite(file, rest);
  });
}

/** What is in the user's kubeconfig; undefined if there is none. */
export function content(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw new Error(`the kubeconfig ${file} cannot be read: ${message}`, { cause: error });
  }
}

/** An error of what is done with a file names it. */
function inContext<T>(file: string, act: () => T): T {
  try {
    return act();
  } catch (error) {
    throw new Error(`${file}: ${(error as Error).message}`, { cause: error });
  }
}

/**
 * Locks a kubeconfig as kubectl does it: by a file beside it that must be new (client-go: tools/clientcmd/config.go,
 * lockFile).
 */
async function locked<T>(file: string, act: () => Promise<T>): Promise<T> {
  makeFolder(dirname(file));
  const lock = `${file}.lock`;
  const advice = `${lock} is there: another program changes ${file}; if none does, delete it`;
  await waitFor(advice, PATIENCE, () => taken(lock));
  try {
    return await act();
  } finally {
    rmSync(lock, { force: true });
  }
}

function taken(lock: string): true | undefined {
  try {
    closeSync(openSync(lock, "wx", 0o600));
    return true;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return undefined;
    throw new Error(`${lock} cannot be made: ${message}`, { cause: error });
  }
}

/** Makes a folder, one after the other of those above it: Node.js never ends where none can be made, as in /proc. */
function makeFolder(folder: string): void {
  if (existsSync(folder)) return;
  makeFolder(dirname(folder));
  try {
    mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== "EEXIST") throw new Error(`the folder ${folder} cannot be made: ${message}`, { cause: error });
  }
  const { uid, gid } = statSync(dirname(folder));
  chownSync(folder, uid, gid); // the user's, who may be another one under sudo
}
