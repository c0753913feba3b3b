/**
 * What the commands do, as functions for programs: each takes the stack's name, and tells how far it is by a {@link
 * Progress}.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { rm, rmdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { EngineEvent, PreviewOptions } from "@pulumi/pulumi/automation/index.js";
import { homeFolder, hostPath, inSandbox, sandboxPaths } from "../config/paths.ts";
import { refuse } from "../config/problems.ts";
import type { QuirkId } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import { remotePaths, sshTarget } from "../config/ssh.ts";
import { importImages } from "../steps/images.ts";
import { observe } from "../steps/observe.ts";
import { archiveProblem } from "../steps/preflight.ts";
import { removeDeadTrials } from "../steps/probe.ts";
import { linkAddresses, removeState, type SandboxRef } from "../steps/sandbox.ts";
import { ensureTunnel, removeTunnel } from "../steps/tunnel.ts";
import { notedMachine } from "../steps/upload.ts";
import { artifactFolder, build, fileDigest } from "../toolchain/artifacts.ts";
import { type Change, changeOf } from "./changes.ts";
import { forget } from "./kubeconfig.ts";
import { isWork, nameOf, type Progress } from "./progress.ts";
import { checkStackConfig, openStack, readConfig, setRelease } from "./workspace.ts";

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
  const { outputs, summary } = await stack.up({
    signal,
    onEvent: (event) => progress.see(event),
    color: "never",
    onError: (text) => progress.error(text.trimEnd()),
  });
  const values = Object.fromEntries(
    Object.entries(outputs)
      .filter(([, { secret }]) => !secret)
      .map(([output, { value }]) => [output, value]),
  );
  return { name, ...values, resources: summary.resourceChanges ?? {}, stages: progress.stages } as Cluster;
}

/** What an upgrade did; none of the versions is known of a k3s of the user's own. */
export interface Upgrade extends Cluster {
  from?: string;
  to?: string;
}

/**
 * Takes a cluster to the versions that this gvisor-k3s brings, or to another release of k3s. Pods and data live on;
 * what fails goes back.
 * @param to a release of k3s, which is kept in the cluster's options unless the upgrade fails
 * @throws InputError that gives the reason if it would be a downgrade, or too far at once; else as `up`
 */
