/**
 * `make nodes`: clusters of several nodes on this host: what a further node takes, and what pods on two nodes have of
 * each other beside two pods on one. Everything is in bench/nodes.json; the table goes into bench/README.md.
 * @module
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { AppsV1Api, CoreV1Api, KubeConfig, type V1Node } from "@kubernetes/client-node";
import { artifactFolder, imageName } from "../artifacts/artifacts.ts";
import { openStack } from "../automation/workspace.ts";
import { markdown, putTable } from "../docs/markdown.ts";
import { hostPaths } from "../machines/paths.ts";
import { run } from "../system/run.ts";
import { waitFor } from "../system/wait.ts";
import { readUsage } from "./cgroup.ts";
import { percentile } from "./table.ts";

/** How many nodes there are, one after the other: the first two begin with nothing. */
const [TWO, FIVE, TEN] = [2, 5, 10];
/** Pods that are spread over five nodes. */
const PODS = 100;
/** Seconds that a cluster is left alone before it is read, and over which it is. */
const SETTLE = 10;

/** As `measurement` in node/images/testpod. */
interface Measurement {
  milliseconds: number[];
  bytesPerSecond: number;
}

/** A cluster of so many nodes. */
interface Figures {
  nodes: number;
  /** Seconds of the `up` that made it: from nothing, or from the cluster before. */
  up: number;
  /** Seconds from the first node's Ready to the last one's, as the API tells them. */
  lastReady: number;
  /** Bytes of each node that has joined, without file cache and without pods. */
  memory: number[];
  /** CPUs in use while nothing is asked of it, of all nodes. */
  idleCpu: number;
}

const began = Date.now();
const say = (line: string) => console.log(`[${((Date.now() - began) / 1000).toFixed(0)} s] ${line}`);
const load = loadavg()[0]!;
const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-nodes-"));
process.env.GVISOR_K3S_HOME = home;
const name = "nodes";
const interruption = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => interruption.abort(new Error(`ended by ${signal}`)));

const stack = await openStack(name, say);
await stack.setConfig("pod", { value: JSON.stringify({ enabled: false }) });
try {
  const two = await measure(TWO);
  const between = await compare();
  await stack.destroy();
  const five = await measure(FIVE);
  const spread = await spreadPods();
  const ten = await measure(TEN);
  const all = { date: new Date().toISOString(), load, figures: [two, five, ten], between, spread };
  writeFileSync(join(import.meta.dirname, "nodes.json"), `${JSON.stringify(all, null, 2)}\n`);
  const readme = join(import.meta.dirname, "README.md");
  writeFileSync(readme, putTable(readFileSync(readme, "utf8"), "nodes", table([two, five, ten], between, spread)));
} finally {
  await stack.destroy();
  rmSync(home, { recursive: true, force: true });
}

function clients() {
  const config = new KubeConfig();
  config.loadFromFile(hostPaths(name, home).kubeconfig);
  return { core: config.makeApiClient(CoreV1Api), apps: config.makeApiClient(AppsV1Api) };
}

async function measure(nodes: number): Promise<Figures> {
  say(`${nodes} nodes`);
  interruption.signal.throwIfAborted();
  await stack.setConfig("nodes", { value: JSON.stringify([{ name: "n", count: nodes - 1 }]) });
  const start = performance.now();
  await stack.up();
  const up = (performance.now() - start) / 1000;
  const { items } = await clients().core.listNode();
  const ready = items.map(readySince);
  const names = items.map(({ metadata }) => metadata!.name!);
  await sleep(SETTLE * 1000, undefined, { signal: interruption.signal });
  const cpu = () => names.reduce((sum, node) => sum + readUsage(node).cpuSeconds, 0);
  const before = cpu();
  await sleep(SETTLE * 1000, undefined, { signal: interruption.signal });
  const idleCpu = (cpu() - before) / SETTLE;
  const memory = names.filter((node) => node !== name).map((node) => readUsage(node).memory.used);
  return { nodes, up, lastReady: (Math.max(...ready) - Math.min(...ready)) / 1000, memory, idleCpu };
}

function readySince({ status }: V1Node): number {
  return status!.conditions!.find(({ type }) => type === "Ready")!.lastTransitionTime!.getTime();
}

