/**
 * A cluster's entry in the user's own kubeconfig: merged, chosen, taken back. What else is in the file stays as it is,
 * comments included.
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { type Document, isSeq, parse, parseDocument, type YAMLMap, type YAMLSeq } from "yaml";
import { homeFolder } from "../config/paths.ts";

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
  if (document.errors.length > 0)
    throw new Error(`the kubeconfig is no YAML (${document.errors[0]!.message}); nothing was changed`);
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
const content = (file: string) => (existsSync(file) ? readFileSync(file, "utf8") : undefined);

/** Writes a kubeconfig, readable by its owner only, so that {@link undo} can take that back. */
export function write(file: string, text: string): void {
  const before = content(file);
  const note: Undo = { file, ...(before === undefined ? {} : { before }), after: hash(text) };
  replace(undoFile(), JSON.stringify(note));
  replace(file, text);
}

/**
 * Takes the last change of a kubeconfig back.
 * @returns the file
 * @throws Error if there is none, or if the file was changed since
 */
export function undo(): string {
  const noted = content(undoFile());
  if (noted === undefined) throw new Error("there is no change of a kubeconfig to take back");
  const { file, before, after } = JSON.parse(noted) as Undo;
  if (hash(content(file) ?? "") !== after)
    throw new Error(
      `${file} was changed since by something else; nothing was changed. What it held before is in ${undoFile()}`,
    );
  if (before === undefined) rmSync(file);
  else replace(file, before);
  rmSync(undoFile());
  return file;
}

/** Takes the entries of a cluster that is gone out of the user's kubeconfig. */
export function forget(cluster: string): void {
  const file = userKubeconfig();
  const text = content(file);
  if (text === undefined || !text.includes(entryName(cluster))) return;
  const rest = without(text, cluster);
  if (rest === undefined) rmSync(file);
  else if (rest !== text) replace(file, rest);
}

/** Writes a file in one step: half of a kubeconfig would lock its user out. */
function replace(file: string, text: string): void {
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
  const beside = `${file}.gvisor-k3s.tmp`;
  writeFileSync(beside, text, { mode: 0o600 });
  renameSync(beside, file);
}
