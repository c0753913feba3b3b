/**
 * `make bench-k3s K3S=FILE`: the same cluster of one node by either distribution, in turn. Everything is in
 * bench/k3s.json; the table goes into bench/README.md.
 * @module
 */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { VersionApi } from "@kubernetes/client-node";
import { markdown } from "../docs/markdown.ts";
import { readUsage } from "./cgroup.ts";
import { type ClusterBench, clusterBench, configOf } from "./clusterBench.ts";
import { percentile } from "./table.ts";

const NAME = "k3s";
const ROUNDS = 3;
/** Seconds that a cluster is left alone before its memory is read, and over which its idle CPU time is taken. */
const SETTLE = 10;

/** One cluster, from nothing. */
interface Figures {
  distribution: "embedded" | "k3s";
  kubernetes: string;
  /** Seconds of the `up`, with a pod and the addons. */
  up: number;
  /** CPU time of the sandbox until its end, in seconds. */
  cpuSeconds: number;
  /** Bytes with one pod, without file cache. */
  memory: number;
  /** CPUs in use while nothing is asked of it. */
  idleCpu: number;
}

const { values: options } = parseArgs({ options: { k3s: { type: "string" } } });
if (options.k3s === undefined) {
  console.error("--k3s: the path of a k3s is needed (make bench-k3s K3S=/path/to/k3s)");
  process.exit(2);
}
const path = options.k3s;

await clusterBench(NAME, async (bench) => {
  const figures: Figures[] = [];
  for (let round = 1; round <= ROUNDS; round++) {
    for (const distribution of ["embedded", "k3s"] as const) {
      bench.say(`round ${round} of ${ROUNDS}: ${distribution}`);
      figures.push(await measure(bench, distribution));
    }
  }
  return { figures: { figures }, table: table(figures) };
});

async function measure(bench: ClusterBench, distribution: Figures["distribution"]): Promise<Figures> {
  const { stack, signal } = bench;
  signal.throwIfAborted();
  for (const key of Object.keys(await stack.getAllConfig())) await stack.removeConfig(key);
  await stack.setConfig("distribution", { value: distribution });
  if (distribution === "k3s") await stack.setConfig("k3s", { value: JSON.stringify({ path }) });
  const start = performance.now();
  await stack.up();
  const up = (performance.now() - start) / 1000;
  const { cpuSeconds } = readUsage(NAME);
  const { gitVersion: kubernetes } = await configOf(bench).makeApiClient(VersionApi).getCode();
  await sleep(SETTLE * 1000, undefined, { signal });
  const settled = readUsage(NAME);
  await sleep(SETTLE * 1000, undefined, { signal });
  const idleCpu = (readUsage(NAME).cpuSeconds - settled.cpuSeconds) / SETTLE;
  await stack.destroy();
  return { distribution, kubernetes, up, cpuSeconds, memory: settled.memory.used, idleCpu };
}

function table(figures: Figures[]): string {
  const [embedded, k3s] = (["embedded", "k3s"] as const).map((one) =>
    figures.filter(({ distribution }) => distribution === one),
  ) as [Figures[], Figures[]];
  const median = (runs: Figures[], of: (run: Figures) => number) => percentile(runs.map(of), 0.5)[0]!;
  const row = (label: string, of: (run: Figures) => number, digits: number) => {
    const [ours, its] = [median(embedded, of), median(k3s, of)];
    return [label, ours.toFixed(digits), its.toFixed(digits), (its / ours).toFixed(2)];
  };
  return markdown(
    ["", `embedded, ${embedded[0]!.kubernetes}`, `k3s, ${k3s[0]!.kubernetes}`, "k3s ÷ embedded"],
    [
      row("the `up`, from nothing, s", ({ up }) => up, 1),
      row("the sandbox's CPU time until its end, s", ({ cpuSeconds }) => cpuSeconds, 1),
      row("memory with one pod, MB", ({ memory }) => memory / 1e6, 0),
      row("CPUs in use when idle", ({ idleCpu }) => idleCpu, 2),
    ],
    true,
  );
}
