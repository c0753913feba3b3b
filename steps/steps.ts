/**
 * The steps, and what runs one. Every step is idempotent: it makes the described state so and says what it found. While
 * it works, nobody else does the same on that machine; see `Machine.lock`.
 * @module
 */
import { text } from "node:stream/consumers";
import { openMachine, whileLocked } from "../machines/index.ts";
import { lastLines } from "../system/run.ts";
import { ensureContainerd } from "./containerd.ts";
import { ensureControllers } from "./controllers.ts";
import { applyFacade } from "./facade.ts";
import { provideFiles, removeFiles } from "./files.ts";
import { importImages } from "./images.ts";
import { joinServer } from "./join.ts";
import { downloadK3s } from "./k3s.ts";
import { writeKubeconfig } from "./kubeconfig.ts";
import { ensureManifest, removeManifest } from "./manifest.ts";
import { inviteNode, removeNode, returnNode } from "./member.ts";
import { ensureNetwork } from "./network.ts";
import type { PodLogsParams } from "./podLogs.ts";
import { probeQuirks } from "./probe.ts";
import { ensureProxy } from "./proxy.ts";
import { awaitNode } from "./ready.ts";
import { writeRegistries } from "./registries.ts";
import { buildRuntime, checkRuntime } from "./runtime.ts";
import { removeSandbox, startSandbox } from "./sandbox.ts";
import { ensureServer } from "./server.ts";
import type { OnMachine, Step } from "./step.ts";
import { currentForm, removeBuilt, removeTunnel } from "./versions.ts";

/** The steps by name. */
export const steps = {
  sandbox: startSandbox,
  "sandbox-remove": removeSandbox,
  build: buildRuntime,
  probe: probeQuirks,
  facade: applyFacade,
  "runtime-check": checkRuntime,
  containerd: ensureContainerd,
  registries: writeRegistries,
  k3s: downloadK3s,
  files: provideFiles,
  "files-remove": removeFiles,
  server: ensureServer,
  ready: awaitNode,
  kubeconfig: writeKubeconfig,
  network: ensureNetwork,
  proxy: ensureProxy,
  controllers: ensureControllers,
  images: importImages,
  manifest: ensureManifest,
  "manifest-remove": removeManifest,
  member: inviteNode,
  "member-remove": removeNode,
  "member-return": returnNode,
  join: joinServer,
} satisfies Record<string, Step<never, unknown>>;

/** What is done on no machine, or only for clusters that an earlier release made. */
const others: Record<string, (params: never, content: string) => Promise<unknown>> = {
  // Kubernetes' client takes longer to load than most steps to run, so only the step that needs it loads it.
  "pod-logs": async (params: PodLogsParams, content) => (await import("./podLogs.ts")).podLogs(params, content),
  "tunnel-remove": removeTunnel,
  "build-remove": removeBuilt,
};

/** The steps that are done on a machine. */
export type StepName = keyof typeof steps;

/** The parameters of a step. */
export type StepParams<S extends StepName> = Parameters<(typeof steps)[S]["run"]>[0];

const say = (line: string) => console.error(line);

/**
 * Does a step.
 * @param given the parameters, of this release or of an earlier one
 */
export async function runStep(name: string, given: object, content: string): Promise<unknown> {
  const { step: current, params } = currentForm(name, given);
  if (Object.hasOwn(others, current)) return await others[current]!(params as never, content);
  if (!Object.hasOwn(steps, current))
    throw new Error(`there is no such step; there are ${Object.keys(steps).join(", ")}`);
  const step = steps[current as StepName] as unknown as Step<OnMachine, unknown>;
  const machine = openMachine((params as OnMachine).machine);
  const incarnation = Number(process.env.SANDBOX_INCARNATION ?? 0);
  const repairs = Number(process.env.STEP_REPAIRS ?? 0);
  const below = Number(process.env.BELOW_REPAIRS ?? 0);
  const last = current === "sandbox-remove";
  const lock = { what: step.name(params as never), alone: step.alone ?? false, last, say };
  const context = { machine, content, incarnation, repairs, below, say };
  return await whileLocked(machine, lock, () => step.run(params as never, context));
}

/** Runs the step that the command line names; steps/main.ts says how. */
export async function main(): Promise<void> {
  const name = process.argv[2] ?? "";
  try {
    const given = JSON.parse(process.env.STEP_PARAMS ?? "{}") as object;
    const result = await runStep(name, given, await text(process.stdin));
    if (result !== undefined) process.stdout.write(typeof result === "string" ? result : `${JSON.stringify(result)}\n`);
  } catch (error) {
    // What it says may be the sandbox's words.
    console.error(`${name}: ${lastLines(error instanceof Error ? error.message : String(error), 200)}`);
    process.exitCode = 1;
  }
}
