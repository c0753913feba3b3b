/**
 * How a cluster is: what runs, what does not, and what is not as it was made.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { homeFolder, sandboxPaths } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import { needsEgress } from "../config/schema.ts";
import type { Drift } from "../steps/files.ts";
import { observe } from "../steps/observe.ts";
import { isAlive, readRecord } from "../steps/record.ts";
import { run } from "../steps/run.ts";
import { type ServiceState, serviceStates } from "../steps/service.ts";
import { hasTunnel } from "../steps/tunnel.ts";
import { configuredVersion } from "../steps/upgrade.ts";
import { kubeconfigOf, kubectl, refOf } from "./cluster.ts";

/** What `status` prints with `--json`. */
export interface Status {
  name: string;
  mode: StackConfig["mode"];
  target: StackConfig["target"];
  state: "running" | "stopped" | "absent";
  /** The sandbox's process and what it uses, in bytes; null where there is no limit, or nothing is counted. */
  sandbox?: { pid: number; starts: number; memory: number | null; memoryLimit: number | null };
  services: Record<string, ServiceState>;
  node?: { name: string; ready: boolean; version: string };
  pods: { ready: number; waiting: string[] };
  /** Files that were edited or removed by hand. */
  drift: Drift[];
  /** What holds which limits. */
  limits: string;
  kubeconfigPath: string;
  /** Everything that is not as it should be; none: the cluster is well. */
  problems: string[];
}

interface KubernetesNode {
  metadata: { name: string };
  status: { conditions: { type: string; status: string; message?: string }[]; nodeInfo: { kubeletVersion: string } };
}

interface KubernetesPod {
  metadata: { name: string; namespace: string };
  status: { phase?: string; conditions?: { type: string; status: string; message?: string; reason?: string }[] };
}

const LIMITS =
  "of a pod: accounted, not enforced (gVisor's cgroups do not limit); of the whole sandbox: enforced by the host";

/**
 * Looks at a cluster, and changes nothing.
 * @throws SshError if the machine that it is on is not reached
 */
export async function status(config: StackConfig, say: (line: string) => void = () => {}): Promise<Status> {
  const { name, mode, target } = config;
  const paths = sandboxPaths(name);
  const found: Status = {
    name,
    mode,
    target,
    state: "running",
    services: {},
    pods: { ready: 0, waiting: [] },
    drift: [],
    limits: LIMITS,
    kubeconfigPath: kubeconfigOf(config),
    problems: [],
  };
  if (mode === "external") {
    found.limits = "the cluster's own";
  } else {
    const ref = refOf(config);
    const { record, alive, drift } = observe(ref);
    found.state = record === undefined ? "absent" : alive ? "running" : "stopped";
    if (record === undefined || found.state !== "running") {
      found.problems.push(found.state === "absent" ? "there is no such sandbox" : "the sandbox's process is gone");
      return found;
    }
    found.sandbox = {
      pid: record.pid,
      starts: record.incarnation,
      ...(ref.ssh ? { memory: null, memoryLimit: null } : memoryOf(name)),
    };
    found.drift = drift;
    found.problems.push(...found.drift.map(({ file, what }) => `${file} was ${what} by hand`));
    if (needsEgress(config) && !isAlive(readRecord({ record: paths.egress })))
      found.problems.push("the way out (egress) is gone: pods reach nothing outside");
    await services(config, found);
    if (ref.ssh && !hasTunnel({ name, home: homeFolder() })) {
      found.problems.push("the SSH tunnel to the API server is gone");
      return found;
    }
  }
  await kubernetes(config, found, say);
  return found;
}

async function services(config: StackConfig, found: Status): Promise<void> {
  try {
    found.services = await serviceStates(refOf(config));
  } catch (error) {
    found.problems.push(`the sandbox does not answer: ${(error as Error).message}`);
    return;
  }
  const expected = ["server", ...(config.mode === "node" ? ["containerd", "proxy"] : [])];
  for (const service of expected) {
    const state = found.services[service];
    if (!state) found.problems.push(`${service} was never started`);
    else if (state.pid === 0) found.problems.push(`${service} does not run; it ended with ${state.lastExit}`);
  }
}

