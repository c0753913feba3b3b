/**
 * Who is root in the sandbox puts links, FIFOs, devices and folders in the place of everything that the host ever asks
 * for there, and the host goes on as if nothing were: none of its own files is read, changed, made or removed, and
 * nothing waits for ever.
 */
import { createHash } from "node:crypto";
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { places } from "../../config/paths.ts";
import { waitFor } from "../../system/wait.ts";
import {
  endAll,
  entriesOf,
  inside,
  killProcess,
  kubectl,
  kubectlProcess,
  ownHome,
  root,
  shellImage,
  supervised,
  traces,
  writeOptions,
} from "./harness.ts";

const home = await ownHome();
const name = "e2e-i";
/** What the links lead to: files of the host, and a name at which there is nothing. */
const victim = `${home}-victim`;
const image = "example.test/shell:1";
const base = {
  images: [join(home, "shell.tar")],
  pod: { enabled: false },
  addons: { coredns: { enabled: false }, metricsServer: { enabled: false } },
};
let before: ReturnType<typeof traces>;

beforeAll(async () => {
  before = { ...traces(home, name), files: [] };
  rmSync(victim, { recursive: true, force: true });
  mkdirSync(join(victim, "folder"), { recursive: true });
  for (const file of ["file", "folder/config.toml", "folder/server.log"])
    writeFileSync(join(victim, file), "the host's");
  await shellImage(image, base.images[0]!);
  configure({});
  const { exitCode, all } = await run("up", name);
  expect(exitCode, all).toBe(0);
  const spec = {
    hostPID: true,
    volumes: [{ name: "node", hostPath: { path: "/" } }],
    containers: [
      {
        name: "main",
        image,
        imagePullPolicy: "Never",
        securityContext: { privileged: true },
        volumeMounts: [{ name: "node", mountPath: "/node" }],
      },
    ],
  };
  const pod = JSON.stringify({ apiVersion: "v1", kind: "Pod", metadata: { name: "attacker" }, spec });
  await kubectlProcess(name, ["apply", "-f", "-"], { input: pod });
  await kubectl(name, "wait", "pod/attacker", "--for=condition=Ready", "--timeout=60s");
});

afterAll(async () => {
  await endAll(home, name);
  if (!process.env.KEEP) rmSync(victim, { recursive: true, force: true });
});

/** Writes the cluster's options. */
const configure = (options: object) => writeOptions(home, name, { ...base, ...options });

/** What is at a path of the host, with all below it: nothing that anybody does to it goes unseen. */
function stateOf(path: string): unknown {
  const stat = lstatSync(path, { throwIfNoEntry: false, bigint: true });
  if (stat === undefined) return null;
  const { mode, ino, size, mtimeNs, ctimeNs, nlink } = stat;
  const seen = [mode, ino, mtimeNs, ctimeNs, nlink].map(String);
  if (stat.isSymbolicLink()) return [...seen, readlinkSync(path)];
  if (stat.isDirectory()) return [...seen, readdirSync(path).map((entry) => [entry, stateOf(join(path, entry))])];
  return [...seen, String(size), createHash("sha256").update(readFileSync(path)).digest("hex")];
}

/** The host's own files of these names, and those that the links lead to. */
const hostState = () => [victim, ...places].map((path) => [path, stateOf(path)]);

/** A command of the host's, which has to end whatever is in its way. */
async function run(...args: string[]): Promise<{ exitCode: number | undefined; all: string }> {
  const options = { all: true, reject: false, cwd: home, stdin: "ignore", timeout: 240_000 } as const;
  const { timedOut, exitCode, all } = await execa("node", [join(root, "automation/cli.ts"), ...args], options);
  expect(timedOut, `${args.join(" ")}\n${all}`).toBe(false);
  return { exitCode, all };
}

/** What is put in the place of something, as commands of a shell for which $1 is its path. */
const files = {
  "a link to a file of the host's": `ln -s ${victim}/file "$1"`,
  "a link to where the host has nothing": `ln -s ${victim}/made "$1"`,
  "a hard link": 'ln "$1.real" "$1"',
  "a FIFO": 'mkfifo "$1"',
  // Without end where the host alone reads; what the node reads itself, as soon as it is there, would take its memory.
  "a device":
    'case "$1" in *.log | *.json) n=5 ;; *) n=3 ;; esac; mknod "$1" c 1 $n || mknod "$1" b 8 0 || echo refused',
  "a huge file": 'case "$1" in *.log | *.json) n=1000G ;; *) n=20M ;; esac; truncate -s $n "$1"',
  "a folder": 'mkdir "$1" && echo > "$1/in-it"',
};
const folders = {
  "a FIFO": 'mkfifo "$1"',
  "a file": 'echo > "$1"',
  "a link to a folder of the host's": `ln -s ${victim}/folder "$1"`,
};

/** Runs a script in the privileged pod. */
async function attack(script: string, ...paths: string[]): Promise<string> {
  return await kubectl(name, "exec", "attacker", "--", "/bin/busybox", "sh", "-c", script, "sh", ...paths);
}

/** Where something is planted that is to make way after the test. */
let planted: readonly string[] = [];

