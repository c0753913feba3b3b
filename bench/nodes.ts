/**
 * `make nodes`: clusters of several nodes: what a further node takes on this host, and what pods on two nodes, or on one
 * over SSH, have of each other beside two pods on one. Everything is in bench/nodes.json; the table goes into
 * bench/README.md.
 * @module
 */
import { setTimeout as sleep } from "node:timers/promises";
import { AppsV1Api, CoreV1Api, type V1Node } from "@kubernetes/client-node";
import { imageName } from "../artifacts/artifacts.ts";
import { markdown } from "../docs/markdown.ts";
import { waitFor } from "../system/wait.ts";
import { startSshMachine } from "../test/e2e/sshMachine.ts";
import { readUsage } from "./cgroup.ts";
import { type ClusterBench, clusterBench, configOf, halfAndMost, type Measurement, measured } from "./clusterBench.ts";

const NAME = "nodes";
/** How many nodes the clusters have, each of which begins with nothing. */
const [TWO, FIVE, TEN] = [2, 5, 10];
/** Pods that are spread over five nodes. */
const PODS = 100;
/** Seconds that a cluster is left alone before it is read, and over which it is. */
const SETTLE = 10;

/** A cluster of so many nodes. */
interface Figures {
  nodes: number;
  /** Seconds of the `up` that made it from nothing. */
  up: number;
  /** Seconds from the first node's Ready to the last one's, as the API tells them. */
  lastReady: number;
  /** Bytes of each node that has joined, without file cache and without pods. */
  memory: number[];
  /** CPUs in use while nothing is asked of it, of all nodes. */
  idleCpu: number;
}

await clusterBench(NAME, async (bench) => {
  const { stack } = bench;
  await stack.setConfig("pod", { value: JSON.stringify({ enabled: false }) });
  const two = await measure(bench, TWO);
  const between = await withNodeElsewhere(bench, () => compare(bench));
  const five = await measure(bench, FIVE);
  const spread = await spreadPods(bench);
  await stack.destroy(); // or what it counts of ten has had pods
  const ten = await measure(bench, TEN);
  const figures = [two, five, ten];
  return { figures: { figures, between, spread }, table: table(figures, between, spread) };
});

async function measure(bench: ClusterBench, nodes: number): Promise<Figures> {
  const { stack, signal, say } = bench;
  say(`${nodes} nodes`);
  signal.throwIfAborted();
  await stack.setConfig("nodes", { value: JSON.stringify([{ name: "n", count: nodes - 1 }]) });
  const start = performance.now();
  await stack.up();
  const up = (performance.now() - start) / 1000;
  const { items } = await configOf(bench).makeApiClient(CoreV1Api).listNode();
  const ready = items.map(readySince);
  const names = items.map(({ metadata }) => metadata!.name!);
  await sleep(SETTLE * 1000, undefined, { signal });
  const cpu = () => names.reduce((sum, node) => sum + readUsage(node).cpuSeconds, 0);
  const before = cpu();
  await sleep(SETTLE * 1000, undefined, { signal });
  const idleCpu = (cpu() - before) / SETTLE;
  const memory = names.filter((node) => node !== NAME).map((node) => readUsage(node).memory.used);
  return { nodes, up, lastReady: (Math.max(...ready) - Math.min(...ready)) / 1000, memory, idleCpu };
}

function readySince({ status }: V1Node): number {
  return status!.conditions!.find(({ type }) => type === "Ready")!.lastTransitionTime!.getTime();
}

/** Adds a node to a cluster of two that is on a machine of its own, a sandbox with an SSH server. */
async function withNodeElsewhere<T>({ stack, home, say }: ClusterBench, work: () => Promise<T>): Promise<T> {
  say("a node over SSH");
  const machine = await startSshMachine(home, `${NAME}-far`, "10.109.31");
  try {
    const { user: privateKey, knownHosts } = machine.keys;
    const nodes = [{ name: "n" }, { name: "far", ssh: { host: machine.host, privateKey, knownHosts } }];
    await stack.setConfig("nodes", { value: JSON.stringify(nodes) });
    await stack.up();
    return await work();
  } finally {
    await stack.destroy();
    await machine.remove();
  }
}

/** What a pod has of another one on its node, of one on another node, and of one on a node over SSH. */
async function compare(bench: ClusterBench): Promise<Record<"same" | "other" | "far", Measurement>> {
  const core = configOf(bench).makeApiClient(CoreV1Api);
  const pods = { here: NAME, same: NAME, other: `${NAME}-n-1`, far: `${NAME}-far-1` };
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
  const from = async (pod: string) => await measured(bench, "here", `http://${await addressOf(pod)}:8080`);
  return { same: await from("same"), other: await from("other"), far: await from("far") };
}

/** Seconds until pods that are spread over all nodes are Ready, and how many each node has. */
async function spreadPods(bench: ClusterBench): Promise<{ seconds: number; pods: number[] }> {
  const config = configOf(bench);
  const [core, apps] = [config.makeApiClient(CoreV1Api), config.makeApiClient(AppsV1Api)];
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
    bench.signal.throwIfAborted();
    const { status } = await apps.readNamespacedDeployment({ namespace: "default", name: "spread" });
    return status?.readyReplicas === PODS || undefined;
  });
  const seconds = (performance.now() - start) / 1000;
  const { items } = await core.listNamespacedPod({ namespace: "default", labelSelector: "app=spread" });
  const pods = Object.values(Object.groupBy(items, ({ spec }) => spec!.nodeName!)).map((list) => list!.length);
  return { seconds, pods };
}

function table(
  figures: Figures[],
  { same, other, far }: Awaited<ReturnType<typeof compare>>,
  { seconds, pods }: Awaited<ReturnType<typeof spreadPods>>,
): string {
  const reached = (so: boolean) => (so ? "yes" : "**no**");
  const [two, five] = figures as [Figures, Figures];
  const largest = (memory: number[]) => Math.max(...memory) / 1e6;
  const rows: [string, (one: Figures) => string][] = [
    ["the `up`, from nothing, s", ({ up }) => up.toFixed(1)],
    ["the first node Ready → the last, s", ({ lastReady }) => lastReady.toFixed(0)],
    ["memory of one that has joined, without pods, at most, MB", ({ memory }) => largest(memory).toFixed(0)],
    ["CPUs in use when idle, all nodes", ({ idleCpu }) => idleCpu.toFixed(2)],
  ];
  const network = (title: string, has: Measurement) => [
    title,
    halfAndMost(has.milliseconds, 2),
    (has.bytesPerSecond / 1e6).toFixed(0),
  ];
  return [
    markdown(
      ["", ...figures.map(({ nodes }) => `${nodes} nodes`)],
      rows.map(([label, cell]) => [label, ...figures.map((one) => cell(one))]),
      true,
    ),
    "",
    markdown(
      ["pod to pod", "a connection and a request, p50 / p95, ms", "MB/s"],
      [
        network("on one node", same),
        network("on two nodes", other),
        network("on two nodes, one of which is a machine over SSH, beside this host", far),
      ],
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
