/**
 * `make bench`: the same stack in gVisor and natively, in turn, and what each costs. Everything is in
 * bench/results.json; the table goes into bench/README.md.
 * @module
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { cpus, loadavg, release, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { parse, stringify } from "yaml";
import { artifactFolder } from "../artifacts/artifacts.ts";
import { inSandbox } from "../config/paths.ts";
import type { QuirkId } from "../config/quirks.ts";
import { lockFolder } from "../machines/base.ts";
import { openMachine } from "../machines/index.ts";
import { hostPaths } from "../machines/paths.ts";
import type { MachineRef } from "../machines/ref.ts";
import { type Generation, generations } from "../test/generations.ts";
import { moduleVersion } from "../toolchain/builds.ts";
import { readUsage } from "./cgroup.ts";
import { measureGogc } from "./gogc.ts";
import { remember } from "./history.ts";
import { writePictures } from "./pictures.ts";
import { startPods } from "./pods.ts";
import type { ControlPlaneRun, Results, Run, Side, SnapshotRun } from "./results.ts";
import { FORK, measureSnapshots } from "./snapshots.ts";
import { withTable } from "./table.ts";

const root = join(import.meta.dirname, "..");
const results = join(import.meta.dirname, "results.json");
const readme = join(import.meta.dirname, "README.md");

/** Bring-ups of each side. */
const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 3);
/** Control planes on each generation of gVisor. */
const CONTROL_PLANES = 3;
/** The first rounds, in which pods are started as well: it takes a minute or more for each side. */
const POD_ROUNDS = 2;
const PODS = 30;
/** Runs of what changes nothing, in each round. */
const REPETITIONS = 2;
/** Seconds that the node is left alone before its memory is read, and over which its idle CPU time is taken. */
const SETTLE = 10;

const began = Date.now();
/** The rest of the machine's load, over the last minute. */
const load = loadavg()[0]!;
const say = (line: string) => console.log(`[${((Date.now() - began) / 1000).toFixed(0)} s] ${line}`);

// An interruption ends what runs, and then everything is removed as after a failure.
const interruption = new AbortController();
let running: number | undefined;
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    interruption.abort(new Error(`ended by ${signal}`));
    if (running) process.kill(-running, "SIGINT"); // Pulumi ends its step and itself
  });
}

const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-bench-"));
/** What the native node is told that it lacks: the same as gVisor, so that both get the same configuration. */
const quirks: QuirkId[] = [
  "no-cgroup-mounts",
  "kernel-tunables",
  "dev-kmsg",
  "no-freezer",
  "old-kernel-cri",
  "no-netfilter",
  "no-pod-sysctls",
  "no-user-namespaces",
];
const settings = (name: string) => join(root, `Pulumi.${name}.yaml`);
const controlPlane = "bench-cp";
const refs: Record<Side, MachineRef> = {
  gvisor: { kind: "managed", name: "bench-gvisor", home: join(folder, "gvisor") },
  native: { kind: "managed", name: "bench-native", home: join(folder, "native") },
};
/** What runs the native node in the place of runsc. */
const nativeRunsc = join(folder, "runtime/runsc");
try {
  if (!existsSync("/sys/fs/cgroup/memory"))
    throw new Error(
      "no /sys/fs/cgroup/memory: the native node needs the same cgroups (version 1) that gVisor gives it",
    );
  prepareNative();
  const runs: Run[] = [];
  for (let round = 1; round <= ROUNDS; round++) {
    for (const side of ["gvisor", "native"] as const) {
      say(`round ${round} of ${ROUNDS}: ${side}`);
      runs.push({ round, side, ...(await withNode(side, (up) => measure(side, up, round <= POD_ROUNDS))) });
    }
  }
  const controlPlanes: ControlPlaneRun[] = [];
  for (let round = 1; round <= CONTROL_PLANES; round++) {
    for (const generation of generations) {
      say(`control plane ${round} of ${CONTROL_PLANES}: gVisor ${generation.name}`);
      controlPlanes.push(await measureControlPlane(generation));
    }
  }
  const snapshots: SnapshotRun[] = [];
  for (let round = 1; round <= CONTROL_PLANES; round++) {
    say(`snapshots ${round} of ${CONTROL_PLANES}`);
    snapshots.push({ mode: "control-plane", ...(await withControlPlane((ref) => keep(ref, false))) });
    snapshots.push({ mode: "node", ...(await withNode("gvisor", () => keep(refs.gvisor, true))) });
  }
  say("GOGC, in gVisor");
  const gogc = await withNode("gvisor", () => measureGogc(openMachine(refs.gvisor), SETTLE));
  const all: Results = {
    date: new Date().toISOString(),
    seconds: (Date.now() - began) / 1000,
    ...surroundings(),
    method: { pods: PODS, settle: SETTLE },
    runs,
    controlPlanes,
    snapshots,
    gogc,
  };
  writeFileSync(results, `${JSON.stringify(all, null, 2)}\n`);
  writeFileSync(readme, withTable(readFileSync(readme, "utf8"), all));
  remember(all);
  writePictures();
  say(`${results} and the table in ${readme} are written`);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
} finally {
  for (const name of [refs.native.name, controlPlane]) rmSync(settings(name), { force: true });
  for (const { name } of [...Object.values(refs), { name: controlPlane }, { name: FORK }])
    rmSync(lockFolder(name), { recursive: true, force: true });
  rmSync(folder, { recursive: true, force: true });
}

