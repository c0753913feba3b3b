/**
 * What a new cluster begins with: a snapshot of another one. Its disk is taken, and never its memory, in which the keys
 * of that cluster are; the server makes an identity of its own before it serves (node/server/reidentify.go).
 * @module
 */
import { existsSync } from "node:fs";
import { compareBuild } from "semver";
import { manifest } from "../artifacts/artifacts.ts";
import { minorOf } from "../config/kubernetes.ts";
import { joiningNodes } from "../config/nodes.ts";
import type { Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import { readJson } from "../system/files.ts";
import { hostPaths } from "./paths.ts";
import { readRecord } from "./record.ts";
import type { MachineRef } from "./ref.ts";
import { manifestIn, optionHashes, type Snapshot, snapshotFolder, snapshotsOf } from "./snapshots.ts";

/** What is written down of it until the machine was started. */
export interface Seed {
  /** Tells it from every other one. */
  id: string;
  /** The cluster and the snapshot. */
  from: string;
}

/** What a machine is to begin with; undefined if it is nothing, or if it has begun. */
export function seedOf({ name, home }: MachineRef): Seed | undefined {
  return readJson<Seed>(
    hostPaths(name, home).seedNote,
    `remove the cluster (\`gvisor-k3s destroy ${name}\`), and make it again`,
  );
}

/** Whether a machine that was never started has data, or a part of them. */
export function isPlanted({ name, home }: MachineRef): boolean {
  const { seed, seedNote } = hostPaths(name, home);
  return readRecord(name, home) === undefined && (existsSync(seed) || existsSync(seedNote));
}

/** The snapshot that an option `from` names, and its folder; undefined if there is none. */
export function snapshotNamed(from: string, home: string): { folder: string; snapshot: Snapshot } | undefined {
  const [name, given] = from.split("/") as [string, string?];
  const ref: MachineRef = { kind: "managed", name, home };
  const snapshot = given === undefined ? snapshotsOf(ref).at(-1) : manifestIn(snapshotFolder(ref, given));
  return snapshot && { snapshot, folder: snapshotFolder(ref, snapshot.name) };
}

/**
 * What of a snapshot a machine begins with, and its folder: of a node that joins, what that node of the other cluster has
 * of it. Undefined if there is nothing.
 */
export function partOf(from: string, ref: MachineRef): { folder: string; snapshot: Snapshot } | undefined {
  const whole = snapshotNamed(from, ref.home);
  if (whole === undefined || ref.joins === undefined) return whole;
  const { cluster, name, created } = whole.snapshot;
  const node: MachineRef = { ...ref, name: `${cluster}${ref.name.slice(ref.joins.length)}` };
  const folder = snapshotFolder(node, name);
  const snapshot = manifestIn(folder);
  // Nothing else tells that it was made with the server's, and not for another cluster, which has that name.
  return snapshot?.created === created ? { folder, snapshot } : undefined;
}

/** The options that have to be as they were. */
const SAME = ["mode", "distribution", "node", "network", "containerd"] as const;

/** The API server's arguments that have its datastore in another form; see node/server/bootstrap.go. */
const STORAGE_ARGS = /^(etcd|storage|encryption)-/;

/** Everything that keeps a cluster from beginning with a snapshot. */
export function seedProblems(config: StackConfig, from: string, home: string): Problem[] {
  const found = snapshotNamed(from, home);
  if (found === undefined) {
    const list = `\`gvisor-k3s snapshot list ${from.split("/")[0]}\` names those that there are`;
    return [{ option: "from", value: from, message: `there is no such snapshot; ${list}` }];
  }
  const { snapshot } = found;
  const at = `the snapshot ${snapshot.cluster}/${snapshot.name}`;
  if (snapshot.version !== 1) {
    return [{ option: "from", value: from, message: `${at} is of a newer gvisor-k3s (${snapshot.product})` }];
  }
  const now = optionHashes(config);
  const problems = SAME.filter((key) => now[key] !== snapshot.options[key]).map((option): Problem => {
    return { option, message: `it was another one when ${at} was made; say what it was then` };
  });
  if (![now.nodes, optionHashes({ ...config, nodes: [] }).nodes].includes(snapshot.options.nodes)) {
    problems.push({ option: "nodes", message: `they were others when ${at} was made; say what they were then` });
  } else if (now.nodes === snapshot.options.nodes) {
    const absent = joiningNodes(config)
      .map((node): MachineRef => ({ kind: "managed", name: node.name, joins: config.name, home }))
      .filter((ref) => partOf(from, ref) === undefined)
      .map((ref) => ref.name.slice(config.name.length + 1));
    if (absent.length > 0) {
      const message = `${at} has nothing of ${absent.join(", ")} any more; take another one`;
      problems.push({ option: "from", value: from, message });
    }
  }
  const stored = config.node.apiServerArgs.filter((arg) => STORAGE_ARGS.test(arg));
  if (stored.length > 0) {
    const message = "what the API server stores so cannot be given to another cluster, whose keys are others";
    problems.push({ option: "node.apiServerArgs", value: stored.join(", "), message });
  }
  const { kubernetes = "" } = snapshot;
  const brought = `v${manifest().kubernetes[config.kubernetes]}`;
  if (minorOf(kubernetes) !== config.kubernetes) {
    const message = `${at} has Kubernetes ${kubernetes}; take that, and upgrade the cluster once it is there`;
    problems.push({ option: "kubernetes", value: config.kubernetes, message });
  } else if (compareBuild(kubernetes, brought) > 0) {
    const message = `${at} has Kubernetes ${kubernetes}, and this gvisor-k3s brings ${brought}; take a newer one`;
    problems.push({ option: "kubernetes", value: config.kubernetes, message });
  }
  return problems;
}
