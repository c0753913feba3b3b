/**
 * How a cluster is: what runs, what does not, and what is not as it was made.
 * @module
 */
import { existsSync, statSync } from "node:fs";
import { nodesOf } from "../config/nodes.ts";
import type { StackConfig } from "../config/schema.ts";
import { type DiskUsage, diskUsage } from "../machines/disk.ts";
import { openMachine, refOf, stateHere } from "../machines/index.ts";
import type { Machine } from "../machines/machine.ts";
import type { Observed } from "../machines/observe.ts";
import { hostPaths } from "../machines/paths.ts";
import { LINK_SERVICE, type ServiceState, serviceStates } from "../machines/services.ts";
import type { Drift } from "../machines/written.ts";
import { distributionOf } from "../servers/index.ts";
import { filesBelow } from "../system/files.ts";
import { homeFolder } from "../system/folders.ts";
import { oneLine, printable, run } from "../system/run.ts";
import { kubeconfigOf, kubectl } from "./cluster.ts";
import { commandName, type NamedConfig } from "./options.ts";

/** What `status` prints with `--json`. */
export interface Status {
  /** What commands call it: its stack. */
  name: string;
  /** The option `name`, which is the node's name and the sandbox's. */
  cluster: string;
  mode: StackConfig["mode"];
  target: StackConfig["target"];
  state: "running" | "stopped" | "paused" | "absent";
  /** The sandbox's process and what it uses, in bytes; null where there is no limit, or nothing is counted. */
  sandbox?: {
    pid: number;
    /** By `up`. */
    starts: number;
    /** By its supervisor, since the last of these. */
    restarts: number;
    memory: number | null;
    memoryLimit: number | null;
  };
  /** What is on its disk, in bytes, and what the host keeps of its logs; of a machine that runs and can tell. */
  disk?: DiskUsage & { hostLogs: number };
  services: Record<string, ServiceState>;
  node?: NodeState;
  /** The nodes that have joined it. */
  joined: NodeState[];
  pods: { ready: number; waiting: string[] };
  /** Files that were edited or removed by hand. */
  drift: Drift[];
  /** What holds which limits. */
  limits: string;
  /** What is missed with the distribution that runs. */
  lacks: readonly string[];
  kubeconfigPath: string;
  /** Everything that is not as it should be; none: the cluster is well. */
  problems: string[];
}

/** How a node is. */
export interface NodeState {
  name: string;
  ready: boolean;
  version: string;
}

interface KubernetesNode {
  metadata: { name: string };
  status: { conditions: { type: string; status: string; message?: string }[]; nodeInfo: { kubeletVersion: string } };
}

interface KubernetesPod {
  metadata: { name: string; namespace: string };
  status: { phase?: string; conditions?: { type: string; status: string; message?: string; reason?: string }[] };
}

/** Bytes that are free on a disk when it is told that it is nearly full; of a small one, a tenth of it. */
const NEARLY_FULL = 2 ** 30;

const LIMITS =
  "memory and processes of a container: enforced (sandbox-init); CPU of a pod: not, gVisor has no quota; " +
  "of the whole sandbox: enforced by the host";

/**
 * Looks at a cluster, and changes nothing.
 * @throws InputError if the machine that it is on is not reached
 */
export async function status(config: NamedConfig, say: (line: string) => void = () => {}): Promise<Status> {
  const { name, mode, target } = config;
  const found: Status = {
    name: commandName(config),
    cluster: name,
    mode,
    target,
    state: "running",
    services: {},
    joined: [],
    pods: { ready: 0, waiting: [] },
    drift: [],
    limits: mode === "external" ? "the cluster's own" : LIMITS,
    lacks: mode === "node" ? distributionOf(config).lacks : [],
    kubeconfigPath: kubeconfigOf(config),
    problems: [],
  };
  const reached = mode === "external" || (await ofMachine(config, found));
  found.problems.push(...(await Promise.all(nodesOf(config).slice(1).map(joinedProblems))).flat());
  if (reached) await kubernetes(config, found, say);
  return found;
}

/**
 * What there is to tell of the machine.
 * @returns whether its API server can be asked
 */
