/**
 * What the benches that fill a cluster of their own have in common: a home folder that goes with it, an end in good
 * order, the test pod's measurements, and where the figures are kept.
 * @module
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { KubeConfig } from "@kubernetes/client-node";
import type { Stack } from "@pulumi/pulumi/automation/index.js";
import { artifactFolder } from "../artifacts/artifacts.ts";
import { openStack } from "../automation/workspace.ts";
import { putTable } from "../docs/markdown.ts";
import { hostPaths } from "../machines/paths.ts";
import { run } from "../system/run.ts";
import { percentile } from "./table.ts";

/** See `measurement` in node/images/testpod. */
export interface Measurement {
  milliseconds: number[];
  bytesPerSecond: number;
}

/** What a bench works with. */
export interface ClusterBench {
  /** The cluster's, which is not up yet. */
  stack: Stack;
  /** A home folder of its own. */
  home: string;
  /** The kubeconfig's file, once it is. */
  kubeconfig: string;
  /** Ended by an interruption. */
  signal: AbortSignal;
  say: (line: string) => void;
  /** Runs the test pod's program in one of its pods. */
  testpod: (pod: string, ...command: string[]) => Promise<string>;
}

/**
 * Runs a bench, and keeps its figures in bench/NAME.json and its table in bench/README.md.
 * @param name the bench's, which is the cluster's too
 */
export async function clusterBench(
  name: string,
  work: (bench: ClusterBench) => Promise<{ figures: object; table: string }>,
): Promise<void> {
  const began = Date.now();
  const load = loadavg()[0]!;
  const say = (line: string) => console.log(`[${((Date.now() - began) / 1000).toFixed(0)} s] ${line}`);
  const home = mkdtempSync(join(tmpdir(), `gvisor-k3s-${name}-`));
  process.env.GVISOR_K3S_HOME = home;
  const interruption = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.on(signal, () => interruption.abort(new Error(`ended by ${signal}`)));
  const { kubeconfig } = hostPaths(name, home);
  const kubectl = join(artifactFolder({ name: "server" }), "gvisor-k3s-node");
  const testpod = async (pod: string, ...command: string[]) => {
    const args = ["kubectl", `--kubeconfig=${kubeconfig}`, "exec", pod, "--", "/testpod", ...command];
    return (await run(kubectl, args, { timeout: 120_000 })).stdout;
  };
  const stack = await openStack(name, say);
  try {
    const { figures, table } = await work({ stack, home, kubeconfig, signal: interruption.signal, say, testpod });
    const all = { date: new Date().toISOString(), load, ...figures };
    writeFileSync(join(import.meta.dirname, `${name}.json`), `${JSON.stringify(all, null, 2)}\n`);
    const readme = join(import.meta.dirname, "README.md");
    writeFileSync(readme, putTable(readFileSync(readme, "utf8"), name, table));
  } finally {
    await stack.destroy();
    rmSync(home, { recursive: true, force: true });
  }
}

/** What a pod has of what answers at an address. */
export async function measured({ testpod }: ClusterBench, pod: string, url: string): Promise<Measurement> {
  return JSON.parse(await testpod(pod, "measure", url)) as Measurement;
}

/** How a cluster is asked. */
export function configOf({ kubeconfig }: ClusterBench): KubeConfig {
  const config = new KubeConfig();
  config.loadFromFile(kubeconfig);
  return config;
}

/** The median, and what all but a twentieth stay below. */
export const halfAndMost = (values: number[], digits: number) =>
  [0.5, 0.95].map((share) => percentile(values, share)[0]!.toFixed(digits)).join(" / ");
