/**
 * What the end-to-end tests share: a home of their own, Pulumi's Automation API on it, and a look at what the host has.
 * Each test file has names and a home of its own, and looks at its own traces only, so that two files, and clusters of
 * the user's, can run side by side.
 * @module
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import type { ConfigMap, EngineEvent, Stack } from "@pulumi/pulumi/automation/index.js";
import { execa, type Options } from "execa";
import { expect } from "vitest";
import { stringify } from "yaml";
import { artifactFolder, goArch } from "../../artifacts/artifacts.ts";
import { openStack } from "../../automation/workspace.ts";
import type { StackConfigInput } from "../../config/schema.ts";
import { lockFolder } from "../../machines/base.ts";
import { openMachine } from "../../machines/index.ts";
import type { Machine } from "../../machines/machine.ts";
import { mountPoints, unmountBelow } from "../../machines/managed.ts";
import { hostPaths, machinesIn } from "../../machines/paths.ts";
import { type MachineRecord, readRecord } from "../../machines/record.ts";
import { serviceStates } from "../../machines/services.ts";
import { homeFolder } from "../../system/folders.ts";
import { isAlive, type ProcessId, parentOf, signalTo } from "../../system/processes.ts";
import { waitFor } from "../../system/wait.ts";

export const root = join(import.meta.dirname, "../..");

/**
 * An empty home folder for one test file, in the environment of everything that it starts. It is at the same place each
 * time, so that what a killed run left there is found and ended first; what a run left with KEEP=1 stays, and the next
 * one is told where it is.
 */
export async function ownHome(): Promise<string> {
  const file = basename(expect.getState().testPath!, ".test.ts");
  const home = join(tmpdir(), `gvisor-k3s-e2e-${file}`);
  if (existsSync(join(home, "kept"))) {
    throw new Error(`${home} was kept with KEEP=1; destroy what is in it (GVISOR_K3S_HOME=${home}), and delete it`);
  }
  await endLeft(home);
  mkdirSync(home, { mode: 0o700 });
  process.env.GVISOR_K3S_HOME = home;
  return home;
}

/**
 * Ends whatever a killed run has left in a folder. No command is asked to: settings, machines and passphrases that it
 * needs are gone with the run.
 */
export async function endLeft(home: string): Promise<void> {
  for (const pid of processesOf(home)) signalTo(Number(pid), "SIGKILL");
  // Some tests have homes of their own in theirs, and machines that stand for somebody else's.
  const homes = [home, ...entriesOf(home).map((entry) => join(home, entry))];
  for (const folder of homes) {
    for (const name of machinesIn(folder)) {
      await openMachine({ kind: "managed", name, home: folder }).stop();
      rmSync(lockFolder(name), { recursive: true, force: true });
    }
  }
  await unmountBelow(home); // of a test with a disk of its own
  removeHome(home);
}

/** Ends what a test file has made, unless it is to be looked at. */
export async function endAll(home: string, ...names: string[]): Promise<void> {
  if (process.env.KEEP) {
    mkdirSync(join(home, "kept"), { recursive: true });
    return;
  }
  for (const name of names) await cli("destroy", name);
  removeHome(home);
}

/** Where a sandbox has things on the host, by default one of this file's home. */
export const pathsOf = (name: string, home = homeFolder()) => hostPaths(name, home);

/** Makes an image with a shell in it, and the few other programs that the tests call, or more of busybox's. */
export async function shellImage(image: string, archive: string, ...more: string[]): Promise<void> {
  const applets = ["sh", "cat", "sleep", "tr", "stty", ...more];
  const links = applets.flatMap((applet) => ["--symlink", `busybox:/bin/${applet}`]);
  const mkimage = join(artifactFolder({ name: "images" }), "mkimage");
  await execa(mkimage, [
    "--platform",
    `linux/${goArch()}`,
    "--name",
    image,
    "--file",
    "/bin/busybox:/bin/busybox:0755",
    ...links,
    "--cmd",
    "/bin/sleep",
    "--cmd",
    "infinity",
    "-o",
    archive,
  ]);
}

/** Writes a stack's options, and no others, where the command finds them when it is called in a folder. */
export function writeOptions(folder: string, stack: string, options: object): void {
  const config = Object.fromEntries(Object.entries(options).map(([key, value]) => [`gvisor-k3s:${key}`, value]));
  writeFileSync(join(folder, `Pulumi.${stack}.yaml`), stringify({ config }));
}

/** With K3S=FILE, a build of the official k3s, the server of whatever leaves the choice. */
const server: Partial<StackConfigInput> = process.env.K3S
  ? { distribution: "k3s", k3s: { path: process.env.K3S } }
  : {};

