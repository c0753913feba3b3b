/**
 * Clusters at other times: snapshots, and clusters that are paused. Pulumi is not asked: what it has made is the same
 * before and after.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { request } from "node:https";
import { join } from "node:path";
import { fileDigest, pathOnHost, provide, wanted } from "../artifacts/artifacts.ts";
import { nodesOf } from "../config/nodes.ts";
import { type Problem, refuse } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import { openMachine, refOf, stateHere } from "../machines/index.ts";
import { inTurn } from "../machines/lock.ts";
import type { Keeper, Kept, KeptAs } from "../machines/machine.ts";
import { hostPaths } from "../machines/paths.ts";
import { type MachineRecord, readRecord } from "../machines/record.ts";
import type { MachineRef } from "../machines/ref.ts";
import {
  cpuFeatures,
  drop,
  dropHalfMade,
  keepIn,
  manifestIn,
  optionHashes,
  pausedWith,
  SNAPSHOT_NAME,
  type Snapshot,
  snapshotFolder,
  snapshotsOf,
  verify,
} from "../machines/snapshots.ts";
import { credentialsIn, decoded } from "../servers/kubeconfig.ts";
import { lastReady } from "../servers/ready.ts";
import { isUpgraded } from "../steps/data.ts";
import { nodeReady } from "../steps/join.ts";
import { ownPackage } from "../system/package.ts";
import type { ProcessId } from "../system/processes.ts";
import { waitFor } from "../system/wait.ts";
import { commandName, type NamedConfig } from "./options.ts";
import { pulumiLocks } from "./project.ts";

/** Takes a line of what goes on. */
type Say = (line: string) => void;

/** Seconds in which the API server of a cluster that was brought back has to answer. */
const ANSWER = 120;

/** Milliseconds for one question of it, however slowly it answers. */
const QUESTION = 10_000;

/**
 * Keeps a cluster as it is now. Its memory is kept as well where there is no node (`mode: control-plane`); with a node it
 * is what is on the sandbox's disk: objects, images, volumes. Nothing runs in it for a moment; then it goes on. Of several
 * nodes the server's is kept last: it tells what is on the others.
 * @param snapshot what it is to be called; by default the time
 * @param madeBy the process that removes it again; see `Snapshot.madeBy`
 * @throws InputError, or Error that says why nothing was kept; the cluster runs on
 */
export async function saveSnapshot(
  config: NamedConfig,
  snapshot: string | undefined,
  say: Say = () => {},
  madeBy?: ProcessId,
): Promise<Snapshot> {
  const created = new Date();
  const name = snapshot ?? created.toISOString().slice(0, 19).replaceAll(":", "-").replace("T", "-");
  checkName(name);
  const [server, ...joined] = keptNodes(config);
  return await alone(config, say, async () => {
    needNoSnapshot(server, name);
    const save = (node: NamedConfig) => saveNode(node, name, created, say, madeBy);
    try {
      await onEach(joined, save);
      return await save(server);
    } catch (error) {
      await dropStrays(server, joined, say);
      throw error;
    }
  });
}

function needNoSnapshot(config: NamedConfig, name: string): void {
  if (!existsSync(snapshotFolder(refOf(config), name))) return;
  throw new Error(`${commandName(config)} has a snapshot ${name}; choose another name, or delete that one`);
}

async function saveNode(
  config: NamedConfig,
  name: string,
  created: Date,
  say: Say,
  madeBy: ProcessId | undefined,
): Promise<Snapshot> {
  return await withMachine(config, "snapshot-save", say, async (ref, keeper) => {
    const folder = snapshotFolder(ref, name);
    needNoSnapshot(config, name);
    needRunning(config, ref);
    if (await isUpgraded(openMachine(ref))) {
      const cluster = commandName(config);
      throw new Error(`an upgrade of ${cluster} was interrupted; run \`gvisor-k3s up ${cluster}\` first`);
    }
    const as = keptAs(config);
    const save = async (half: string) => ({
      ...described(config, ref, name, created, as, await keeper.save(half, as)),
      ...(madeBy === undefined ? {} : { madeBy }),
    });
    return await keepIn(folder, save).catch((error: unknown) => {
      throw fuller(error, "nothing was kept, and the cluster runs on");
    });
  });
}