/** The stack for the native node: the same one, with another runsc. */
function prepareNative(): void {
  mkdirSync(join(folder, "runtime"));
  for (const file of ["runsc", "adapt.ts"])
    symlinkSync(join(import.meta.dirname, "native", file), join(folder, "runtime", file));
  symlinkSync(join(artifactFolder({ name: "runc" }), "runc"), join(folder, "runtime/runc"));
  symlinkSync(process.execPath, join(folder, "runtime/node")); // a supervisor's PATH is the system's
  writeSettings(refs.native.name, { sandbox: { runsc: nativeRunsc }, quirks });
}

/** The options of a stack. */
function writeSettings(stack: string, options: Record<string, unknown>): void {
  const { name: project } = parse(readFileSync(join(root, "Pulumi.yaml"), "utf8")) as { name: string };
  writeFileSync(
    settings(stack),
    stringify({
      config: Object.fromEntries(Object.entries(options).map(([key, value]) => [`${project}:${key}`, value])),
    }),
  );
}

/** The API server alone, on one generation. */
async function measureControlPlane({ name: generation, runsc, sandbox }: Generation): Promise<ControlPlaneRun> {
  const options = { sandbox: { ...sandbox, runsc: await runsc(say) } };
  return await withControlPlane(async (ref, up) => {
    await sleep(SETTLE * 1000, undefined, { signal: interruption.signal });
    const { apiReady, defaultServiceAccount } = await serverStages(ref);
    return {
      generation,
      apiReady: (apiReady! - up.start) / 1000,
      ready: (defaultServiceAccount! - up.start) / 1000,
      memory: readUsage(ref.name).memory,
    };
  }, options);
}

async function keep(ref: MachineRef, pod: boolean): Promise<Omit<SnapshotRun, "mode">> {
  const command = async (...args: string[]) => {
    const { seconds, lines } = await cli(ref, ...args);
    return { seconds, stdout: lines.map(({ text }) => text).join("\n") };
  };
  try {
    return await measureSnapshots(ref, command, pod);
  } finally {
    rmSync(settings(FORK), { force: true });
  }
}

/** Brings a control plane up from nothing, and removes everything of it afterwards. */
async function withControlPlane<T>(act: (ref: MachineRef, up: Output) => Promise<T>, options: object = {}): Promise<T> {
  const ref: MachineRef = { kind: "managed", name: controlPlane, home: join(folder, "control-plane") };
  writeSettings(ref.name, { mode: "control-plane", ...options });
  try {
    return await act(ref, await cli(ref, "up"));
  } finally {
    await openMachine(ref).stop();
    rmSync(ref.home, { recursive: true, force: true });
  }
}

async function serverStages(ref: MachineRef): Promise<Record<string, number>> {
  const noted = await openMachine(ref).read(`${inSandbox.nodeData}/server/stages.json`);
  return JSON.parse(noted!) as Record<string, number>;
}

/** Brings a node up from nothing, and removes everything of it afterwards. */
async function withNode<T>(side: Side, act: (up: Output) => Promise<T>): Promise<T> {
  try {
    return await act(await cli(refs[side], "up"));
  } finally {
    const ref = refs[side];
    // What is native ends with its first process, and nothing but runc knows which one that is.
    const root = `--root=${hostPaths(ref.name, ref.home).runsc}`;
    if (side === "native") await execa(nativeRunsc, [root, "delete", "--force", ref.name], { reject: false });
    await openMachine(ref).stop();
    rmSync(ref.home, { recursive: true, force: true });
  }
}