async function kubernetes(config: StackConfig, found: Status, say: (line: string) => void): Promise<void> {
  if (!existsSync(found.kubeconfigPath)) {
    found.problems.push("there is no kubeconfig yet");
    return;
  }
  const [program, ...args] = await kubectl(config, say);
  const get = async <T>(kind: string): Promise<T[]> =>
    (
      JSON.parse(
        (await run(program, [...args, "--request-timeout=10s", "get", kind, "--all-namespaces", "--output=json"]))
          .stdout,
      ) as { items: T[] }
    ).items;
  try {
    const [nodes, pods] = await Promise.all([get<KubernetesNode>("nodes"), get<KubernetesPod>("pods")]);
    if (config.mode === "node") nodeState(config, found, nodes);
    for (const pod of pods) {
      const reason = waitsFor(pod);
      if (reason === undefined) found.pods.ready++;
      else found.pods.waiting.push(`${pod.metadata.namespace}/${pod.metadata.name}: ${reason}`);
    }
    if (config.mode === "node")
      found.problems.push(...found.pods.waiting.filter((line) => line.startsWith("kube-system/")));
  } catch (error) {
    found.problems.push(`the API server does not answer: ${(error as Error).message}`);
  }
}

function nodeState(config: StackConfig, found: Status, nodes: readonly KubernetesNode[]): void {
  const node = nodes.find(({ metadata }) => metadata.name === config.name);
  if (!node) {
    found.problems.push("the node is not registered");
    return;
  }
  const ready = node.status.conditions.find(({ type }) => type === "Ready");
  const version = node.status.nodeInfo.kubeletVersion;
  found.node = { name: node.metadata.name, ready: ready?.status === "True", version };
  if (!found.node.ready) found.problems.push(`the node is not Ready: ${ready?.message ?? "no condition"}`);
  const wanted = configuredVersion(config);
  if (wanted !== undefined && version !== wanted)
    found.problems.push(`the node runs ${version}, and ${wanted} is configured`);
}

/** What a pod waits for; undefined if it is ready, or done. */
function waitsFor({ status: { phase, conditions = [] } }: KubernetesPod): string | undefined {
  const ready = conditions.find(({ type }) => type === "Ready");
  if (phase === "Succeeded" || ready?.status === "True") return undefined;
  const failing = conditions.find(({ status, message }) => status !== "True" && message);
  return [phase ?? "Unknown", failing?.message].filter(Boolean).join(", ");
}

/** What the sandbox's cgroup counts, in either version of cgroups. */
function memoryOf(name: string): { memory: number | null; memoryLimit: number | null } {
  const read = (...files: string[]) => {
    const file = files.map((path) => `/sys/fs/cgroup/${path}`).find((path) => existsSync(path));
    const value = file === undefined ? Number.NaN : Number(readFileSync(file, "utf8"));
    return Number.isSafeInteger(value) ? value : null; // "max", and cgroup v1's number for it, are no limit
  };
  const [v1, v2] = [`memory/gvisor-k3s/${name}`, `gvisor-k3s/${name}`];
  return {
    memory: read(`${v1}/memory.usage_in_bytes`, `${v2}/memory.current`),
    memoryLimit: read(`${v1}/memory.limit_in_bytes`, `${v2}/memory.max`),
  };
}

/** The status as text for people. */
export function asText(found: Status): string {
  const mebibytes = (bytes: number | null) => (bytes === null ? "none" : `${Math.round(bytes / 2 ** 20)} MiB`);
  const { sandbox, node, pods } = found;
  const rows: [string, string][] = [
    [
      "cluster",
      `${found.name}, ${found.state}; mode ${found.mode}${found.mode === "external" ? "" : `, target ${found.target}`}`,
    ],
  ];
  if (sandbox)
    rows.push([
      "sandbox",
      `process ${sandbox.pid}, start ${sandbox.starts}; memory ${mebibytes(sandbox.memory)}, limit ` +
        `${mebibytes(sandbox.memoryLimit)}`,
    ]);
  for (const [service, { pid, restarts }] of Object.entries(found.services))
    rows.push([
      service,
      pid === 0
        ? "not running"
        : `running${restarts > 0 ? `, started again ${restarts} ${restarts === 1 ? "time" : "times"}` : ""}`,
    ]);
  if (node) rows.push(["node", `${node.ready ? "Ready" : "not Ready"}, ${node.version}`]);
  if (found.state === "running") {
    rows.push(
      [
        "pods",
        `${pods.ready} ready or ` +
          `done${pods.waiting.length > 0 ? `, ${pods.waiting.length} not: ${pods.waiting.join("; ")}` : ""}`,
      ],
      ["limits", found.limits],
      ["kubeconfig", found.kubeconfigPath],
    );
  }
  const advice =
    found.state === "absent"
      ? `\`gvisor-k3s up ${found.name}\` makes it`
      : `\`gvisor-k3s up ${found.name}\` repairs what it can; \`gvisor-k3s logs ${found.name}\` collects ` +
        "what tells more";
  const verdict =
    found.problems.length === 0
      ? "all is well"
      : [...found.problems.map((problem) => `! ${problem}`), "", advice].join("\n");
  return `${rows.map(([key, value]) => `${key.padEnd(11)} ${value}`).join("\n")}\n\n${verdict}\n`;
}
