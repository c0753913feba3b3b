/**
 * What the commands do, as functions for programs: each takes the stack's name, and tells how far it is by a
 * {@link Progress}.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { rm, rmdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { EngineEvent, PreviewOptions, Stack } from "@pulumi/pulumi/automation/index.js";
import {
  fileDigest,
  imageName,
  manifest,
  OWN_IMAGES,
  ownImages,
  pathInSandbox,
  pathOnHost,
  provide,
  serverOf,
  wanted,
} from "../artifacts/artifacts.ts";
import { type KubernetesMinor, kubernetesMinors, minorOf, wayTo } from "../config/kubernetes.ts";
import { linkAddresses } from "../config/network.ts";
import { nodesOf } from "../config/nodes.ts";
import { inSandbox } from "../config/paths.ts";
import { refuse } from "../config/problems.ts";
import type { QuirkId } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import { diskUsage } from "../machines/disk.ts";
import { openMachine, refOf, whileLocked } from "../machines/index.ts";
import type { Machine } from "../machines/machine.ts";
import { hostPaths } from "../machines/paths.ts";
import type { MachineRef } from "../machines/ref.ts";
import { isPlanted } from "../machines/seed.ts";
import { removeDeadTrials } from "../machines/trial.ts";
import { credentialsIn } from "../servers/kubeconfig.ts";
import { lastReady, versionProblems } from "../servers/ready.ts";
import { importImages, PINNED } from "../steps/images.ts";
import { reachableKubeconfig } from "../steps/kubeconfig.ts";
import { archiveProblem } from "../steps/preflight.ts";
import { runStep } from "../steps/steps.ts";
import { VERSION } from "../steps/versions.ts";
import { roomFor } from "../system/files.ts";
import { homeFolder } from "../system/folders.ts";
import { type Change, changeOf, isSecret } from "./changes.ts";
import { forget } from "./kubeconfig.ts";
import { machineOf, machinesOf } from "./list.ts";
import { nodeOf } from "./nodes.ts";
import { commandName, type NamedConfig } from "./options.ts";
import { isWork, nameOf, type Progress } from "./progress.ts";
import { checkStackConfig, isLast, openStack, readConfig, setOption } from "./workspace.ts";

/** What `up` tells; the kubeconfig itself is a secret, and no part of it. */
export interface Cluster {
  name: string;
  address?: string;
  kubeconfigPath: string;
  quirks?: QuirkId[];
  testPod?: { name: string; phase: string; logs: string };
  /** How many resources were created, updated, left the same and so on. */
  resources: Record<string, number>;
  /** Milliseconds by resource. */
  stages: Record<string, number>;
}

interface Options {
  progress: Progress;
  /** Ends the command in good order: what runs is ended first. */
  signal?: AbortSignal;
}

/** What may be given up where it cannot be removed. */
interface Forgetful extends Options {
  /** Of what is on another machine only what is noted here is removed: the machine is gone for good. */
  forgotten?: boolean;
}

/** Has steps leave to itself what is on a machine that does not answer; they are processes of Pulumi's, and of this one. */
async function forgetting<T>(forgotten: boolean, work: () => Promise<T>): Promise<T> {
  if (!forgotten) return await work();
  process.env.GVISOR_K3S_FORGET = "1";
  try {
    return await work();
  } finally {
    delete process.env.GVISOR_K3S_FORGET;
  }
}

/** A stack whose runs ask Pulumi nothing when they have ended: events have told it, and each question is a process. */
async function stackOf(name: string, progress: Progress): Promise<Stack> {
  const stack = await openStack(name, (line) => progress.say(line));
  const answers: Partial<Stack> = { outputs: async () => ({}), info: async () => undefined };
  return Object.assign(Object.create(stack), answers) as Stack;
}

/** What has a run of Pulumi's tell its errors as they come. */
const telling = (progress: Progress) => ({
  color: "never" as const,
  onError: (text: string) => progress.error(text.trimEnd()),
});

/**
 * Makes the cluster as its options describe it.
 * @throws InputError that lists everything that is wrong with the options, before anything is made
 * @throws CommandError (Pulumi's) if a step fails, which {@link Progress} has told; what is done is kept
 */