async function ofMachine(config: StackConfig, found: Status): Promise<boolean> {
  const machine = openMachine(refOf(config));
  const observed = await machine.observe();
  const { record, state, drift, memory, cutOff, problems } = observed;
  found.state = state === "silent" ? "running" : state;
  found.problems.push(...problems);
  if (record === undefined || state === "absent") {
    found.problems.push("there is no such sandbox");
    return false;
  }
  if (state === "stopped" && stateHere(machine.ref) === "paused") {
    found.state = "paused";
    return false;
  }
  if (state === "stopped") {
    found.problems.push("the sandbox's process is gone");
    return false;
  }
  const starts = record.incarnation;
  const { used = null, limit = null } = memory ?? {};
  found.sandbox = {
    pid: observed.healed?.pid ?? record.pid,
    starts,
    restarts: restartsOf(observed),
    memory: used,
    memoryLimit: limit,
  };
  found.drift = drift;
  found.problems.push(...drift.map(driftProblem));
  if (record.version === 1) found.problems.push("an earlier gvisor-k3s made it: the next `up` brings it to this one");
  if (state === "silent" || record.version === 1) return false;
  const expected = ["server", ...(config.mode === "node" ? ["containerd", "limits", "proxy"] : [])];
  const services = await servicesOf(machine, expected);
  found.services = services.states;
  found.problems.push(...services.problems);
  await disk(config, machine, found);
  return !cutOff;
}

/** How often its supervisor has started it again. */
const restartsOf = ({ healed }: Observed) => (healed === undefined ? 0 : Math.max(0, healed.starts - 1));

const driftProblem = ({ file, what }: Drift) => `${file} was ${what} by hand`;

/** The services of a machine that runs, and what is wrong with those that should. */
async function servicesOf(
  machine: Machine,
  expected: readonly string[],
): Promise<{ states: Record<string, ServiceState>; problems: string[] }> {
  const states = await serviceStates(machine).catch((error: Error) => error);
  if (states instanceof Error) return { states: {}, problems: [`the sandbox does not answer: ${states.message}`] };
  const problems = expected.flatMap((service) => {
    const state = states[service];
    if (!state) return [`${service} was never started`];
    return state.pid === 0 ? [`${service} does not run; it ended with ${state.lastExit}`] : [];
  });
  return { states, problems };
}

/** What is wrong with the machine of a node that has joined. */
async function joinedProblems(config: StackConfig): Promise<string[]> {
  const machine = openMachine(refOf(config));
  const observed = await machine.observe().catch((error: Error) => error);
  if (observed instanceof Error) return [`node ${config.name}: ${oneLine(observed.message)}`];
  const { state, drift, problems } = observed;
  const expected = ["agent", "containerd", "limits", "proxy", ...(config.target === "ssh" ? [LINK_SERVICE] : [])];
  const own = [...problems, ...drift.map(driftProblem)];
  if (state === "absent") own.push("it is not there");
  if (state === "stopped" && stateHere(machine.ref) !== "paused") own.push("the sandbox's process is gone");
  if (state === "running") own.push(...(await servicesOf(machine, expected)).problems);
  return own.map((problem) => `node ${config.name}: ${problem}`);
}

async function disk({ name }: StackConfig, machine: Machine, found: Status): Promise<void> {
  const usage = await diskUsage(machine);
  if (usage === undefined) return;
  const { logs } = hostPaths(name, homeFolder());
  found.disk = { ...usage, hostLogs: filesBelow(logs).reduce((sum, file) => sum + statSync(file).size, 0) };
  const { size, free, root } = usage;
  if (free < Math.min(NEARLY_FULL, size / 10))
    found.problems.push(
      `the disk is nearly full: ${mebibytes(free)} of ${mebibytes(size)} are free, of which the ` +
        `sandbox has taken ${mebibytes(root)}; \`gvisor-k3s images prune -c ${name}\` removes what no container uses`,
    );
}

async function kubernetes(config: StackConfig, found: Status, say: (line: string) => void): Promise<void> {
  if (!existsSync(found.kubeconfigPath)) {
    found.problems.push("there is no kubeconfig yet");
    return;
  }
  const [program, ...args] = await kubectl(config, say);
  const get = async <T>(kind: string): Promise<T[]> => {
    const question = ["--request-timeout=10s", "get", kind, "--all-namespaces", "--output=json"];
    const { stdout } = await run(program, [...args, ...question], { timeout: 30_000 });
    return (JSON.parse(stdout) as { items: T[] }).items;
  };
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
  for (const each of nodesOf(config)) {
    const { name, joins } = each;
    const wanted = distributionOf(each).refOf(each).version;
    const what = joins ? `the node ${name}` : "the node";
    const node = nodes.find(({ metadata }) => metadata.name === name);
    if (!node) {
      found.problems.push(`${what} is not registered`);
      continue;
    }
    const ready = node.status.conditions.find(({ type }) => type === "Ready");
    const version = node.status.nodeInfo.kubeletVersion;
    const state = { name, ready: ready?.status === "True", version };
    if (joins) found.joined.push(state);
    else found.node = state;
    if (!state.ready) found.problems.push(`${what} is not Ready: ${ready?.message ?? "no condition"}`);
    if (wanted !== undefined && version !== wanted)
      found.problems.push(`${what} runs ${version}, and ${wanted} is configured`);
  }
}