/** Has the privileged pod put something in the place of each path. */
async function plant(how: string, paths: readonly string[]): Promise<void> {
  await waitFor("the pod takes commands", 120, async () => (await attack("echo yes").catch(() => "")) || undefined);
  const script = `set -e; put() { ${how}; }; for path; do mv "/node$path" "/node$path.real"; put "/node$path"; done`;
  planted = paths;
  const said = await attack(script, ...paths);
  if (!said.includes("refused")) return;
  // gVisor makes no device on a disk of the host's, so there is none to be met: an empty file is there instead.
  await inside(name, "/bin/sh", "-c", 'for path; do [ -e "$path" ] || echo > "$path"; done', "sh", ...paths);
}

/** Takes away what was planted and has not made way. */
async function restore(): Promise<void> {
  const script = `for path; do
    if [ -L "$path" ]; then made=; elif [ -d "$path.real" ]; then [ -d "$path" ] && made=1 || made=
    else [ -f "$path" ] && [ "$path" -nt "$path.real" ] && [ $(stat -c %s "$path") -lt 10000000 ] && made=1 || made=; fi
    if [ $made ]; then rm -rf "$path.real"; else rm -rf "$path"; mv "$path.real" "$path"; fi
  done`;
  // Its supervisor may be about to start it again.
  const restored = () => inside(name, "/bin/sh", "-c", `${script}; echo done`, "sh", ...planted).catch(() => undefined);
  await waitFor("the sandbox takes commands", 120, restored);
  planted = [];
}

/**
 * The files in the places, but for the server's keys and data and what the node has as /proc/sys, without which there is
 * no cluster to look at: none of these is the host's to read.
 */
async function filesThere(): Promise<string[]> {
  const search = 'for place; do [ -e "$place" ] && find "$place" -xdev -type f -size -1024; done; true';
  const found = await inside(name, "/bin/sh", "-c", search, "sh", ...places);
  return found
    .split("\n")
    .filter((path) => path !== "" && !/^\/var\/lib\/rancher\/k3s\/(agent|server\/(db|tls|cred)|storage)\//.test(path))
    .filter((path) => !path.startsWith("/run/gvisor-k3s/proc-sys/"))
    .filter((path) => !path.endsWith(".real"));
}

afterEach(async () => {
  if (planted.length === 0) return;
  await restore();
  await heal();
});

let level = 0;
/** Whatever was in the way is gone again: the next `up` heals the node, and nothing is wrong any more. */
async function heal(): Promise<void> {
  const { exitCode, all } = await run("up", name);
  expect(exitCode, all).toBe(0);
  const state = await run("status", name);
  expect(state.exitCode, state.all).toBe(0);
}

/** Has the host do all that it does with a sandbox, with an option changed so that files are written anew. */
async function goAboutIt(): Promise<{ exitCode: number | undefined; all: string }> {
  level++;
  const logLevel = level % 2 ? "debug" : "info";
  configure({ containerd: { logLevel }, node: { labels: { level: `${level}` } } });
  await run("status", name);
  await run("logs", name, "--output", join(home, "report.tar.gz"));
  await run("refresh", name);
  return await run("up", name);
}

/** Plants something at each path, and has the host go about it: it does all, or refuses a path by name. */
async function meet(how: string, paths: readonly string[]): Promise<void> {
  const host = hostState();
  await plant(how, paths);
  const { exitCode, all } = await goAboutIt();
  const told = exitCode === 0 || paths.some((path) => all.includes(path));
  expect(told, all).toBe(true);
  expect(hostState()).toEqual(host);
}

describe("the host is as it was, and nothing waits for ever", () => {
  it.each(Object.entries(files))("with %s in the place of every file", async (_, how) => {
    const paths = await filesThere();
    expect(paths).toEqual(expect.arrayContaining(["/etc/containerd/config.toml", "/etc/rancher/k3s/config.yaml"]));
    await meet(how, paths);
  });

  it.each(Object.entries(folders))("with %s in the place of every folder", async (_, how) => {
    await meet(how, ["/etc/containerd", "/etc/cni/net.d", "/etc/rancher/k3s", "/usr/local/bin", "/var/log/gvisor-k3s"]);
  });

  it("when a sandbox with links in it dies, is started again, and is removed", async () => {
    const host = hostState();
    await plant(folders["a link to a folder of the host's"], [
      ...["/etc", "/var/lib/rancher/k3s", "/var/log", "/usr/local/bin", "/var/lib/sandbox-init", "/root"],
    ]);
    planted = []; // for good
    await killProcess(supervised(name).sandbox!);
    for (const args of [
      ["status", name],
      ["logs", name, "--output", join(home, "dead.tar.gz")],
      ["preview", name],
    ])
      await run(...args);
    await run("up", name);
    expect(hostState()).toEqual(host);
    const { exitCode, all } = await run("destroy", name);
    expect(exitCode, all).toBe(0);
    expect(hostState()).toEqual(host);
    expect({ ...traces(home, name), files: [] }).toEqual(before);
    expect(entriesOf(join(home, "sandboxes"))).toEqual([]);
  });
});