export async function up(name: string, { progress, signal, forgotten = false }: Forgetful): Promise<Cluster> {
  await needRoom();
  const config = await checkStackConfig(name);
  if (config.mode !== "external") await provideServer(config.kubernetes, progress);
  const stack = await stackOf(name, progress);
  let outputs: Record<string, unknown> = {};
  let resources: Record<string, number> = {};
  const onEvent = (event: EngineEvent) => {
    progress.see(event);
    const metadata = event.resOutputsEvent?.metadata;
    if (metadata?.type === "pulumi:pulumi:Stack") outputs = metadata.new?.outputs ?? {};
    resources = event.summaryEvent?.resourceChanges ?? resources;
  };
  const run = () => stack.up({ ...telling(progress), signal, onEvent });
  await forgetting(forgotten, run).catch(async (error: unknown) => {
    const problem = await fullDisk();
    if (problem !== undefined) progress.error(`${problem}; make room`);
    throw error;
  });
  const values = Object.fromEntries(Object.entries(outputs).filter(([, value]) => !isSecret(value)));
  // Events tell no word that is a secret anywhere, in a path neither.
  const kubeconfigPath = kubeconfigOf(config);
  return { name, ...values, kubeconfigPath, resources, stages: progress.stages } as Cluster;
}

/** What an upgrade did; none of the versions is known of a k3s of the user's own. */
export interface Upgrade extends Cluster {
  from?: string;
  to?: string;
}

/**
 * Takes a cluster to the versions that this gvisor-k3s brings, to another minor version of Kubernetes, or to another
 * release of k3s, one minor version at a time. Pods and data live on; what fails goes back to the version before it.
 * @param to a minor version of Kubernetes such as 1.37, or a release of k3s; it is kept in the cluster's options, where
 *   after a failure the version is that the cluster runs
 * @throws InputError that gives the reason if it would be a downgrade, or too far at once; else as `up`
 */
export async function upgrade(name: string, to: string | undefined, options: Options): Promise<Upgrade> {
  const config = await readConfig(name);
  const ref = refOf(config);
  const last = lastReady(ref);
  if (last === undefined) {
    refuse([{ option: "name", value: name, message: `it was never ready; run \`gvisor-k3s up ${name}\` first` }]);
  }
  const { distribution, version } = last!;
  const { path, way } = distribution === "k3s" ? releaseWay(to) : minorWay(to, version, config);
  if (distribution === "embedded") {
    refuse(versionProblems(last, { ...config, kubernetes: way[0] as KubernetesMinor }));
    for (const minor of way) await provideServer(minor as KubernetesMinor, options.progress);
  }
  let original: (() => Promise<void>) | undefined;
  const take = async (value: string) => {
    const putBack = await setOption(name, path, value);
    original ??= putBack;
  };
  let cluster: Cluster;
  for (const [index, next] of way.entries()) {
    const before = lastReady(ref)?.version;
    if (way.length > 1) options.progress.say(`${index + 1} of ${way.length}: Kubernetes ${next}`);
    // Where none was asked for, the last one is what the options say.
    if (to === undefined && index === way.length - 1) await original?.();
    else await take(next);
    cluster = await up(name, options).catch(async (error: unknown) => {
      // What fails when the server is ready already leaves that as it is.
      if (lastReady(ref)?.version === before) {
        await (index === 0 ? original?.() : take(way[index - 1]!));
        if (index > 0) options.progress.error(`${name} is at ${way[index - 1]} now, and its options say so`);
      }
      throw error;
    });
  }
  return { from: version, to: lastReady(ref)?.version, ...cluster! };
}

/** The option by which an upgrade goes on its way, and its values one after the other; at least one. */
interface Way {
  path: string[];
  way: string[];
}

const releaseWay = (to = "as configured"): Way => ({ path: ["k3s", "version"], way: [to] });

/** The way of the server that is built here: a patch version has to be the one that this gvisor-k3s brings. */
function minorWay(to: string | undefined, from: string | undefined, config: StackConfig): Way {
  const asked = to?.replace(/^v/, "") ?? config.kubernetes;
  const brought = manifest().kubernetes;
  const target = kubernetesMinors.find((minor) => asked === minor || asked === brought[minor]);
  if (target === undefined) {
    const versions = kubernetesMinors.map((minor) => `${minor} (v${brought[minor]})`).join(", ");
    refuse([{ option: "--to", value: to, message: `allowed: ${versions}; others come with another gvisor-k3s` }]);
  }
  return { path: ["kubernetes"], way: from === undefined ? [target!] : wayTo(minorOf(from), target!) };
}

