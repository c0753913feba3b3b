/**
 * `make growth`: a node with 10, 25, 50 and 100 pods, and as many Services, and what each costs. Everything is in
 * bench/growth.json; the table goes into bench/README.md.
 * @module
 */
import { setTimeout as sleep } from "node:timers/promises";
import { CoreV1Api, NetworkingV1Api } from "@kubernetes/client-node";
import { markdown } from "../docs/markdown.ts";
import { waitFor } from "../system/wait.ts";
import { readUsage } from "./cgroup.ts";
import { type ClusterBench, clusterBench, configOf, halfAndMost, type Measurement, measured } from "./clusterBench.ts";
import { writePictures } from "./pictures.ts";
import { LABEL, startPods } from "./pods.ts";
import { percentile } from "./table.ts";

const NAME = "growth";
const STEPS = [10, 25, 50, 100];
/** Seconds that the node is left alone before its memory is read. */
const SETTLE = 10;
/** Requests to the API server, one after another. */
const REQUESTS = 100;

/** A node with so many pods, and as many Services. */
interface Step {
  pods: number;
  /** Seconds from request to Ready, of the pods of this step, one after another. */
  starts: number[];
  /** Bytes, without file cache. */
  memory: number;
  /** CPUs in use while nothing is asked of it. */
  idleCpu: number;
  /** Milliseconds to read a pod, from the host. */
  api: number[];
  /** From a pod to a pod, by its address, by a Service's, and by a Service's name. */
  direct: Measurement;
  service: Measurement;
  named: Measurement;
  /** As `direct`, while there are network policies. */
  filtered: Measurement;
}

await clusterBench(NAME, async (bench) => {
  await bench.stack.up();
  const steps: Step[] = [];
  for (const [i, pods] of STEPS.entries()) {
    bench.say(`${pods} pods and Services`);
    steps.push(await measure(bench, pods, STEPS[i - 1] ?? 0));
  }
  return { figures: { steps }, table: table(steps) };
});
writePictures();

async function measure(bench: ClusterBench, pods: number, before: number): Promise<Step> {
  const { kubeconfig, signal, testpod } = bench;
  const starts = await startPods(kubeconfig, pods - before, signal, before + 1, (api, pod) =>
    api.createNamespacedService({
      namespace: "default",
      body: { metadata: { name: pod }, spec: { selector: { [LABEL]: pod }, ports: [{ port: 80, targetPort: 8080 }] } },
    }),
  );
  await sleep(SETTLE * 1000, undefined, { signal });
  const cpu = readUsage(NAME).cpuSeconds;
  await sleep(SETTLE * 1000, undefined, { signal });
  const { memory, cpuSeconds } = readUsage(NAME);
  const config = configOf(bench);
  const client = config.makeApiClient(CoreV1Api);
  const api: number[] = [];
  for (let i = 0; i < REQUESTS; i++) {
    const start = performance.now();
    await client.readNamespacedPod({ namespace: "default", name: "bench-1" });
    api.push(performance.now() - start);
  }
  const target = `bench-${pods}`;
  const { status } = await client.readNamespacedPod({ namespace: "default", name: target });
  const service = await client.readNamespacedService({ namespace: "default", name: target });
  const from = (url: string) => measured(bench, "bench-1", url);
  const direct = `http://${status!.podIP}:8080`;
  /** The target takes what comes from the first pod only, and for the time of an action this is so. */
  const filtered = async <T>(action: () => Promise<T>): Promise<T> => {
    const policies = config.makeApiClient(NetworkingV1Api);
    const selector = (pod: string) => ({ matchLabels: { [LABEL]: pod } });
    await policies.createNamespacedNetworkPolicy({
      namespace: "default",
      body: {
        metadata: { name: "bench" },
        spec: { podSelector: selector(target), ingress: [{ _from: [{ podSelector: selector("bench-1") }] }] },
      },
    });
    const refused = () =>
      testpod("bench-2", "get", direct).then(
        () => false,
        () => true,
      );
    try {
      await waitFor("the policy holds", 60, async () => (await refused()) || undefined);
      return await action();
    } finally {
      await policies.deleteNamespacedNetworkPolicy({ namespace: "default", name: "bench" });
      await waitFor("the policy is gone", 60, async () => !(await refused()) || undefined);
    }
  };
  return {
    pods,
    starts,
    memory: memory.used,
    idleCpu: (cpuSeconds - cpu) / SETTLE,
    api,
    direct: await from(direct),
    service: await from(`http://${service.spec!.clusterIP}`),
    named: await from(`http://${target}`),
    filtered: await filtered(() => from(direct)),
  };
}

function table(steps: Step[]): string {
  const [first, last] = [steps[0]!, steps.at(-1)!];
  const perPod = ({ memory, pods }: Step, from: Step) => ((memory - from.memory) / (pods - from.pods) / 1e6).toFixed(1);
  const rows: [string, (step: Step, i: number) => string][] = [
    ["pod start, p50 / p95, s", ({ starts }) => halfAndMost(starts, 2)],
    ["memory, MB", ({ memory }) => (memory / 1e6).toFixed(0)],
    ["memory for each further pod and Service, MB", (step, i) => (i === 0 ? "" : perPod(step, steps[i - 1]!))],
    ["CPUs in use when idle", ({ idleCpu }) => idleCpu.toFixed(2)],
    ["API: reading a pod, p50 / p95, ms", ({ api }) => halfAndMost(api, 1)],
    ["pod to pod, a connection and a request, p50 / p95, ms", ({ direct }) => halfAndMost(direct.milliseconds, 2)],
    ["the same by a Service's address", ({ service }) => halfAndMost(service.milliseconds, 2)],
    ["the same by a Service's name", ({ named }) => halfAndMost(named.milliseconds, 2)],
    ["pod to pod with a network policy", ({ filtered }) => halfAndMost(filtered.milliseconds, 2)],
    ["pod to pod, MB/s", ({ direct }) => (direct.bytesPerSecond / 1e6).toFixed(0)],
    ["the same by a Service's address", ({ service }) => (service.bytesPerSecond / 1e6).toFixed(0)],
    ["pod to pod with a network policy, MB/s", ({ filtered }) => (filtered.bytesPerSecond / 1e6).toFixed(0)],
  ];
  const ratio = percentile(last.starts, 0.95)[0]! / percentile(first.starts, 0.95)[0]!;
  return [
    markdown(
      ["", ...steps.map(({ pods }) => `${pods} pods, ${pods} Services`)],
      rows.map(([label, cell]) => [label, ...steps.map(cell)]),
      true,
    ),
    "",
    `To reach: pod start p95 at ${last.pods} pods within twice that at ${first.pods}: ` +
      `${ratio.toFixed(2)} times, ${ratio <= 2 ? "yes" : "**no**"}.`,
  ].join("\n");
}