async function measure(side: Side, up: Output, withPods: boolean): Promise<Omit<Run, "round" | "side">> {
  const { name, home } = refs[side];
  const cpu = readUsage(name).cpuSeconds;
  await sleep(SETTLE * 1000, undefined, { signal: interruption.signal });
  const settled = readUsage(name);
  const run: Omit<Run, "round" | "side"> = {
    up: up.seconds,
    ...(await stages(side, up)),
    cpuSeconds: cpu,
    idleCpu: (settled.cpuSeconds - cpu) / SETTLE,
    memory: settled.memory,
    unchangedUp: [],
    preview: [],
  };
  for (let i = 0; i < REPETITIONS; i++) {
    run.unchangedUp.push((await cli(refs[side], "up")).seconds);
    run.preview.push((await cli(refs[side], "preview")).seconds);
  }
  if (withPods) {
    run.pods = await startPods(hostPaths(name, home).kubeconfig, PODS, interruption.signal);
    await sleep(SETTLE * 1000, undefined, { signal: interruption.signal });
    run.memoryWithPods = readUsage(name).memory;
  }
  return run;
}

interface Output {
  /** When it was started, in milliseconds of Unix time. */
  start: number;
  /** From the program's start to its end. */
  seconds: number;
  /** What it printed, with the time of each line. */
  lines: { at: number; text: string }[];
}

/** Runs the project's command line, as `make` does. */
async function cli({ name, home }: MachineRef, ...given: string[]): Promise<Output> {
  const args = given.length === 1 ? [given[0]!, name] : given;
  interruption.signal.throwIfAborted();
  const start = Date.now();
  const lines: Output["lines"] = [];
  const child = execa("node", [join(root, "automation/cli.ts"), ...args], {
    cwd: root,
    all: true,
    detached: true,
    stdin: "ignore",
    env: { GVISOR_K3S_HOME: home },
  });
  running = child.pid;
  try {
    for await (const text of child.iterable({ from: "all" })) lines.push({ at: Date.now(), text });
    await child;
  } finally {
    running = undefined;
  }
  const seconds = (Date.now() - start) / 1000;
  say(`${name}: ${given.slice(0, 2).join(" ")} took ${seconds.toFixed(1)} s`);
  return { start, seconds, lines };
}

/**
 * How far `up` was when, in seconds since its start, and how long each resource took: from what it printed, and from
 * what the server notes.
 */
async function stages(side: Side, { start, lines }: Output): Promise<Pick<Run, "stages" | "resources">> {
  const resources: Record<string, number> = {};
  const done: Record<string, number> = {};
  for (const { at, text } of lines) {
    const [, name, seconds] = text.match(/^\[[\d.]+ s\] create (\S+) \(([\d.]+) s\)$/) ?? [];
    if (!name) continue;
    resources[name] = Number(seconds);
    done[name] = at;
  }
  const server = await serverStages(refs[side]);
  const begun = Object.entries(done).map(([name, at]) => at - resources[name]! * 1000);
  const times = {
    "the first step begins": Math.min(...begun),
    "sandbox runs": done["sandbox-process"],
    "containerd answers": done["containerd-apply"],
    "server starts": server.started,
    "API ready": server.apiReady,
    "default service account": server.defaultServiceAccount,
    "node Ready": server.nodeReady,
    "pod Running": done["testpod-pod"],
    "the last step ends": Math.max(...Object.values(done)),
  };
  const missing = Object.entries(times).filter(([, time]) => time === undefined);
  if (missing.length > 0)
    throw new Error(
      `nothing tells when: ${missing.map(([stage]) => stage).join(", ")}; \`up\` ` +
        `printed\n${lines.map(({ text }) => text).join("\n")}`,
    );
  return {
    resources,
    stages: Object.fromEntries(Object.entries(times).map(([stage, time]) => [stage, (time! - start) / 1000])),
  };
}

function surroundings(): Pick<Results, "machine" | "versions"> {
  const system = readFileSync("/etc/os-release", "utf8").match(/^PRETTY_NAME="(.*)"$/m)?.[1] ?? "unknown";
  return {
    machine: {
      system,
      kernel: release(),
      cpu: cpus()[0]!.model,
      cores: cpus().length,
      memoryGiB: Math.round(totalmem() / 2 ** 30),
      load,
    },
    versions: {
      gVisor: moduleVersion("toolchain/runsc", "gvisor.dev/gvisor"),
      runc: moduleVersion("toolchain/runc", "github.com/opencontainers/runc"),
      containerd: moduleVersion("toolchain/containerd", "github.com/containerd/containerd/v2"),
      Kubernetes: moduleVersion("node/server", "k8s.io/kubernetes"),
      Pulumi: moduleVersion("toolchain/pulumi", "github.com/pulumi/pulumi/pkg/v3"),
      "Node.js": process.versions.node,
    },
  };
}