/**
 * Takes a cluster back to a snapshot: what it has now is lost once that answers, and put back if it does not. Of several
 * nodes each is taken back by itself, the server first: if that fails, the others are as they were.
 * @param snapshot default: the newest
 * @returns it, once the API server answers
 * @throws InputError that names everything that does not fit on any node
 */
export async function restoreSnapshot(
  config: NamedConfig,
  snapshot: string | undefined,
  say: Say = () => {},
): Promise<Snapshot> {
  const [server, ...joined] = keptNodes(config);
  const { snapshot: kept, problems } = showSnapshot(server, snapshot);
  refuse([
    ...problems,
    ...joined.flatMap((node) => misfits(node, refOf(node), snapshotIn(node, refOf(node), kept.name))),
  ]);
  await alone(config, say, async () => {
    await restoreNode(server, kept.name, say);
    await onEach(joined, (node) => restoreNode(node, kept.name, say));
  });
  return kept;
}

async function restoreNode(config: NamedConfig, name: string, say: Say): Promise<void> {
  await withMachine(config, "snapshot-restore", say, async (ref, keeper) => {
    const kept = snapshotIn(config, ref, name);
    refuse(misfits(config, ref, kept));
    const folder = snapshotFolder(ref, kept.name);
    const verified = verify(folder, kept, "memory/");
    verified.catch(() => undefined); // told where it is waited for
    await keeper
      .restore(folder, kept, kept.kind, verified, () => answers(config, ref))
      .catch((error: unknown) => {
        throw fuller(error, config.joins ? `the node ${config.name} is as it was` : "the cluster is as it was");
      });
    if (pausedWith(ref)) await drop(hostPaths(ref.name, ref.home).paused);
  });
}

/** A cluster's snapshots, the oldest first. */
export function listSnapshots(config: NamedConfig): Snapshot[] {
  return snapshotsOf(refOf(config));
}

/**
 * One of a cluster's snapshots, with everything that keeps it from being restored now.
 * @param snapshot default: the newest
 */
export function showSnapshot(config: NamedConfig, snapshot?: string): { snapshot: Snapshot; problems: Problem[] } {
  const ref = refOf(config);
  const found = snapshotIn(config, ref, snapshot);
  return { snapshot: found, problems: misfits(config, ref, found) };
}

/** Removes one of a cluster's snapshots; one that is in use just now is waited for. */
export async function deleteSnapshot(config: NamedConfig, snapshot: string, say: Say = () => {}): Promise<void> {
  needKeeper(config);
  await alone(config, say, async () => {
    await withMachine(config, "snapshot-delete", say, async (ref) => {
      await drop(snapshotFolder(ref, snapshotIn(config, ref, snapshot).name));
    });
    await dropStrays(config, nodesOf(config).slice(1), say);
  });
}

/** Removes what nodes have of snapshots that the server has not: it is its part that makes them one. */
async function dropStrays(server: NamedConfig, joined: readonly NamedConfig[], say: Say): Promise<void> {
  const whole = snapshotsOf(refOf(server)).map(({ name }) => name);
  for (const node of joined) {
    const strays = snapshotsOf(refOf(node)).filter(({ name }) => !whole.includes(name));
    if (strays.length === 0) continue;
    await withMachine(node, "snapshot-delete", say, async (ref) => {
      for (const { name } of strays) await drop(snapshotFolder(ref, name));
    });
  }
}

/** Does something on each node, and waits for all before it tells what went wrong with any. */
async function onEach<T>(nodes: readonly NamedConfig[], work: (node: NamedConfig) => Promise<T>): Promise<void> {
  const ended = await Promise.allSettled(nodes.map(work));
  const failed = ended.flatMap((one, i) =>
    one.status === "rejected" ? [`${nodes[i]!.name}: ${(one.reason as Error).message}`] : [],
  );
  if (failed.length > 0) throw new Error(failed.join("\n"));
}

/** Has nobody else keep the cluster, or bring it back, meanwhile; what a killed one has left on its nodes is removed. */
async function alone<T>(config: NamedConfig, say: Say, work: () => Promise<T>): Promise<T> {
  const ref = refOf(config);
  needRecord(config, ref);
  const others = nodesOf(config).slice(1);
  const whole = async () => {
    await dropStrays(config, others, say);
    return await work();
  };
  return await inTurn(hostPaths(ref.name, ref.home).state, "keeping", whole, say);
}