/** Has the server of a version there before anything is changed: to build it takes minutes. */
async function provideServer(minor: KubernetesMinor, progress: Progress): Promise<void> {
  await provide(wanted({ name: serverOf(minor) }), (line) => progress.say(line));
}

/**
 * What {@link up} would change.
 * @throws as `up`
 */
export async function preview(name: string, { progress, signal }: Options): Promise<Change[]> {
  await needRoom();
  await checkStackConfig(name);
  const stack = await stackOf(name, progress);
  return await changesIn(progress, async (options) => await stack.preview({ ...options, signal, diff: true }));
}

/** What {@link destroy} would remove. */
export async function previewDestroy(name: string, { progress, signal }: Options): Promise<Change[]> {
  const stack = await stackOf(name, progress);
  const known = await changesIn(progress, async (options) => await stack.previewDestroy({ ...options, signal }));
  const resource = "sandbox-process";
  if (machinesOf(name).length === 0 || known.some((change) => change.resource === resource)) return known;
  return [...known, { resource, operation: "delete", effect: "is removed", diffs: [] }]; // see removeMachines
}

/** The changes that a preview tells, whose errors are told as they come. */
async function changesIn(
  progress: Progress,
  show: (options: Pick<PreviewOptions, "onEvent" | "onError" | "color">) => Promise<unknown>,
): Promise<Change[]> {
  const changes: Change[] = [];
  const onEvent = (event: EngineEvent) => {
    if (event.diagnosticEvent?.severity === "error") progress.error(event.diagnosticEvent.message.trimEnd());
    const change = changeOf(event);
    if (change) changes.push(change);
  };
  await show({ ...telling(progress), onEvent });
  return changes;
}

/**
 * Has Pulumi note what is no longer as it made it, such as a test pod that was deleted by hand, so that the next {@link
 * up} makes it again. It cannot ask what its commands have made: for the files and processes of a cluster see {@link
 * status}.
 * @returns the names of the resources that are not as they were made
 */
export async function refresh(name: string, { progress, signal }: Options): Promise<string[]> {
  await needRoom();
  const stack = await stackOf(name, progress);
  const changed: string[] = [];
  const see = (event: EngineEvent) => {
    if (event.diagnosticEvent?.severity === "error") progress.error(event.diagnosticEvent.message.trimEnd());
    const metadata = event.resOutputsEvent?.metadata;
    if (metadata && metadata.op !== "same" && metadata.op !== "refresh" && isWork(metadata.type))
      changed.push(nameOf(metadata.urn));
  };
  await stack.refresh({ ...telling(progress), signal, onEvent: see });
  return changed;
}

/**
 * Removes the cluster and everything of it, its entries in the user's kubeconfig included; one that is dead or gone is no
 * error.
 */
export async function destroy(name: string, { progress, signal, forgotten = false }: Forgetful): Promise<void> {
  const home = homeFolder();
  const names = await namesOf(name);
  const [cluster] = names;
  const ref = machineOf(name, cluster);
  const machine = ref && openMachine(ref);
  const elsewhere = machinesOf(name).filter((found) => openMachine(found).forget !== undefined);
  if (forgotten && elsewhere.length === 0 && machine?.forget === undefined) {
    throw new Error(`${name} has nothing on another machine; \`gvisor-k3s destroy ${name}\` removes it`);
  }
  // Of a cluster whose server is elsewhere nothing is asked of anybody.
  const whole = forgotten && machine?.forget !== undefined;
  // On a disk that is full Pulumi could not note that the sandbox is gone, which is what makes room.
  const remove = () => forgetting(forgotten, () => removeMachines(name, names, progress));
  if (!whole && (await fullDisk()) !== undefined) await remove();
  const stack = await stackOf(name, progress);
  await removeDeadTrials(home);
  if (whole) {
    await machine.forget!();
  } else {
    const onEvent = (event: EngineEvent) => progress.see(event);
    const run = () => stack.destroy({ ...telling(progress), signal, onEvent });
    await forgetting(forgotten, run).catch((error: unknown) => {
      const advice = `\`gvisor-k3s destroy ${name} --forget\` removes what is noted here`;
      if (elsewhere.length > 0) progress.error(`if a machine is gone for good, ${advice}`);
      throw error;
    });
    await remove(); // of an `up` that was killed before it was noted in Pulumi's state
  }
  await stack.workspace.removeStack(name, { force: whole });
  await forget(name);
  await rm(join(home, "project", `Pulumi.${name}.yaml`), { force: true });
  // The last stack takes its surroundings along.
  if (!existsSync(join(home, "sandboxes")) && (await isLast(stack))) {
    for (const entry of ["project", "pulumi", "passphrase", "kubeconfig-undo.json"]) {
      await rm(join(home, entry), { recursive: true, force: true });
    }
    await rmdir(home).catch(() => undefined); // something of the user's is in it
  }
}

