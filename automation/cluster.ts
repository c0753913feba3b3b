/**
 * What the commands do, as functions for programs: each takes the stack's name, and tells how far it is by a {@link Progress}.
 * @module
 */
import { existsSync } from "node:fs";
import { rm, rmdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { EngineEvent } from "@pulumi/pulumi/automation/index.js";
import { homeFolder, hostPath, inSandbox, sandboxPaths } from "../config/paths.ts";
import { refuse } from "../config/problems.ts";
import type { QuirkId } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import { importImages } from "../steps/images.ts";
import { archiveProblem } from "../steps/preflight.ts";
import { removeDeadTrials } from "../steps/probe.ts";
import { isAlive, readRecord } from "../steps/record.ts";
import type { SandboxRef } from "../steps/sandbox.ts";
import { lastReady } from "../steps/upgrade.ts";
import { artifactFolder, build, fileDigest } from "../toolchain/artifacts.ts";
import { type Change, changeOf } from "./changes.ts";
import { forget } from "./kubeconfig.ts";
import type { Progress } from "./progress.ts";
import { checkStackConfig, openStack, setRelease } from "./workspace.ts";

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

/**
 * Makes the cluster as its options describe it.
 * @throws InputError that lists everything that is wrong with the options, before anything is made
 * @throws CommandError (Pulumi's) if a step fails, which {@link Progress} has told; what is done is kept
 */
export async function up(name: string, { progress, signal }: Options): Promise<Cluster> {
  checkStackConfig(name);
  const stack = await openStack(name, (line) => progress.say(line));
  const { outputs, summary } = await stack.up({ signal, onEvent: (event) => progress.see(event), color: "never", onError: (text) => progress.error(text.trimEnd()) });
  const values = Object.fromEntries(Object.entries(outputs).filter(([, { secret }]) => !secret).map(([output, { value }]) => [output, value]));
  return { name, ...values, resources: summary.resourceChanges ?? {}, stages: progress.stages } as Cluster;
}

/** What an upgrade did; none of the versions is known of a k3s of the user's own. */
export interface Upgrade extends Cluster {
  from?: string;
  to?: string;
}

/**
 * Takes a cluster to the versions that this gvisor-k3s brings, or to another release of k3s. Pods and data live on; what fails goes back.
 * @param to a release of k3s, which is kept in the cluster's options unless the upgrade fails
 * @throws InputError that gives the reason if it would be a downgrade, or too far at once; else as `up`
 */
export async function upgrade(name: string, to: string | undefined, options: Options): Promise<Upgrade> {
  const last = lastReady({ name, home: homeFolder() });
  if (last === undefined) refuse([{ option: "name", value: name, message: `it was never ready; run \`gvisor-k3s up ${name}\` first` }]);
  if (to !== undefined && last!.distribution !== "k3s") refuse([{ option: "--to", value: to, message: `it is for distribution: k3s; ${name} runs the server of this gvisor-k3s, and a newer one comes with a newer gvisor-k3s` }]);
  const putBack = to === undefined ? undefined : setRelease(name, to);
  try {
    const cluster = await up(name, options);
    return { from: last!.version, to: lastReady({ name, home: homeFolder() })?.version, ...cluster };
  } catch (error) {
    putBack?.();
    throw error;
  }
}

/**
 * What {@link up} would change.
 * @throws as `up`
 */
export async function preview(name: string, { progress, signal }: Options): Promise<Change[]> {
  checkStackConfig(name);
  const stack = await openStack(name, (line) => progress.say(line));
  const changes: Change[] = [];
  const see = (event: EngineEvent) => {
    if (event.diagnosticEvent?.severity === "error") progress.error(event.diagnosticEvent.message.trimEnd());
    const change = changeOf(event);
    if (change) changes.push(change);
  };
  await stack.preview({ signal, diff: true, onEvent: see, color: "never", onError: (text) => progress.error(text.trimEnd()) });
  return changes;
}

/** Removes the cluster and everything of it, its entries in the user's kubeconfig included; one that is dead or gone is no error. */
export async function destroy(name: string, { progress, signal }: Options): Promise<void> {
  const stack = await openStack(name, (line) => progress.say(line));
  await removeDeadTrials(homeFolder());
  await stack.destroy({ signal, onEvent: (event) => progress.see(event), color: "never", onError: (text) => progress.error(text.trimEnd()) });
  await stack.workspace.removeStack(name);
  await forget(name);
  const home = homeFolder();
  await rm(join(home, "project", `Pulumi.${name}.yaml`), { force: true });
  // The last stack takes its surroundings along.
  if (!existsSync(join(home, "sandboxes")) && (await stack.workspace.listStacks()).length === 0) {
    for (const entry of ["project", "pulumi", "passphrase", "kubeconfig-undo.json"]) await rm(join(home, entry), { recursive: true, force: true });
    await rmdir(home).catch(() => undefined); // something of the user's is in it
  }
}

/** What finds the sandbox of a cluster. */
export function refOf({ name, target, sandbox }: StackConfig): SandboxRef {
  const ref = { name, home: homeFolder() };
  return target === "inside" ? ref : { ...ref, runsc: sandbox.runsc ?? join(artifactFolder({ name: "runsc" }), "runsc") };
}

/** The kubeconfig's file of a cluster, whatever its mode. */
export function kubeconfigOf(config: StackConfig): string {
  return config.mode === "external" ? resolve(config.external.kubeconfig!) : hostPath(refOf(config), inSandbox.kubeconfig);
}

/**
 * The same, of a cluster that must be there.
 * @throws Error that says what to do if it is not
 */
export function kubeconfigThere(config: StackConfig): string {
  const file = kubeconfigOf(config);
  if (!existsSync(file)) throw new Error(`${config.name} has no kubeconfig yet; run \`gvisor-k3s up ${config.name}\` first`);
  return file;
}

/** kubectl of the node's own version, as a program and its first arguments. */
export async function kubectl(config: StackConfig, say: (line: string) => void): Promise<[program: string, ...args: string[]]> {
  return [join(await build({ name: "server" }, say), "gvisor-k3s-node"), "kubectl", `--kubeconfig=${kubeconfigThere(config)}`, ...(config.external.context ? [`--context=${config.external.context}`] : [])];
}

/**
 * Imports archives into a node that runs.
 * @throws InputError that names every file that is no archive of images
 */
export async function importArchives(config: StackConfig, archives: readonly string[], progress: Progress): Promise<void> {
  const files = archives.map((path) => resolve(path));
  refuse(files.flatMap(archiveProblem));
  needRunning(config);
  for (const path of files) {
    await importImages({ ...refOf(config), archives: [{ path, sha256: fileDigest(path) }] });
    progress.say(`${path} is imported`);
  }
}

/** @throws Error that says what to do if the cluster's sandbox does not run */
export function needRunning({ name }: StackConfig): void {
  if (!isAlive(readRecord(sandboxPaths(name)))) throw new Error(`${name} does not run; run \`gvisor-k3s up ${name}\` first`);
}