/**
 * Has a cluster take no memory and no CPU until {@link resume}. Without a node its memory is kept on the disk; with one,
 * its programs end in good order.
 */
export async function pause(config: NamedConfig, say: Say = () => {}): Promise<Snapshot> {
  const [server, ...joined] = keptNodes(config);
  if (stateHere(refOf(server)) === "paused") throw new Error(`${commandName(config)} is paused already`);
  return await alone(config, say, async () => {
    // The server last: what ends on the others is told to it, and it is what tells that the cluster is paused.
    const running = joined.filter((node) => stateHere(refOf(node)) !== "paused");
    try {
      await onEach(running, (node) => pauseNode(node, say));
    } catch (error) {
      const paused = running.filter((node) => stateHere(refOf(node)) === "paused");
      await onEach(paused, (node) => resumeNode(node, say));
      throw error;
    }
    return await pauseNode(server, say);
  });
}

async function pauseNode(config: NamedConfig, say: Say): Promise<Snapshot> {
  return await withMachine(config, "pause", say, async (ref, keeper) => {
    const { paused } = hostPaths(ref.name, ref.home);
    needRunning(config, ref);
    const as = keptAs(config);
    if (existsSync(paused)) await drop(paused); // of before it was started otherwise
    const created = new Date();
    const keep = async (half: string) => described(config, ref, "paused", created, as, await keeper.pause(half, as));
    return await keepIn(paused, keep).catch((error: unknown) => {
      const name = commandName(config);
      const what = config.joins ? "the node" : "the cluster";
      throw fuller(error, stateHere(ref) === "running" ? `${what} runs on` : `\`gvisor-k3s up ${name}\` starts it`);
    });
  });
}

/**
 * Has a paused cluster go on.
 * @returns how: with the memory of when it was paused, or, where gVisor does not take that, by starting its programs
 */
export async function resume(config: NamedConfig, say: Say = () => {}): Promise<KeptAs> {
  const nodes = keptNodes(config);
  const name = commandName(config);
  const paused = nodes.filter((node) => stateHere(refOf(node)) === "paused");
  if (paused.length === 0) {
    const runs = stateHere(refOf(config)) === "running";
    throw new Error(
      runs ? `${name} runs already` : `${name} is not paused; \`gvisor-k3s up ${name}\` starts what is not`,
    );
  }
  return await alone(config, say, async () => {
    let how: KeptAs = "files";
    for (const node of paused) {
      const as = await resumeNode(node, say);
      if (!node.joins) how = as;
    }
    return how;
  });
}

async function resumeNode(config: NamedConfig, say: Say): Promise<KeptAs> {
  return await withMachine(config, "resume", say, async (ref, keeper) => {
    const { paused } = hostPaths(ref.name, ref.home);
    const kept = pausedWith(ref);
    const name = commandName(config);
    if (stateHere(ref) === "running") throw new Error(`${name} runs already`);
    if (kept === undefined) throw new Error(`${name} is not paused; \`gvisor-k3s up ${name}\` starts what is not`);
    const as = await goOn(keeper, paused, kept, say);
    await answers(config, ref);
    await drop(paused);
    return as;
  });
}

/** Its disk changes as soon as it runs, so that the memory is of use once. */
async function goOn(keeper: Keeper, paused: string, kept: Snapshot, say: Say): Promise<KeptAs> {
  if (kept.kind === "memory") {
    try {
      await verify(paused, kept, "memory/");
      await keeper.resume(paused, "memory");
      return "memory";
    } catch (error) {
      say(`${(error as Error).message}\nit is started anew, with what is on its disk`);
    }
  }
  await keeper.resume(paused, "files");
  return "files";
}

const keptAs = ({ mode }: StackConfig): KeptAs => (mode === "control-plane" ? "memory" : "files");

function checkName(name: string): void {
  if (SNAPSHOT_NAME.test(name)) return;
  const message = "1 to 63 letters, digits, dots, dashes and underscores are allowed, a letter or a digit at both ends";
  refuse([{ option: "SNAPSHOT", value: name, message }]);
}

/**
 * The nodes of a cluster that can be kept, the server's first.
 * @throws InputError that names those that cannot
 */