/** Opens a stack with these options and no others. */
export async function open(
  name: string,
  options: Omit<StackConfigInput, "name"> & Record<string, unknown> = {},
): Promise<Stack> {
  const stack = await openStack(name, () => {});
  for (const key of Object.keys(await stack.getAllConfig())) await stack.removeConfig(key);
  const values: ConfigMap = {};
  for (const [key, value] of Object.entries({ ...server, ...options }))
    values[key] = { value: typeof value === "string" ? value : JSON.stringify(value) };
  await stack.setAllConfig(values);
  return stack;
}

/**
 * Runs a preview or an update and returns the names of what changes, by what happens to them, with what the engine
 * prints.
 */
export async function changes(
  act: (options: {
    diff: boolean;
    color: "never";
    onEvent: (event: EngineEvent) => void;
    onOutput: (text: string) => void;
  }) => Promise<unknown>,
) {
  const changed: Record<string, string[]> = {};
  let output = "";
  const onEvent = ({ resourcePreEvent }: EngineEvent) => {
    const metadata = resourcePreEvent?.metadata;
    if (!metadata || metadata.op === "same") return;
    changed[metadata.op] ??= [];
    changed[metadata.op]!.push(metadata.urn.split("::").at(-1)!);
  };
  const onOutput = (text: string) => {
    output += text;
  };
  await act({ diff: true, color: "never", onEvent, onOutput });
  return { changed, output };
}

/** A port of the host's that nobody listens on. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Runs the command line of this project, as `make` does. */
export function cli(...args: string[]) {
  return execa("node", [join(root, "automation/cli.ts"), ...args], { all: true, reject: false });
}

/** What a command prints that succeeds. */
export async function printed(...args: string[]): Promise<string> {
  const { exitCode, stdout, all } = await cli(...args);
  expect(exitCode, all).toBe(0);
  return String(stdout);
}

/** What a command says that fails. */
export async function refused(...args: string[]): Promise<string> {
  const { exitCode, all } = await cli(...args);
  expect(exitCode, all).toBe(1);
  return String(all);
}

/** The processes that a process has started, and those that they have. */
function descendants(pid: number): number[] {
  const children = readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((entry) => parentOf(entry) === pid);
  return children.flatMap((child) => [child, ...descendants(child)]);
}

/** Runs a command, and kills it with what it has started, or some of it, as soon as something is so. */
export async function killedWhen(
  so: () => boolean,
  args: string[],
  which: (pid: number) => boolean = () => true,
): Promise<void> {
  const command = spawn("node", [join(root, "automation/cli.ts"), ...args], { stdio: "ignore" });
  const ended = once(command, "exit");
  await waitFor("the moment of the kill", 120, () => {
    if (command.exitCode !== null) throw new Error(`it ended with ${command.exitCode} before that`);
    return so() || undefined;
  });
  const all = descendants(command.pid!).filter(which);
  for (const pid of [command.pid!, ...all]) signalTo(pid, "SIGKILL");
  await ended;
}

/** The file of a stack's options. */
export const optionsFile = (stack: string): string => join(root, `Pulumi.${stack}.yaml`);

/** Writes it. */
export function setOptions(stack: string, options: object): void {
  const all = Object.entries({ ...server, ...options });
  const config = Object.fromEntries(all.map(([key, value]) => [`gvisor-k3s:${key}`, value]));
  writeFileSync(optionsFile(stack), JSON.stringify({ config }));
}

/** kubectl on the host with a sandbox's kubeconfig, as a process. */
export function kubectlProcess(name: string, args: string[], options: Options = {}) {
  const { kubeconfig } = pathsOf(name);
  return execa(`${artifactFolder({ name: "server" })}/gvisor-k3s-node`, ["kubectl", ...args], {
    timeout: 60_000,
    ...options,
    env: { KUBECONFIG: kubeconfig },
  });
}

/** Runs kubectl on the host with a sandbox's kubeconfig. */
export async function kubectl(name: string, ...args: string[]): Promise<string> {
  return String((await kubectlProcess(name, args)).stdout);
}

/** The machine of a sandbox. */
export const machineOf = (name: string): Machine => openMachine({ kind: "managed", name, home: homeFolder() });

/** Runs a program in a sandbox. */
export async function inside(name: string, ...args: string[]): Promise<string> {
  return (await machineOf(name).exec(args, { timeout: 60_000 })).stdout;
}

/** The state of the sandbox's services. */
export const services = (name: string) => serviceStates(machineOf(name));