export async function upgrade(name: string, to: string | undefined, options: Options): Promise<Upgrade> {
  const ref = refOf(readConfig(name));
  const last = observe(ref).ready;
  if (last === undefined)
    refuse([{ option: "name", value: name, message: `it was never ready; run \`gvisor-k3s up ${name}\` first` }]);
  if (to !== undefined && last!.distribution !== "k3s")
    refuse([
      {
        option: "--to",
        value: to,
        message:
          `it is for distribution: k3s; ${name} runs the server of this gvisor-k3s, and a newer one comes ` +
          "with a newer gvisor-k3s",
      },
    ]);
  const putBack = to === undefined ? undefined : setRelease(name, to);
  try {
    const cluster = await up(name, options);
    return { from: last!.version, to: observe(ref, true).ready?.version, ...cluster };
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
  return await changesIn(progress, async (options) => await stack.preview({ ...options, signal, diff: true }));
}

/** What {@link destroy} would remove. */
export async function previewDestroy(name: string, { progress, signal }: Options): Promise<Change[]> {
  const stack = await openStack(name, (line) => progress.say(line));
  return await changesIn(progress, async (options) => await stack.previewDestroy({ ...options, signal }));
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
  await show({ onEvent, color: "never", onError: (text) => progress.error(text.trimEnd()) });
  return changes;
}

/**
 * Has Pulumi note what is no longer as it made it, such as a test pod that was deleted by hand, so that the next {@link
 * up} makes it again. It cannot ask what its commands have made: for the files and processes of a cluster see {@link
 * status}.
 * @returns the names of the resources that are not as they were made
 */
export async function refresh(name: string, { progress, signal }: Options): Promise<string[]> {
  const stack = await openStack(name, (line) => progress.say(line));
  const changed: string[] = [];
  const see = (event: EngineEvent) => {
    if (event.diagnosticEvent?.severity === "error") progress.error(event.diagnosticEvent.message.trimEnd());
    const metadata = event.resOutputsEvent?.metadata;
    if (metadata && metadata.op !== "same" && metadata.op !== "refresh" && isWork(metadata.type))
      changed.push(nameOf(metadata.urn));
  };
  await stack.refresh({ signal, onEvent: see, color: "never", onError: (text) => progress.error(text.trimEnd()) });
  return changed;
}

/**
 * Removes the cluster and everything of it, its entries in the user's kubeconfig included; one that is dead or gone is
 * no error.
 * @param forgotten that of a cluster on another machine only what is noted here is removed: the machine is gone for
 *   good
 */
export async function destroy(
  name: string,
  { progress, signal, forgotten = false }: Options & { forgotten?: boolean },
): Promise<void> {
  const home = homeFolder();
  const elsewhere = notedMachine({ name, home }) !== undefined;
  if (forgotten && !elsewhere)
    throw new Error(`${name} is not on another machine; \`gvisor-k3s destroy ${name}\` removes it`);
  const stack = await openStack(name, (line) => progress.say(line));
  await removeDeadTrials(home);
  if (forgotten) {
    await removeTunnel({ name, home });
    await removeState({ name, home });
  } else {
    await stack
      .destroy({
        signal,
        onEvent: (event) => progress.see(event),
        color: "never",
        onError: (text) => progress.error(text.trimEnd()),
      })
      .catch((error: unknown) => {
        if (elsewhere)
          progress.error(
            `if the machine is gone for good, \`gvisor-k3s destroy ${name} --forget\` removes what is noted here`,
          );
        throw error;
      });
  }
  await stack.workspace.removeStack(name, { force: forgotten });
  await forget(name);
  await rm(join(home, "project", `Pulumi.${name}.yaml`), { force: true });
  // The last stack takes its surroundings along.
  if (!existsSync(join(home, "sandboxes")) && (await stack.workspace.listStacks()).length === 0) {
    for (const entry of ["project", "pulumi", "passphrase", "kubeconfig-undo.json"])
      await rm(join(home, entry), { recursive: true, force: true });
    await rmdir(home).catch(() => undefined); // something of the user's is in it
  }
}

/** What finds the sandbox of a cluster. */
export function refOf(config: StackConfig): SandboxRef {
  const { name, target, sandbox } = config;
  const ssh = sshTarget(config);
  if (ssh) return { name, home: remotePaths.home, ssh };
  const ref = { name, home: homeFolder() };
  return target === "inside"
    ? ref
    : { ...ref, runsc: sandbox.runsc ?? join(artifactFolder({ name: "runsc" }), "runsc") };
}

/** The kubeconfig's file of a cluster, whatever its mode. */
export function kubeconfigOf(config: StackConfig): string {
  if (config.mode === "external") return resolve(config.external.kubeconfig!);
  return sshTarget(config) ? sandboxPaths(config.name).kubeconfig : hostPath(refOf(config), inSandbox.kubeconfig);
}

/**
 * The same, of a cluster that must be there.
 * @throws Error that says what to do if it is not
 */
export function kubeconfigThere(config: StackConfig): string {
  const file = kubeconfigOf(config);
  if (!existsSync(file))
    throw new Error(`${config.name} has no kubeconfig yet; run \`gvisor-k3s up ${config.name}\` first`);
  return file;
}

/**
 * kubectl of the node's own version, as a program and its first arguments. The way to a node on another machine is
 * opened again if it is gone.
 */
export async function kubectl(
  config: StackConfig,
  say: (line: string) => void,
): Promise<[program: string, ...args: string[]]> {
  const ssh = sshTarget(config);
  if (ssh) {
    const { name, node, sandbox } = config;
    await ensureTunnel(
      { name, home: homeFolder(), ssh, address: linkAddresses(sandbox.subnet).node, port: node.httpsListenPort },
      readFileSync(kubeconfigThere(config), "utf8"),
    );
  }
  return [
    join(await build({ name: "server" }, say), "gvisor-k3s-node"),
    "kubectl",
    `--kubeconfig=${kubeconfigThere(config)}`,
    ...(config.external.context ? [`--context=${config.external.context}`] : []),
  ];
}

/**
 * Imports archives into a node that runs.
 * @throws InputError that names every file that is no archive of images
 */
export async function importArchives(
  config: StackConfig,
  archives: readonly string[],
  progress: Progress,
): Promise<void> {
  const files = archives.map((path) => resolve(path));
  refuse(files.flatMap(archiveProblem));
  needRunning(config);
  for (const path of files) {
    await importImages({ ...refOf(config), archives: [{ path, sha256: fileDigest(path) }] });
    progress.say(`${path} is imported`);
  }
}

/** @throws Error that says what to do if the cluster's sandbox does not run */
export function needRunning(config: StackConfig): void {
  const { name } = config;
  if (!observe(refOf(config)).alive) throw new Error(`${name} does not run; run \`gvisor-k3s up ${name}\` first`);
}