function keptNodes(config: NamedConfig): [server: NamedConfig, ...joined: NamedConfig[]] {
  needKeeper(config);
  const [server, ...joined] = nodesOf(config);
  const elsewhere = joined.filter((node) => openMachine(refOf(node)).keeper === undefined).map(({ name }) => name);
  const message = "only nodes that are made on this machine can be saved, and the others would go on by themselves";
  refuse(elsewhere.map((value) => ({ option: "nodes", value, message })));
  return [server, ...joined];
}

/** @throws InputError if the cluster's server is on no machine that can be kept */
function needKeeper(config: NamedConfig): void {
  if (config.mode !== "external" && openMachine(refOf(config)).keeper !== undefined) return;
  const message = "only a sandbox that gvisor-k3s makes on this machine can be saved: target: managed";
  refuse([{ option: config.mode === "external" ? "mode" : "target", value: config.target, message }]);
}

/** Works on a cluster's machine, alone, after what a killed command has left was cleared. */
async function withMachine<T>(
  config: NamedConfig,
  what: string,
  say: Say,
  work: (ref: MachineRef, keeper: Keeper) => Promise<T>,
): Promise<T> {
  const ref = refOf(config);
  const machine = openMachine(ref);
  const name = commandName(config);
  const { keeper } = machine;
  const record = needRecord(config, ref);
  const init = pathOnHost(record.programs.init);
  const own = existsSync(init) ? init : join(await provide(wanted({ name: "init" }), say), "sandbox-init");
  const lock = await machine.lock({ what, alone: true, init: own, say });
  try {
    const update = pulumiLocks(ref.home, name).find(({ alive }) => alive);
    if (update) throw new Error(`Pulumi works on ${name} (process ${update.pid}); try again when it has ended`);
    await dropHalfMade(ref);
    await keeper!.mend();
    return await work(ref, keeper!);
  } finally {
    lock.release();
  }
}

function needRecord(config: NamedConfig, { name, home }: MachineRef): MachineRecord {
  const record = readRecord(name, home);
  const cluster = commandName(config);
  const what = config.joins ? `the node ${name} of ${cluster}` : cluster;
  if (record === undefined) throw new Error(`${what} is not there; run \`gvisor-k3s up ${cluster}\` first`);
  if (record.version === 1) throw new Error(`${what} is of an earlier release; run \`gvisor-k3s up ${cluster}\` first`);
  return record;
}

function needRunning(config: NamedConfig, ref: MachineRef): void {
  const name = commandName(config);
  if (stateHere(ref) === "running") return;
  const how = pausedWith(ref) ? `is paused; run \`gvisor-k3s resume ${name}\` first` : "";
  throw new Error(`${name} ${how || `does not run; run \`gvisor-k3s up ${name}\` first`}`);
}

function snapshotIn(config: NamedConfig, ref: MachineRef, name: string | undefined): Snapshot {
  const cluster = commandName(config);
  if (name !== undefined) checkName(name);
  const found = name === undefined ? snapshotsOf(ref).at(-1) : manifestIn(snapshotFolder(ref, name));
  if (found !== undefined) return found;
  const which = name === undefined ? "no snapshot" : `no snapshot ${name}`;
  throw new Error(`${cluster} has ${which}; \`gvisor-k3s snapshot list ${cluster}\` names those that it has`);
}

/** What is told where a disk was found full only when it was. */
function fuller(error: unknown, state: string): Error {
  const { message } = error as Error;
  const full = /ENOSPC|no space left on device/i.test(message) ? "; the disk is full: make room, and try again" : "";
  return new Error(`${message}\n${state}${full}`, { cause: error });
}

function described(
  config: NamedConfig,
  ref: MachineRef,
  name: string,
  created: Date,
  kind: KeptAs,
  kept: Kept,
): Snapshot {
  const { revision, programs } = readRecord(ref.name, ref.home)!;
  const ready = lastReady(ref);
  return {
    version: 1,
    name,
    cluster: ref.name,
    created: created.toISOString(),
    kind,
    product: ownPackage.version,
    ...(ready?.version ? { kubernetes: ready.version } : {}),
    server: ready?.server ?? "",
    runsc: runscOf(programs.runsc!),
    init: programs.init,
    revision,
    options: optionHashes(config),
    cpu: kind === "memory" ? cpuFeatures() : [],
    ...kept,
  };
}