/** What an update takes of the home folder's disk for Pulumi's state and what is noted, in MiB. */
const NEEDED_MIB = 16;

/** What is said of a disk on which an update could not note what it does; undefined if there is room. */
async function fullDisk(): Promise<string | undefined> {
  const { existing, free } = await roomFor(homeFolder());
  if (free >= NEEDED_MIB) return undefined;
  return `no space: ${existing} has ${free} MiB free, and ${NEEDED_MIB} MiB are needed to note what is done`;
}

/** @throws Error that names the disk if it is full */
async function needRoom(): Promise<void> {
  const problem = await fullDisk();
  if (problem !== undefined) throw new Error(`${problem}; nothing was changed. Make room, and run it again`);
}

/** Removes what is a stack's by what is written down, without Pulumi. */
async function removeMachines(stack: string, names: readonly string[], progress: Progress): Promise<void> {
  for (const machine of machinesOf(stack)) {
    progress.say(`removing the sandbox ${machine.name}`);
    await runStep("sandbox-remove", { version: VERSION, machine }, "");
  }
  // What a fork that was not started has left: nothing but the other cluster's data.
  for (const name of names) {
    const machine: MachineRef = { kind: "managed", name, home: homeFolder() };
    if (isPlanted(machine)) await runStep("sandbox-remove", { version: VERSION, machine }, "");
  }
}

/** What the nodes of a stack are called, the server's first; the stack's own name where its options cannot be read. */
async function namesOf(stack: string): Promise<[server: string, ...joined: string[]]> {
  return await readConfig(stack).then(
    (config) => {
      const [{ name }, ...joined] = nodesOf(config);
      return [name, ...joined.map((node) => node.name)];
    },
    () => [stack],
  );
}

/** The kubeconfig's file of a cluster, whatever its mode. */
export function kubeconfigOf(config: StackConfig): string {
  if (config.mode === "external") return resolve(config.external.kubeconfig!);
  return hostPaths(config.name, homeFolder()).kubeconfig;
}

/**
 * The same, of a cluster that must be there.
 * @throws Error that says what to do if it is not
 */
export function kubeconfigThere(config: NamedConfig): string {
  const file = kubeconfigOf(config);
  if (existsSync(file)) return file;
  const name = commandName(config);
  throw new Error(`${name} has no kubeconfig yet; run \`gvisor-k3s up ${name}\` first`);
}

/**
 * kubectl of the node's own version, as a program and its first arguments. The way to a node on another machine is opened
 * again if it is gone.
 */
export async function kubectl(
  config: NamedConfig,
  say: (line: string) => void,
): Promise<[program: string, ...args: string[]]> {
  const file = kubeconfigThere(config);
  const { mode, sandbox, node, external } = config;
  if (mode !== "external") {
    const { node: address } = linkAddresses(sandbox.subnet);
    const credentials = credentialsIn(readFileSync(file, "utf8"));
    await reachableKubeconfig(openMachine(refOf(config)), credentials, address, node.httpsListenPort);
  }
  const context = external.context ? [`--context=${external.context}`] : [];
  return [await kubectlProgram(config, say), "kubectl", `--kubeconfig=${file}`, ...context];
}

