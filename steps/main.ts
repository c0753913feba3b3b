/**
 * What the stack's commands run: `node steps/main.ts STEP`, with the step's parameters as JSON in the variable
 * STEP_PARAMS and, where it has one, the file that it is about on standard input. On another machine, which takes no
 * variables, all of that is JSON on standard input. Every step is idempotent: it makes the described state so and says
 * what it found.
 * @module
 */
import { text } from "node:stream/consumers";
import { ensureContainerd } from "./containerd.ts";
import { ensureEgress } from "./egress.ts";
import { importImages } from "./images.ts";
import { ensureInside, removeInside } from "./inside.ts";
import { ensureManifest, removeManifest } from "./manifest.ts";
import { ensureNetwork, ensureServer, printKubeconfig } from "./node.ts";
import { observe } from "./observe.ts";
import { applyFacade, buildArtifacts, checkRuntime, downloadK3s, removeBuilt } from "./parts.ts";
import type { PodLogsParams } from "./pod.ts";
import { probeQuirks } from "./probe.ts";
import { ensureProxy } from "./proxy.ts";
import { writeRegistries } from "./registries.ts";
import { ensureSandbox, removeSandbox, type SandboxRef } from "./sandbox.ts";
import { ensureTunnel, removeTunnel } from "./tunnel.ts";

/** A step takes its parameters and its standard input, and returns what becomes the command's output. */
// Each step knows its own parameters; the component that calls it passes them typed (see StepParams).
// biome-ignore lint/suspicious/noExplicitAny: see above
type Step = (params: any, input: string) => Promise<unknown>;

/** The steps by name. */
export const steps = {
  build: buildArtifacts,
  "build-remove": removeBuilt,
  observe: async (ref: SandboxRef) => observe(ref),
  sandbox: ensureSandbox,
  "sandbox-remove": removeSandbox,
  inside: ensureInside,
  "inside-remove": removeInside,
  egress: ensureEgress,
  probe: probeQuirks,
  facade: applyFacade,
  "runtime-check": checkRuntime,
  containerd: ensureContainerd,
  registries: writeRegistries,
  k3s: downloadK3s,
  server: ensureServer,
  kubeconfig: printKubeconfig,
  tunnel: ensureTunnel,
  "tunnel-remove": removeTunnel,
  network: ensureNetwork,
  proxy: ensureProxy,
  images: importImages,
  manifest: ensureManifest,
  "manifest-remove": removeManifest,
  // Kubernetes' client takes longer to load than most steps to run, so only the step that needs it loads it.
  "pod-logs": async (params: PodLogsParams, kubeconfig: string) =>
    (await import("./pod.ts")).podLogs(params, kubeconfig),
} satisfies Record<string, Step>;

export type StepName = keyof typeof steps;

/** What a step gets on standard input where it gets no variables. */
export interface StepInput {
  params: object;
  /** What would be in variables beside the parameters. */
  environment?: Record<string, string>;
  /** What would be on standard input. */
  content?: string;
}

/** The parameters of a step. */
export type StepParams<S extends StepName> = Parameters<(typeof steps)[S]>[0];

if (import.meta.main) {
  const name = process.argv[2] ?? "";
  const step: Step | undefined = Object.hasOwn(steps, name) ? steps[name as StepName] : undefined;
  try {
    if (!step) throw new Error(`no step ${JSON.stringify(name)}; there are ${Object.keys(steps).join(", ")}`);
    const given = process.env.STEP_PARAMS;
    const input = await text(process.stdin);
    const {
      params,
      environment = {},
      content = "",
    } = given === undefined ? (JSON.parse(input) as StepInput) : { params: JSON.parse(given), content: input };
    Object.assign(process.env, environment);
    const result = await step(params, content);
    if (result !== undefined) process.stdout.write(typeof result === "string" ? result : `${JSON.stringify(result)}\n`);
  } catch (error) {
    console.error(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    process.exitCode = 1;
  }
}