/** One that is built here is told by its path; of another one the content may change. */
const runscOf = (path: string) => (/\/runsc-[0-9a-f]{12}\/runsc$/.test(path) ? path : `${path} ${fileDigest(path)}`);

/** Everything that keeps a snapshot from being restored now. */
function misfits(config: NamedConfig, ref: MachineRef, kept: Snapshot): Problem[] {
  const problems: Problem[] = [];
  const wrong = (option: string, value: unknown, message: string) => problems.push({ option, value, message });
  const at = `the snapshot ${kept.name}`;
  if (kept.version !== 1) {
    wrong("SNAPSHOT", kept.name, `${at} is of a newer gvisor-k3s (${kept.product})`);
    return problems;
  }
  if (kept.cluster !== ref.name) wrong("SNAPSHOT", kept.name, `${at} is of the cluster ${kept.cluster}`);
  const record = readRecord(ref.name, ref.home)!;
  const ready = lastReady(ref);
  if (kept.server !== (ready?.server ?? "")) {
    const [was, is] = [kept.kubernetes ?? kept.server, ready?.version ?? ready?.server ?? "none"];
    wrong("SNAPSHOT", kept.name, `${at} has Kubernetes ${was} of gvisor-k3s ${kept.product}, and the cluster ${is}`);
  }
  const runsc = runscOf(record.programs.runsc!);
  if (kept.runsc !== runsc) wrong("sandbox.runsc", runsc, `${at} is of another gVisor: ${kept.runsc}`);
  const now = optionHashes(config);
  const keys = [...new Set([...Object.keys(now), ...Object.keys(kept.options)])].sort();
  for (const key of keys.filter((key) => now[key] !== kept.options[key])) {
    wrong(key, undefined, `it was another one when ${at} was made; set it back, and run \`gvisor-k3s up\` first`);
  }
  if (problems.length === 0 && (kept.revision !== record.revision || kept.init !== record.programs.init)) {
    const cluster = commandName(config);
    const remedy = `run \`gvisor-k3s pause ${cluster}\` and \`gvisor-k3s up ${cluster}\` first, which start it as its options say`;
    const message = `${at} is of a sandbox that was started otherwise, by gvisor-k3s ${kept.product}; ${remedy}`;
    wrong("SNAPSHOT", kept.name, message);
  }
  const features = kept.cpu.length === 0 ? [] : cpuFeatures();
  const lost = kept.cpu.filter((feature) => !features.includes(feature));
  if (lost.length > 0) wrong("SNAPSHOT", kept.name, `${at} needs a processor with ${lost.join(", ")}`);
  return problems;
}

/** Waits until what is on a machine answers: the API server, or the kubelet of a node that has joined one. */
async function answers(config: NamedConfig, ref: MachineRef): Promise<void> {
  if (config.joins) await nodeReady(openMachine(ref));
  else await serves(ref);
}

/** Waits until the API server says that it is ready, to who has the kubeconfig. */
async function serves({ name, home }: MachineRef): Promise<void> {
  const text = readFileSync(hostPaths(name, home).kubeconfig, "utf8");
  const { ca, certificate, key } = credentialsIn(text);
  const server = /^\s*server: (https:\S+)$/m.exec(text)?.[1];
  if (server === undefined)
    throw new Error(`${hostPaths(name, home).kubeconfig} names no server; run \`gvisor-k3s up\``);
  const asked = { ca: decoded(ca), cert: decoded(certificate), key: decoded(key), agent: false, timeout: 1000 };
  let last = "it was not asked";
  // It is in the sandbox, whose root may have it say a little at a time for ever.
  const ask = () =>
    new Promise<true | undefined>((resolve) => {
      const failed = (why: string) => {
        last = why;
        resolve(undefined);
      };
      const signal = AbortSignal.timeout(QUESTION);
      const question = request(`${server}/readyz`, { ...asked, signal }, (answer) => {
        answer.destroy(); // what it says beside that is of no interest, and need not end
        if (answer.statusCode === 200) resolve(true);
        else failed(`it answers ${answer.statusCode}`);
      });
      question.on("timeout", () => question.destroy(new Error("it takes longer than a second")));
      question.on("error", (error) => failed(error.message));
      question.end();
    });
  await waitFor("the API server answers", ANSWER, ask, () => last);
}
