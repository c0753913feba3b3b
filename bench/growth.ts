/**
 * `make growth`: a node with 10, 25, 50 and 100 pods, and as many Services, and what each costs. Everything is in
 * bench/growth.json; the table goes into bench/README.md.
 * @module
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { CoreV1Api, KubeConfig, NetworkingV1Api } from "@kubernetes/client-node";
import { artifactFolder } from "../artifacts/artifacts.ts";
import { openStack } from "../automation/workspace.ts";
import { markdown, putTable } from "../docs/markdown.ts";
import { hostPaths } from "../machines/paths.ts";
import { run } from "../system/run.ts";
import { waitFor } from "../system/wait.ts";
import { readUsage } from "./cgroup.ts";
import { writePictures } from "./pictures.ts";
import { LABEL, startPods } from "./pods.ts";
import { percentile } from "./table.ts";

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
  /** From a pod to a pod, by its address and by a Service's. */
  direct: Measurement;
  service: Measurement;
  /** As `direct`, while there are network policies. */
  filtered: Measurement;
}

/** See `measurement` in node/images/testpod. */
interface Measurement {
  milliseconds: number[];
  bytesPerSecond: number;
}

const began = Date.now();
const say = (line: string) => console.log(`[${((Date.now() - began) / 1000).toFixed(0)} s] ${line}`);
const load = loadavg()[0]!;
const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-growth-"));
process.env.GVISOR_K3S_HOME = home;
const name = "growth";
const interruption = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => interruption.abort(new Error(`ended by ${signal}`)));

const stack = await openStack(name, say);
try {
  await stack.up();
  const steps: Step[] = [];
  for (const [i, pods] of STEPS.entries()) {
    say(`${pods} pods and Services`);
    steps.push(await measure(pods, STEPS[i - 1] ?? 0));
  }
  const all = { date: new Date().toISOString(), load, steps };
  writeFileSync(join(import.meta.dirname, "growth.json"), `${JSON.stringify(all, null, 2)}\n`);
  const readme = join(import.meta.dirname, "README.md");
  writeFileSync(readme, putTable(readFileSync(readme, "utf8"), "growth", table(steps)));
  writePictures();
} finally {
  await stack.destroy();
  rmSync(home, { recursive: true, force: true });
}

async function measure(pods: number, before: number): Promise<Step> {
  const { kubeconfig } = hostPaths(name, home);
  const starts = await startPods(kubeconfig, pods - before, interruption.signal, before + 1, (api, pod) =>
    api.createNamespacedService({
      namespace: "default",
      body: { metadata: { name: pod }, spec: { selector: { [LABEL]: pod }, ports: [{ port: 80, targetPort: 8080 }] } },
    }),
  );
  await sleep(SETTLE * 1000, undefined, { signal: interruption.signal });
  const cpu = readUsage(name).cpuSeconds;
  await sleep(SETTLE * 1000, undefined, { signal: interruption.signal });
  const { memory, cpuSeconds } = readUsage(name);
  const config = new KubeConfig();
  config.loadFromFile(kubeconfig);
  const client = config.makeApiClient(CoreV1Api);
  const api: number[] = [];
  for (let i = 0; i < REQUESTS; i++) {
    const start = performance.now();
    await client.readNamespacedPod({ namespace: "default", name: "bench-1" });
    api.push(performance.now() - start);
  }
  const target = `bench-${pods}`;
  const { status } = await client.readNamespacedPod({ namespace: "default", name: target });
  const exec = (pod: string, ...command: string[]) =>
    run(
      join(artifactFolder({ name: "server" }), "gvisor-k3s-node"),
      ["kubectl", `--kubeconfig=${kubeconfig}`, "exec", pod, "--", "/testpod", ...command],
      { timeout: 120_000 },
    );
  const from = async (url: string) => JSON.parse((await exec("bench-1", "measure", url)).stdout) as Measurement;
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
      exec("bench-2", "get", direct).then(
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
    service: await from(`http://${target}`),
    filtered: await filtered(() => from(direct)),
  };
}

function table(steps: Step[]): string {
  const [first, last] = [steps[0]!, steps.at(-1)!];
  const both = (values: number[], digits: number) =>
    [0.5, 0.95].map((share) => percentile(values, share)[0]!.toFixed(digits)).join(" / ");
  const perPod = ({ memory, pods }: Step, from: Step) => ((memory - from.memory) / (pods - from.pods) / 1e6).toFixed(1);
  const rows: [string, (step: Step, i: number) => string][] = [
    ["pod start, p50 / p95, s", ({ starts }) => both(starts, 2)],
    ["memory, MB", ({ memory }) => (memory / 1e6).toFixed(0)],
    ["memory for each further pod and Service, MB", (step, i) => (i === 0 ? "" : perPod(step, steps[i - 1]!))],
    ["CPUs in use when idle", ({ idleCpu }) => idleCpu.toFixed(2)],
    ["API: reading a pod, p50 / p95, ms", ({ api }) => both(api, 1)],
    ["pod to pod, a connection and a request, p50 / p95, ms", ({ direct }) => both(direct.milliseconds, 2)],
    ["the same by a Service", ({ service }) => both(service.milliseconds, 2)],
    ["pod to pod with a network policy", ({ filtered }) => both(filtered.milliseconds, 2)],
    ["pod to pod, MB/s", ({ direct }) => (direct.bytesPerSecond / 1e6).toFixed(0)],
    ["the same by a Service", ({ service }) => (service.bytesPerSecond / 1e6).toFixed(0)],
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
