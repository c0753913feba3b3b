/**
 * The machine that this runs on as the sandbox: it is one already, and only takes what process 1 of a managed sandbox
 * does.
 * @module
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, existsSync, lstatSync, openSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { mkdir, readFile, rm, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { facadePlan, kernelLog } from "../config/facade.ts";
import { SANDBOX_ENVIRONMENT } from "../config/ociSpec.ts";
import { inSandbox, sandboxPaths } from "../config/paths.ts";
import { artifactsFolder, pathInSandbox } from "../toolchain/artifacts.ts";
import { isAlive, nextIncarnation, processStart, readRecord, type SandboxRecord, writeRecord } from "./record.ts";
import { run, runsWell } from "./run.ts";
import { mountPoints, removeState, type SandboxRef, serviceLog, staticBusybox, unmountBelow } from "./sandbox.ts";
import { waitFor } from "./wait.ts";

export interface InsideParams extends SandboxRef {
  runsc?: never;
  /** The node's address: an address of this machine's loopback device, and so of nobody else's. */
  address: string;
  /** The pods' bridge, which has a namespace of its own of the same name. */
  bridge: string;
}

/** What the facade keeps. */
const RUN = "/run/gvisor-k3s";

/**
 * What the node keeps, below folders that may be others' too. It is removed with it, so none of it may be there before.
 */
export const ownFolders = [
  dirname(inSandbox.containerdConfig),
  dirname(inSandbox.cniConfig),
  dirname(dirname(inSandbox.nodeConfig)),
  dirname(inSandbox.containerdSocket),
  inSandbox.logs,
  dirname(inSandbox.nodeData),
  RUN,
  "/run/cni",
  "/var/lib/cni",
  "/var/lib/containerd",
  "/var/lib/kubelet",
  "/var/log/containers",
  "/var/log/pods",
];

/** Seconds that the services have to end. */
const STOP = 30;

/** A hash of everything that it is started with. */
export function insideRevision({ name, home, address }: InsideParams): string {
  return createHash("sha256")
    .update(JSON.stringify([name, home, address, pathInSandbox({ name: "init" }, "")]))
    .digest("hex");
}

/**
 * Has sandbox-init supervise services on this machine, and gives the machine the node's address.
 * @throws Error that names what is in the way
 */
export async function ensureInside(params: InsideParams): Promise<SandboxRecord> {
  const paths = sandboxPaths(params.name, params.home);
  const revision = insideRevision(params);
  const previous = readRecord(paths);
  if (previous && isAlive(previous)) {
    if (previous.revision === revision) return previous;
    await stopInit(previous);
  }
  await staticBusybox();
  const incarnation = Math.max(nextIncarnation(paths, revision), Number(process.env.SANDBOX_INCARNATION ?? 0));
  for (const folder of [paths.state, inSandbox.logs]) await mkdir(folder, { recursive: true, mode: 0o700 });
  await linkArtifacts();
  // The facade's overlay wants its upper folder on a tmpfs, which /run is not everywhere.
  if (!mountPoints().includes(RUN)) {
    await mkdir(RUN, { recursive: true, mode: 0o755 });
    await run("mount", ["-t", "tmpfs", "-o", "mode=0755", "gvisor-k3s", RUN]);
  }
  const held = (await run("ip", ["-oneline", "address", "show", "dev", "lo"])).stdout;
  if (!held.includes(` ${params.address}/32 `))
    await run("ip", ["address", "add", `${params.address}/32`, "dev", "lo"]);
  await run("ip", ["link", "set", "lo", "up"]);
  const record = { incarnation, revision, ...(await startInit(params)) };
  await writeRecord(paths.record, record);
  return record;
}

/** Ends the node and its pods, and removes everything of them; what is gone already is no error. */
export async function removeInside(params: InsideParams): Promise<void> {
  const paths = sandboxPaths(params.name, params.home);
  const record = readRecord(paths);
  if (record === undefined) return; // nothing was made, and what is there is somebody else's
  await stopInit(record);
  await killPods();
  const namespaces = existsSync("/run/netns") ? readdirSync("/run/netns") : [];
  for (const namespace of namespaces.filter((name) => name.startsWith("cni-") || name === params.bridge))
    await run("ip", ["netns", "delete", namespace]);
  await runsWell("ip", ["link", "delete", params.bridge]);
  await runsWell("ip", ["address", "del", `${params.address}/32`, "dev", "lo"]);
  await removeFacade(params.name);
  for (const folder of ownFolders) await unmountBelow(folder);
  for (const path of [
    ...ownFolders,
    "/run/sandbox-init.sock",
    `/run/gvisor-bridge-${params.bridge}.lock`,
    inSandbox.artifacts,
  ])
    await rm(path, { recursive: true, force: true });
  await removeState(params);
}