/** What a pod has of another one on its node, and of one on another node. */
async function compare(): Promise<{ same: Measurement; other: Measurement }> {
  const { core } = clients();
  const pods = { here: name, same: name, other: `${name}-n-1` };
  for (const [pod, nodeName] of Object.entries(pods)) {
    const container = { name: "main", image: imageName("testpod"), imagePullPolicy: "Never" };
    const body = { metadata: { name: pod }, spec: { nodeName, containers: [container] } };
    await core.createNamespacedPod({ namespace: "default", body });
  }
  const addressOf = (pod: string) =>
    waitFor(`pod ${pod} is there`, 60, async () => {
      const { status } = await core.readNamespacedPod({ namespace: "default", name: pod });
      return status?.phase === "Running" ? status.podIP : undefined;
    });
  await addressOf("here");
  const from = async (pod: string) => {
    const url = `http://${await addressOf(pod)}:8080`;
    const { kubeconfig } = hostPaths(name, home);
    const { stdout } = await run(
      join(artifactFolder({ name: "server" }), "gvisor-k3s-node"),
      ["kubectl", `--kubeconfig=${kubeconfig}`, "exec", "here", "--", "/testpod", "measure", url],
      { timeout: 120_000 },
    );
    return JSON.parse(stdout) as Measurement;
  };
  return { same: await from("same"), other: await from("other") };
}

/** Seconds until pods that are spread over all nodes are Ready, and how many each node has. */
async function spreadPods(): Promise<{ seconds: number; pods: number[] }> {
  const { core, apps } = clients();
  const labels = { app: "spread" };
  const constraint = { maxSkew: 1, topologyKey: "kubernetes.io/hostname", whenUnsatisfiable: "DoNotSchedule" };
  const start = performance.now();
  await apps.createNamespacedDeployment({
    namespace: "default",
    body: {
      metadata: { name: "spread" },
      spec: {
        replicas: PODS,
        selector: { matchLabels: labels },
        template: {
          metadata: { labels },
          spec: {
            terminationGracePeriodSeconds: 0,
            topologySpreadConstraints: [{ ...constraint, labelSelector: { matchLabels: labels } }],
            containers: [{ name: "main", image: imageName("testpod"), imagePullPolicy: "Never" }],
          },
        },
      },
    },
  });
  await waitFor(`${PODS} pods are Ready`, 600, async () => {
    interruption.signal.throwIfAborted();
    const { status } = await apps.readNamespacedDeployment({ namespace: "default", name: "spread" });
    return status?.readyReplicas === PODS || undefined;
  });
  const seconds = (performance.now() - start) / 1000;
  const { items } = await core.listNamespacedPod({ namespace: "default", labelSelector: "app=spread" });
  const pods = Object.values(Object.groupBy(items, ({ spec }) => spec!.nodeName!)).map((list) => list!.length);
  await apps.deleteNamespacedDeployment({ namespace: "default", name: "spread" });
  return { seconds, pods };
}

function table(
  figures: Figures[],
  { same, other }: Awaited<ReturnType<typeof compare>>,
  { seconds, pods }: Awaited<ReturnType<typeof spreadPods>>,
): string {
  const reached = (so: boolean) => (so ? "yes" : "**no**");
  const [two, five] = figures as [Figures, Figures];
  const largest = (memory: number[]) => Math.max(...memory) / 1e6;
  const both = ({ milliseconds }: Measurement) =>
    [0.5, 0.95].map((share) => percentile(milliseconds, share)[0]!.toFixed(2)).join(" / ");
  const rows: [string, (one: Figures, i: number) => string][] = [
    ["the `up`, s", ({ up }, i) => `${up.toFixed(1)}${i < 2 ? ", from nothing" : `, from ${FIVE} nodes`}`],
    ["the first node Ready → the last, s", ({ lastReady }) => lastReady.toFixed(0)],
    ["memory of one that has joined, without pods, at most, MB", ({ memory }) => largest(memory).toFixed(0)],
    ["CPUs in use when idle, all nodes", ({ idleCpu }) => idleCpu.toFixed(2)],
  ];
  const network = (title: string, measured: Measurement) => [
    title,
    both(measured),
    (measured.bytesPerSecond / 1e6).toFixed(0),
  ];
  return [
    markdown(
      ["", ...figures.map(({ nodes }) => `${nodes} nodes`)],
      rows.map(([label, cell]) => [label, ...figures.map(cell)]),
      true,
    ),
    "",
    markdown(
      ["pod to pod", "a connection and a request, p50 / p95, ms", "MB/s"],
      [network("on one node", same), network("on two nodes", other)],
      true,
    ),
    "",
    `${PODS} pods on ${FIVE} nodes (${pods.join(", ")}) are Ready after ${seconds.toFixed(0)} s.`,
    "",
    `To reach: the second node Ready at most 5 s after the first: ${reached(two.lastReady <= 5)}; at most 130 MB for one ` +
      `without pods: ${reached(figures.every(({ memory }) => largest(memory) <= 130))}; ${FIVE} nodes in at most 60 s: ` +
      `${reached(five.up <= 60)}.`,
  ].join("\n");
}