/** The program that the node's server came with; today's where there is none, or the cache was emptied. */
async function kubectlProgram(config: StackConfig, say: (line: string) => void): Promise<string> {
  const last = config.mode === "external" ? undefined : lastReady(refOf(config));
  const noted = last?.kubectl ?? (last?.distribution === "embedded" ? last.server : undefined);
  if (noted !== undefined && existsSync(pathOnHost(noted))) return pathOnHost(noted);
  return join(await provide(wanted({ name: serverOf(config.kubernetes) }), say), "gvisor-k3s-node");
}

/**
 * Imports archives into every node of a cluster that runs.
 * @param node into which one alone, by its name
 * @throws InputError that names every file that is no archive of images, or lists the nodes if there is none of that name
 */
export async function importArchives(
  config: NamedConfig,
  archives: readonly string[],
  progress: Progress,
  node?: string,
): Promise<void> {
  const files = archives.map((path) => resolve(path));
  refuse(files.flatMap(archiveProblem));
  const nodes = node === undefined ? nodesOf(config) : [nodeOf(config, node)];
  const machines = await Promise.all(nodes.map(needRunning));
  const say = (line: string) => progress.say(line);
  const ctr = pathInSandbox({ name: "containerd" }, "ctr");
  for (const path of files) {
    const archives = [{ path, sha256: fileDigest(path) }];
    for (const machine of machines) {
      const params = { machine: machine.ref, ctr, takes: [], programs: [], labels: [PINNED], archives };
      const context = { machine, content: "", incarnation: 0, repairs: 0, say };
      const lock = { what: importImages.name(params), alone: false, say };
      await whileLocked(machine, lock, () => importImages.run(params, context));
    }
    progress.say(`${path} is imported`);
  }
}

/** What {@link pruneImages} has removed. */
export interface Pruned {
  /** The names of each image, and its size in bytes as it was pulled: compressed. */
  images: { id: string; names: string[]; bytes: number }[];
  /** Bytes of the disk that are free again; undefined where the machine does not tell. */
  freed?: number;
}

/**
 * Removes the images that no container uses from every node of a cluster that runs. What was imported from archives
 * stays, and so do the node's own images but those of an earlier release.
 * @param imported removes what was imported from archives as well
 * @throws Error with the names of those that cannot be removed
 */
export async function pruneImages(config: NamedConfig, imported: boolean, progress: Progress): Promise<Pruned> {
  const pruned: Pruned[] = [];
  for (const node of nodesOf(config)) pruned.push(await pruneNode(node, imported, progress));
  const freed = pruned.map((one) => one.freed).filter((bytes) => bytes !== undefined);
  return {
    images: pruned.flatMap(({ images }) => images),
    ...(freed.length === pruned.length ? { freed: freed.reduce((sum, bytes) => sum + bytes) } : {}),
  };
}

async function pruneNode(config: NamedConfig, imported: boolean, progress: Progress): Promise<Pruned> {
  const machine = await needRunning(config);
  const say = (line: string) => progress.say(line);
  const server = { name: serverOf(config.kubernetes) };
  await machine.upload([await provide(wanted(server), say)], say);
  const before = await diskUsage(machine);
  const { stdout } = await machine.exec(
    [
      pathInSandbox(server, "gvisor-k3s-node"),
      "prune",
      `--endpoint=unix://${inSandbox.containerdSocket}`,
      ...(imported ? ["--imported"] : []),
      `--own=${OWN_IMAGES}`,
      ...ownImages.map((image) => `--keep=${imageName(image)}`),
    ],
    { timeout: PRUNE },
  );
  const images = JSON.parse(stdout) as Pruned["images"];
  const after = await diskUsage(machine);
  return { images, ...(before && after ? { freed: Math.max(0, before.images - after.images) } : {}) };
}

/** Milliseconds that it may take. */
const PRUNE = 6 * 60_000;

/** @throws Error that says what to do if the cluster's machine does not run */
export async function needRunning(config: NamedConfig): Promise<Machine> {
  const name = commandName(config);
  const machine = openMachine(refOf(config));
  const { state } = await machine.observe();
  if (state === "running") return machine;
  const how = state === "silent" ? "does not answer" : "does not run";
  const what = config.joins ? `${config.name} of ${name}` : name;
  throw new Error(`${what} ${how}; run \`gvisor-k3s up ${name}\` first`);
}