/** The artifacts are where every path in a config file expects them. */
async function linkArtifacts(): Promise<void> {
  const target = artifactsFolder();
  const link = inSandbox.artifacts;
  const stat = lstatSync(link, { throwIfNoEntry: false });
  if (stat?.isSymbolicLink() && readlinkSync(link) === target) return;
  if (stat && !stat.isSymbolicLink())
    throw new Error(`${link} is in the way: the node's programs are linked there; move it elsewhere`);
  await rm(link, { force: true });
  await mkdir(dirname(link), { recursive: true });
  await symlink(target, link);
}

async function startInit(params: InsideParams): Promise<Pick<SandboxRecord, "pid" | "startTime">> {
  const init = pathInSandbox({ name: "init" }, "sandbox-init");
  const output = openSync(join(inSandbox.logs, "sandbox.log"), "a", 0o600);
  const child = spawn(init, ["run"], {
    detached: true,
    stdio: ["ignore", output, output],
    cwd: "/",
    env: Object.fromEntries(SANDBOX_ENVIRONMENT.map((entry) => entry.split("=", 2) as [string, string])),
  });
  closeSync(output);
  child.unref();
  const { pid } = child;
  if (pid === undefined) throw new Error(`${init} cannot be started`);
  const startTime = processStart(pid);
  await waitFor(
    "sandbox-init answers",
    20,
    async () => {
      if (startTime === undefined || processStart(pid) !== startTime)
        throw new Error(`sandbox-init ended\n${serviceLog(params, "sandbox")}`);
      return await runsWell(init, ["service", "status"]);
    },
    () => serviceLog(params, "sandbox"),
  );
  return { pid, startTime: startTime! };
}

/** Has sandbox-init end its services and itself. */
async function stopInit(record: SandboxRecord): Promise<void> {
  if (!isAlive(record)) return;
  process.kill(record.pid, "SIGTERM");
  await waitFor("sandbox-init ends", STOP, () => (isAlive(record) ? undefined : true));
}

/** Kills what containerd has left running: containers and their shims live on without it. */
async function killPods(): Promise<void> {
  const matching = () =>
    readdirSync("/proc").filter(
      (entry) => /^\d+$/.test(entry) && processStart(Number(entry)) !== undefined && isOfPod(entry),
    );
  await waitFor("the pods' processes end", 20, () => {
    const pids = matching();
    for (const pid of pids) {
      try {
        process.kill(Number(pid), "SIGKILL");
      } catch {} // it has just ended
    }
    return pids.length === 0 || undefined;
  });
}

function isOfPod(pid: string): boolean {
  const read = (file: string) => {
    try {
      return readFileSync(`/proc/${pid}/${file}`, "utf8");
    } catch {
      return "";
    }
  };
  return (
    /:\/k8s\.io\//.test(read("cgroup")) ||
    read("cmdline").startsWith(`${inSandbox.artifacts}/`) ||
    read("cmdline").includes("\0-address\0/run/containerd/containerd.sock\0")
  );
}

/** Takes off what the facade has mounted and made, and nothing that was there before it. */
async function removeFacade(name: string): Promise<void> {
  const cgroups = existsSync(`${RUN}/cgroup-mounts`);
  const mounts = readFileSync("/proc/self/mounts", "utf8")
    .split("\n")
    .map((line) => line.split(" "));
  const ours = mounts.filter(
    ([, target = "", type]) =>
      (target === "/proc/sys" && type === "overlay") || (cgroups && target.startsWith("/sys/fs/cgroup")),
  );
  // gVisor takes a hierarchy of cgroups for busy as long as anything was ever in it; nothing uses it any more.
  for (const [, target] of ours.reverse()) await run("umount", ["--lazy", target!]);
  for (const { path, content } of facadePlan(name, []).files)
    if ((await readFile(path, "utf8").catch(() => "")) === content) await rm(path);
  // The kernel's own log has another number.
  for (const { path, major, minor } of kernelLog.nodes ?? [])
    if (lstatSync(path, { throwIfNoEntry: false })?.rdev === major * 256 + minor) await rm(path);
}