/** Kills a service of a sandbox, and waits until it is started again. */
export async function kill(name: string, service: string): Promise<void> {
  const { pid, restarts } = (await services(name))[service]!;
  await inside(name, "/bin/kill", "-KILL", String(pid));
  await waitFor(`${service} is started again`, 60, async () => {
    const state = (await services(name))[service]!;
    return (state.pid !== 0 && state.restarts > restarts) || undefined;
  });
}

export function record(name: string): MachineRecord {
  return readRecord(name, homeFolder())!;
}

/** What the supervisor of a sandbox tells. */
export interface Supervised extends ProcessId {
  sandbox: (ProcessId & { starts: number }) | null;
  egress: (ProcessId & { starts: number }) | null;
}

export function supervised(name: string): Supervised {
  return JSON.parse(readFileSync(pathsOf(name).supervisor, "utf8")) as Supervised;
}

/** Kills a process, and waits until it is gone. */
export async function killProcess(killed: ProcessId): Promise<void> {
  process.kill(killed.pid, "SIGKILL");
  await waitFor(`process ${killed.pid} is gone`, 20, () => !isAlive(killed) || undefined);
}

/** Kills a sandbox with its supervisor, which would start it again. */
export async function killSandbox(name: string): Promise<void> {
  const { sandbox, ...supervisor } = supervised(name);
  await killProcess(supervisor);
  await killProcess(sandbox!);
}

/** What must stay the same for a pod to count as living on: its uid, its container, and how often that was restarted. */
export async function identity(name: string, pod: string): Promise<string> {
  const status = "{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
  return await kubectl(name, "get", "pod", pod, `-o=jsonpath={.metadata.uid} ${status}`);
}

/** What the host's cgroup holds a sandbox to, in either version of cgroups: bytes, and CPUs; null is no limit. */
export function limits(name: string): { memory: number | null; cpus: number | null } {
  const read = (...files: string[]) => {
    const file = files.map((path) => join("/sys/fs/cgroup", path)).find((path) => existsSync(path))!;
    return readFileSync(file, "utf8").trim();
  };
  const group = `gvisor-k3s/${name}`;
  const memory = Number(read(`memory/${group}/memory.limit_in_bytes`, `${group}/memory.max`));
  const quota = Number(read(`cpu/${group}/cpu.cfs_quota_us`, `${group}/cpu.max`).split(" ")[0]);
  return {
    memory: Number.isSafeInteger(memory) ? memory : null, // version 1 has a number for no limit that is larger
    cpus: quota > 0 ? quota / 100_000 : null,
  };
}

/** The files in which Pulumi keeps the stacks of a home. */
export function stateFiles(home: string): string[] {
  const files = readdirSync(join(home, "pulumi"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
  if (files.length === 0) throw new Error(`there is no state in ${home}`);
  return files;
}

/**
 * Everything on the host that a sandbox could leave behind.
 * @param names the sandboxes of the test
 */
export function traces(home: string, ...names: string[]) {
  const links = names.map((name) => pathsOf(name).link);
  const cgroups = readdirSync("/sys/fs/cgroup").map((controller) => join("/sys/fs/cgroup", controller, "gvisor-k3s"));
  const locks = "/run/lock/gvisor-k3s";
  return {
    processes: processesOf(home).map((pid) => said(pid, "cmdline").join(" ")),
    mounts: mountPoints().filter((target) => target.startsWith(home) || links.includes(basename(target))),
    links: entriesOf("/sys/class/net").filter((device) => links.includes(device)),
    namespaces: entriesOf("/run/netns").filter((name) => links.includes(name.replace(/\.nodes$/, ""))),
    cgroups: ["/sys/fs/cgroup/gvisor-k3s", ...cgroups].flatMap((folder) =>
      entriesOf(folder).filter((name) => names.includes(name)),
    ),
    locks: entriesOf(locks).filter((name) => names.includes(name)),
    files: entriesOf(home),
  };
}

/** The processes that know of a home. */
function processesOf(home: string): string[] {
  return readdirSync("/proc")
    .filter((pid) => /^\d+$/.test(pid))
    .filter((pid) => [...said(pid, "cmdline"), ...said(pid, "environ")].some((word) => word.includes(home)));
}

function said(pid: string, file: "cmdline" | "environ"): string[] {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "utf8").split("\0");
  } catch {
    return []; // it has just ended
  }
}

export function entriesOf(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return []; // it is not there, or a file
  }
}

export function removeHome(home: string): void {
  rmSync(home, { recursive: true, force: true });
}