/** What a pod waits for; undefined if it is ready, or done. */
function waitsFor({ status: { phase, conditions = [] } }: KubernetesPod): string | undefined {
  const ready = conditions.find(({ type }) => type === "Ready");
  if (phase === "Succeeded" || ready?.status === "True") return undefined;
  const failing = conditions.find(({ status, message }) => status !== "True" && message);
  return [phase ?? "Unknown", failing?.message].filter(Boolean).join(", ");
}

/** The status as text for people. */
export function asText(found: Status): string {
  const rows = [
    clusterRow(found),
    ...sandboxRows(found),
    ...diskRows(found),
    ...serviceRows(found),
    ...kubernetesRows(found),
  ];
  const collect = `\`gvisor-k3s logs ${found.name}\` collects what tells more`;
  const advice =
    found.state === "absent"
      ? `\`gvisor-k3s up ${found.name}\` makes it`
      : `\`gvisor-k3s up ${found.name}\` repairs what it can; ${collect}`;
  const problems = found.problems.map((problem) => `! ${printable(problem).replaceAll("\n", "\n  ")}`);
  const paused = `\`gvisor-k3s resume ${found.name}\` has it go on`;
  const well = found.state === "paused" ? paused : "all is well";
  const verdict = problems.length === 0 ? well : [...problems, "", advice].join("\n");
  return `${rows.map(([key, value]) => `${oneLine(key).padEnd(11)} ${oneLine(value)}`).join("\n")}\n\n${verdict}\n`;
}

type Row = [key: string, value: string];

function clusterRow({ name, cluster, state, mode, target }: Status): Row {
  const known = name === cluster ? name : `${name} (${cluster})`;
  const where = mode === "external" ? "" : `, target ${target}`;
  return ["cluster", `${known}, ${state}; mode ${mode}${where}`];
}

function sandboxRows({ sandbox }: Status): Row[] {
  if (!sandbox) return [];
  const { pid, starts, restarts, memory, memoryLimit } = sandbox;
  const again = restarts === 0 ? "" : `, and started again ${times(restarts)} by its supervisor`;
  const used = `memory ${mebibytes(memory)}, limit ${mebibytes(memoryLimit)}`;
  return [["sandbox", `process ${pid}, start ${starts}${again}; ${used}`]];
}

const mebibytes = (bytes: number | null) => (bytes === null ? "none" : `${Math.round(bytes / 2 ** 20)} MiB`);

function diskRows({ disk }: Status): Row[] {
  if (!disk) return [];
  const { root, images, logs, database, claims, volumes, hostLogs, free, whole } = disk;
  const parts = { images, logs, database, claims, volumes, "logs on the host": hostLogs };
  const named = Object.entries(parts).map(([part, bytes]) => `${part} ${mebibytes(bytes)}`);
  return [["disk", `${whole ? "" : "at least "}${mebibytes(root)}: ${named.join(", ")}; free ${mebibytes(free)}`]];
}

function serviceRows({ services }: Status): Row[] {
  return Object.entries(services).map(([service, { pid, restarts }]) => {
    const again = restarts === 0 ? "" : `, started again ${times(restarts)}`;
    return [service, pid === 0 ? "not running" : `running${again}`];
  });
}

function kubernetesRows({ state, node, joined, pods, limits, lacks, kubeconfigPath }: Status): Row[] {
  const told = ({ ready, version }: NodeState) => `${ready ? "Ready" : "not Ready"}, ${version}`;
  const rows: Row[] = [
    ...(node ? [["node", told(node)] as Row] : []),
    ...joined.map((other): Row => [other.name, told(other)]),
  ];
  if (state !== "running") return rows;
  const waiting = pods.waiting.length === 0 ? "" : `, ${pods.waiting.length} not: ${pods.waiting.join("; ")}`;
  return [
    ...rows,
    ["pods", `${pods.ready} ready or done${waiting}`],
    ["enforced", limits],
    ...lacks.map((lack): Row => ["without", lack]),
    ["kubeconfig", kubeconfigPath],
  ];
}

const times = (count: number) => `${count} ${count === 1 ? "time" : "times"}`;
