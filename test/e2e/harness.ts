/**
 * What the end-to-end tests share: a home of their own, Pulumi's Automation API on it, and a look at what the host has.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ConfigMap, EngineEvent, Stack } from "@pulumi/pulumi/automation/index.js";
import { execa, type Options } from "execa";
import { artifactFolder, goArch } from "../../artifacts/artifacts.ts";
import { openStack } from "../../automation/workspace.ts";
import type { StackConfigInput } from "../../config/schema.ts";
import { unmountBelow } from "../../machines/managed.ts";
import { sandboxPaths } from "../../machines/paths.ts";
import { readRecord, type SandboxRecord } from "../../machines/record.ts";
import { serviceStates } from "../../machines/services.ts";
import { execIn, type SandboxRef } from "../../steps/sandbox.ts";
import { cacheFolder, homeFolder } from "../../system/folders.ts";
import { waitFor } from "../../system/wait.ts";

export const root = join(import.meta.dirname, "../..");

/**
 * An empty home folder for one test file, in the environment of everything that it starts. It is at the same place each
 * time, so that what a killed run left there is found and destroyed first.
 */
export async function ownHome(): Promise<string> {
  const home = join(tmpdir(), "gvisor-k3s-e2e");
  process.env.GVISOR_K3S_HOME = home;
  for (const name of entriesOf(join(home, "sandboxes"))) {
    const { exitCode, all } = await cli("destroy", name);
    if (exitCode !== 0) throw new Error(`${name}, which an earlier run left, cannot be destroyed\n${all}`);
  }
  await unmountBelow(home); // of a test with a disk of its own
  removeHome(home);
  mkdirSync(home, { mode: 0o700 });
  return home;
}

/** Makes an image with a shell in it, and the few other programs that the tests call. */
export async function shellImage(image: string, archive: string): Promise<void> {
  const links = ["sh", "cat", "sleep", "tr", "stty"].flatMap((applet) => ["--symlink", `busybox:/bin/${applet}`]);
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

/** Opens a stack with these options and no others. */
export async function open(
  name: string,
  options: Omit<StackConfigInput, "name"> & Record<string, unknown> = {},
): Promise<Stack> {
  const stack = await openStack(name, () => {});
  for (const key of Object.keys(await stack.getAllConfig())) await stack.removeConfig(key);
  const values: ConfigMap = {};
  for (const [key, value] of Object.entries(options))
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

/** Runs the command line of this project, as `make` does. */
export function cli(...args: string[]) {
  return execa("node", [join(root, "automation/cli.ts"), ...args], { all: true, reject: false });
}

/** kubectl on the host with a sandbox's kubeconfig, as a process. */
export function kubectlProcess(name: string, args: string[], options: Options = {}) {
  const { kubeconfig } = sandboxPaths(name);
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

/** The runsc of a sandbox that has another one than the project's. */
export const otherRunsc: Record<string, string> = {};

/** What finds a sandbox. */
export const refOf = (name: string): SandboxRef => ({
  name,
  home: homeFolder(),
  runsc: otherRunsc[name] ?? `${artifactFolder({ name: "runsc" })}/runsc`,
});

/** Runs a program in a sandbox. */
export async function inside(name: string, ...args: string[]): Promise<string> {
  return (await execIn(refOf(name), args, { timeout: 60_000 })).stdout;
}

/** The state of the sandbox's services. */
export const services = (name: string) => serviceStates(refOf(name));

/** Kills a service of a sandbox, and waits until it is started again. */
export async function kill(name: string, service: string): Promise<void> {
  const { pid, restarts } = (await services(name))[service]!;
  await inside(name, "/bin/kill", "-KILL", String(pid));
  await waitFor(`${service} is started again`, 60, async () => {
    const state = (await services(name))[service]!;
    return (state.pid !== 0 && state.restarts > restarts) || undefined;
  });
}

export function record(name: string): SandboxRecord {
  return readRecord(sandboxPaths(name))!;
}

/** The files in which Pulumi keeps the stacks of a home. */
export function stateFiles(home: string): string[] {
  const files = readdirSync(join(home, "pulumi"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
  if (files.length === 0) throw new Error(`there is no state in ${home}`);
  return files;
}

/** Everything on the host that a sandbox could leave behind. */
export function traces(home: string) {
  const lines = (file: string) => readFileSync(file, "utf8").trim().split("\n");
  const folders = (path: string) =>
    entriesOf(path).filter((entry) => entry.startsWith("gk-") || entry === "gvisor-k3s" || entry === "null-netns");
  return {
    processes: readdirSync("/proc")
      .filter((pid) => /^\d+$/.test(pid))
      .map(commandLine)
      .filter((line) => line.includes(home) || line.includes(join(cacheFolder(), "pulumi"))),
    mounts: lines("/proc/self/mounts")
      .map((line) => line.split(" ")[1]!)
      .filter((target) => target.startsWith(home) || target.startsWith("/run/netns/gk-")),
    links: lines("/proc/net/dev")
      .map((line) => line.trim().split(":")[0]!)
      .filter((device) => device.startsWith("gk-")),
    namespaces: folders("/run/netns"),
    cgroups: ["", ...readdirSync("/sys/fs/cgroup")].flatMap((controller) =>
      folders(join("/sys/fs/cgroup", controller)),
    ),
    files: entriesOf(home),
  };
}

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return ""; // it has just ended
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
