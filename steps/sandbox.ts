/**
 * A managed sandbox on this host: a runsc container with a network namespace of its own, a veth pair to the host, and a
 * state folder.
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { copyFile, mkdir, readFile, rm, rmdir, statfs, symlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { addressAt, parseNetwork } from "../config/network.ts";
import { sandboxSpec } from "../config/ociSpec.ts";
import { hostPath, inSandbox, sandboxPaths } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import type { SshTarget } from "../config/ssh.ts";
import { artifactFolder, artifactsFolder, pathInSandbox } from "../toolchain/artifacts.ts";
import { isAlive, nextIncarnation, processStart, readRecord, type SandboxRecord, writeRecord } from "./record.ts";
import { lastLines, type RunOptions, run, runsWell } from "./run.ts";
import { sshCommand } from "./ssh.ts";
import { waitFor } from "./wait.ts";

/** What it takes to find a sandbox and run something in it. */
export interface SandboxRef {
  name: string;
  home: string;
  /** The path of runsc; none where the sandbox is the machine that this runs on, or another one. */
  runsc?: string;
  /** The other machine. */
  ssh?: SshTarget;
}

export interface SandboxParams extends SandboxRef {
  runsc: string;
  /** The hash of a runsc of the user's, so that another program at the same path is another input. */
  runscDigest?: string;
  subnet: string;
  limits: Pick<StackConfig["sandbox"], "memory" | "cpus">;
  platform: StackConfig["sandbox"]["platform"];
  network: StackConfig["sandbox"]["network"];
  /** Whether it has a tap, and a way out through that: see `ensureEgress`. */
  egress?: boolean;
  /**
   * The host's ports that it reaches; without, nothing is filtered, as for a sandbox that is only probed. A change
   * restarts nothing.
   */
  hostPorts?: StackConfig["sandbox"]["hostPorts"];
}

/** What the node's state takes on an empty cluster, with room for a few images. */
const NEEDED_MIB = 512;

/** Runs a program in the sandbox. */
export function execIn(
  ref: SandboxRef,
  args: readonly string[],
  options: RunOptions = {},
): Promise<{ stdout: string; stderr: string }> {
  const [program, ...rest] = commandIn(ref, args);
  return run(program!, rest, options);
}

/** The command line on the host that runs a program in the sandbox. */
export function commandIn({ name, home, runsc, ssh }: SandboxRef, args: readonly string[]): readonly string[] {
  if (ssh) return sshCommand(ssh, args);
  return runsc === undefined ? args : [runsc, `--root=${sandboxPaths(name, home).runsc}`, "exec", name, ...args];
}

/** Runs sandbox-init as the tool that it is beside process 1. */
export function initIn(ref: SandboxRef, args: readonly string[], options: RunOptions = {}) {
  return execIn(ref, [pathInSandbox({ name: "init" }, "sandbox-init"), ...args], options);
}

/** The last lines of a service's log. */
export function serviceLog(ref: SandboxRef, service: string, count = 15): string {
  const file = hostPath(ref, `${inSandbox.logs}/${service}.log`);
  return existsSync(file)
    ? `the last lines of ${file}:\n${lastLines(readFileSync(file, "utf8"), count)}`
    : `there is no ${file}`;
}

/** A hash of everything that a sandbox is started with. */
export function sandboxRevision({ hostPorts: _, ...params }: SandboxParams): string {
  return createHash("sha256")
    .update(JSON.stringify([specOf(params), params]))
    .digest("hex");
}

function specOf({ name, home, limits }: SandboxParams) {
  return sandboxSpec({
    name,
    paths: sandboxPaths(name, home),
    artifacts: artifactsFolder(),
    init: pathInSandbox({ name: "init" }, "sandbox-init"),
    limits,
  });
}

/**
 * Makes the sandbox run as described: starts one that is new or dead, restarts one that was described otherwise, leaves
 * alone one that is as it should be. A first start that fails leaves nothing behind.
 * @throws Error that names what is in the way
 */
export async function ensureSandbox(params: SandboxParams): Promise<SandboxRecord> {
  const paths = sandboxPaths(params.name, params.home);
  const revision = sandboxRevision(params);
  const previous = readRecord(paths);
  if (previous && isAlive(previous)) {
    if (previous.revision === revision) {
      await filterLink(params);
      return previous;
    }
    await stopSandbox(params);
  }
  // A sandbox that was replaced has no record to count from; the command knows which start it is for.
  const incarnation = Math.max(nextIncarnation(paths, revision), Number(process.env.SANDBOX_INCARNATION ?? 0));
  await needDiskSpace(params.home);
  try {
    await clearRuntime(params);
    await writeBundle(params);
    await linkNetwork(params);
    await filterLink(params);
    const record = { incarnation, revision, ...(await startSandbox(params)) };
    await writeRecord(paths.record, record);
    return record;
  } catch (error) {
    await clearRuntime(params);
    if (previous === undefined) await removeState(params);
    throw error;
  }
}

/** Ends the sandbox and removes everything of it; one that is dead, half-made or gone is no error. */
export async function removeSandbox(params: SandboxRef): Promise<void> {
  await clearRuntime(params);
  await removeState(params);
}

async function needDiskSpace(home: string): Promise<void> {
  let existing = home;
  while (!existsSync(existing)) existing = dirname(existing);
  const { bavail, bsize } = await statfs(existing);
  const free = Math.floor((bavail * bsize) / 2 ** 20);
  if (free < NEEDED_MIB)
    throw new Error(
      `no space: ${existing} has ${free} MiB free and a sandbox needs ${NEEDED_MIB} MiB; make room, or ` +
        "set GVISOR_K3S_HOME to a folder on another disk",
    );
}

async function writeBundle(params: SandboxParams): Promise<void> {
  const paths = sandboxPaths(params.name, params.home);
  const { node } = linkAddresses(params.subnet);
  await mkdir(params.home, { recursive: true, mode: 0o700 });
  for (const folder of [paths.state, paths.bundle, paths.runsc]) await mkdir(folder, { recursive: true, mode: 0o700 });
  for (const folder of [paths.etc, paths.logs]) await mkdir(folder, { recursive: true, mode: 0o755 });
  await writeRootfs(paths.rootfs);
  const files: Record<string, string> = {
    passwd: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    group: "root:x:0:\nnogroup:x:65534:\n",
    hosts: `127.0.0.1 localhost\n::1 localhost\n${node} ${params.name}\n`,
    hostname: `${params.name}\n`,
    "resolv.conf": await resolvConf(params.egress),
    "os-release": 'ID=gvisor-k3s\nPRETTY_NAME="gvisor-k3s sandbox"\n', // what the node tells as its OS image
  };
  for (const [file, content] of Object.entries(files)) await writeFile(join(paths.etc, file), content);
  await writeFile(join(paths.bundle, "config.json"), JSON.stringify(specOf(params), null, 2), { mode: 0o600 });
}

/**
 * The root of the sandbox: busybox and the folders that mounts go to. What the node writes below it stays over
 * restarts.
 */
async function writeRootfs(rootfs: string): Promise<void> {
  const busybox = await staticBusybox();
  for (const folder of [
    "bin",
    "dev",
    "etc",
    "opt/gvisor-k3s",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/local/bin",
    "var/lib",
    inSandbox.logs,
  ]) {
    await mkdir(join(rootfs, folder), { recursive: true, mode: folder === "root" ? 0o700 : 0o755 });
  }
  await copyFile(busybox, join(rootfs, "bin/busybox"));
  const { stdout } = await run(busybox, ["--list"]);
  const links = [
    ...stdout
      .split("\n")
      .filter((applet) => applet !== "busybox")
      .map((applet) => [`bin/${applet}`, "busybox"]),
    ["var/run", "../run"],
    ...["containerd", "ctr"].map((tool) => [`usr/local/bin/${tool}`, pathInSandbox({ name: "containerd" }, tool)]),
    ["usr/local/bin/gvisor-k3s-node", pathInSandbox({ name: "server" }, "gvisor-k3s-node")],
  ];
  for (const [link, target] of links) {
    await rm(join(rootfs, link!), { force: true });
    await symlink(target!, join(rootfs, link!));
  }
}

export async function staticBusybox(): Promise<string> {
  const found = ["/bin/busybox", "/usr/bin/busybox"].find((path) => existsSync(path));
  if (!found) throw new Error("no /bin/busybox: install a static one (Debian: apt-get install busybox-static)");
  // A dynamic program asks for an interpreter; a static one has no such segment.
  if ((await readFile(found)).includes("/ld-"))
    throw new Error(`${found} is not static: install a static one (Debian: apt-get install busybox-static)`);
  return found;
}

/**
 * The host's resolv.conf; its name servers are asked by way of the egress, or, without one, directly, less those on
 * loopback, which the sandbox cannot reach.
 */
async function resolvConf(egress: boolean | undefined): Promise<string> {
  const lines = (await readFile("/etc/resolv.conf", "utf8").catch(() => ""))
    .split("\n")
    .filter((line) => line.trim() !== "");
  const unreachable = egress ? /^\s*nameserver\s/ : /^\s*nameserver\s+(127\.|::1)/;
  return `${[...(egress ? [`nameserver ${tapAddresses.gateway}`] : []), ...lines.filter((line) => !unreachable.test(line))].join("\n")}\n`;
}

/**
 * The tap's two ends. Each sandbox's network is its own, so they may all have the same link-local addresses, which no
 * stack has.
 */
export const tapAddresses = { device: "tap0", gateway: "169.254.77.1", node: "169.254.77.2", prefix: 30, mtu: 65000 };

/** The host's and the node's address on the link between them. */
export function linkAddresses(subnet: string) {
  const network = parseNetwork(subnet)!;
  return { host: addressAt(network, 1), node: addressAt(network, 2), prefix: 32 - Math.log2(network.size) };
}

async function linkNetwork({ name, home, subnet, egress }: SandboxParams): Promise<void> {
  const { link } = sandboxPaths(name, home);
  const { host, node, prefix } = linkAddresses(subnet);
  const ip = (...args: string[]) => run("ip", args);
  const inside = (...args: string[]) => ip("-netns", link, ...args);
  await ip("netns", "add", link);
  await ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", link);
  await ip("address", "add", `${host}/${prefix}`, "dev", link);
  await ip("link", "set", link, "up");
  await inside("address", "add", `${node}/${prefix}`, "dev", "eth0");
  await inside("link", "set", "lo", "up");
  await inside("link", "set", "eth0", "up");
  if (egress) {
    const { device, gateway, node: own, prefix: bits, mtu } = tapAddresses;
    await inside("tuntap", "add", "dev", device, "mode", "tap");
    await inside("address", "add", `${own}/${bits}`, "dev", device);
    await inside("link", "set", device, "mtu", String(mtu), "up");
    await inside("route", "add", "default", "via", gateway);
  } else {
    await inside("route", "add", "default", "via", host);
  }
}

/** Keeps the sandbox from those of the host's services that it was not given; see node/egress/linkfilter. */
async function filterLink({ name, home, hostPorts }: SandboxParams): Promise<void> {
  if (hostPorts === undefined) return;
  const ports = hostPorts === "all" ? "all" : hostPorts.join(",");
  await run(join(artifactFolder({ name: "egress" }), "linkfilter"), [
    `-netns=${sandboxPaths(name, home).networkNamespace}`,
    "-link=eth0",
    `-ports=${ports}`,
  ]).catch(advise);
}

async function startSandbox(params: SandboxParams): Promise<Pick<SandboxRecord, "pid" | "startTime">> {
  const paths = sandboxPaths(params.name, params.home);
  const pidFile = join(paths.runsc, "pid");
  const { limits } = params;
  const flags = [
    `--root=${paths.runsc}`,
    `--platform=${params.platform}`,
    `--network=${params.network}`,
    // Without an overlay of runsc's own the root is the host's folder: it keeps the cluster over restarts, and it can
    // carry containerd's overlays.
    "--overlay2=none",
    ...(limits.memory === null && limits.cpus === null ? ["--ignore-cgroups"] : ["--cpu-num-from-quota"]),
    `--debug-log=${paths.logs}/runsc/`,
    `--panic-log=${paths.logs}/runsc/panic.log`,
  ];
  await mkdir(join(paths.logs, "runsc"), { recursive: true });
  // runsc passes its standard output on to the sandbox, which lives on: a file takes it, or the pipe would never close.
  await run(
    params.runsc,
    [...flags, "run", "--detach", `--pid-file=${pidFile}`, `--bundle=${paths.bundle}`, params.name],
    { outputFile: join(paths.logs, "sandbox.log"), timeout: 30_000 },
  ).catch(advise);
  const pid = Number(await readFile(pidFile, "utf8"));
  const startTime = processStart(pid);
  if (startTime === undefined) throw new Error(`the sandbox ended at once; see ${paths.logs}/sandbox.log`);
  await waitFor(
    "sandbox-init answers",
    20,
    async () =>
      processStart(pid) === startTime
        ? await runsWell(params.runsc, [
            `--root=${paths.runsc}`,
            "exec",
            params.name,
            pathInSandbox({ name: "init" }, "sandbox-init"),
            "service",
            "status",
          ])
        : fail(`the sandbox ended\n${serviceLog(params, "sandbox")}`),
    () => serviceLog(params, "sandbox"),
  );
  return { pid, startTime };
}

/** Refusals that an option of this project's helps with. */
const ADVICE: Record<string, string> = {
  "cannot run with network enabled in root network namespace":
    "this runsc takes the network namespace of a newer kernel for the host's own: set " +
    "sandbox.network: host, with which it uses the kernel's network stack within the sandbox's own " +
    "namespace",
  "nftables netdev egress hook":
    "without it the services of this host that listen on every address cannot be kept from the " +
    "sandbox: set sandbox.hostPorts: all to let it reach them",
  "unknown platform": "this runsc does not know the platform: set sandbox.platform to one that it has, such as ptrace",
};

function advise(error: Error): never {
  const advice = Object.entries(ADVICE).flatMap(([refusal, remedy]) =>
    error.message.includes(refusal) ? [remedy] : [],
  );
  throw advice.length === 0 ? error : new Error([error.message, ...advice].join("\n"), { cause: error });
}

function fail(message: string): never {
  throw new Error(message);
}

/** Seconds that the services of a sandbox have to end before it is restarted with another configuration. */
const STOP = 30;

/**
 * Asks sandbox-init to end its services and itself; where that takes too long the sandbox is killed by {@link
 * clearRuntime}.
 */
async function stopSandbox(ref: SandboxParams): Promise<void> {
  const paths = sandboxPaths(ref.name, ref.home);
  await runsWell(ref.runsc, [`--root=${paths.runsc}`, "kill", ref.name, "TERM"]);
  await waitFor("the sandbox ends", STOP, () => (isAlive(readRecord(paths)) ? undefined : true)).catch(() => undefined);
}

/** Removes what a sandbox has outside its folder: processes, network, cgroups. It does not need a runsc that works. */
async function clearRuntime({ name, home }: SandboxRef): Promise<void> {
  const paths = sandboxPaths(name, home);
  await killProcesses(`--root=${paths.runsc}`);
  await killProcesses(egressArgument(paths));
  await unmountBelow(paths.state);
  await rm(paths.runsc, { recursive: true, force: true });
  await runsWell("ip", ["link", "delete", paths.link]);
  if (existsSync(paths.networkNamespace)) await run("ip", ["netns", "delete", paths.link]);
  for (const controller of existsSync("/sys/fs/cgroup") ? ["", ...readdirSync("/sys/fs/cgroup")] : []) {
    const group = join("/sys/fs/cgroup", controller, "gvisor-k3s");
    await removeCgroup(join(group, name));
    await rmdir(group).catch(() => undefined); // of other sandboxes as well, or not there
  }
}

/** A process that was killed leaves its cgroup when the last of its threads has ended, which is after it looks gone. */
async function removeCgroup(group: string): Promise<void> {
  // gVisor's own cgroups are none of the host's; natively (bench/native) the pods have theirs below.
  for (const entry of existsSync(group) ? readdirSync(group, { withFileTypes: true }) : [])
    if (entry.isDirectory()) await removeCgroup(join(group, entry.name));
  await waitFor(`the cgroup ${group} can be removed`, 20, () =>
    rmdir(group).then(
      () => true,
      (error: NodeJS.ErrnoException) => (error.code === "EBUSY" ? undefined : true),
    ),
  );
}

/** Where something is mounted, in the order of the mounts. */
export function mountPoints(): string[] {
  return readFileSync("/proc/self/mounts", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[1] ?? "");
}

/**
 * Takes off what is mounted on a folder or below it. runsc keeps a namespace mounted in its own, and leaves the mount
 * behind when it is killed.
 */
export async function unmountBelow(folder: string): Promise<void> {
  const targets = mountPoints().filter((target) => target === folder || target.startsWith(`${folder}/`));
  for (const target of targets.reverse()) await run("umount", [target]);
}

export async function removeState({ name, home }: SandboxRef): Promise<void> {
  await rm(sandboxPaths(name, home).state, { recursive: true, force: true });
  await rmdir(join(home, "sandboxes")).catch(() => undefined); // other sandboxes are in it
}

/** The argument by which a sandbox's egress is known among the host's processes. */
export function egressArgument({ networkNamespace }: ReturnType<typeof sandboxPaths>): string {
  return `-netns=${networkNamespace}`;
}

/** Kills every process that was started with this very argument, and waits until they are gone. */
export async function killProcesses(argument: string): Promise<void> {
  const matching = () =>
    readdirSync("/proc")
      .filter((entry) => /^\d+$/.test(entry))
      .map(Number)
      .filter((pid) => pid !== process.pid && processStart(pid) !== undefined && commandLine(pid).includes(argument));
  await waitFor(`processes with ${argument} end`, 20, () => {
    const pids = matching();
    for (const pid of pids) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {} // it has just ended
    }
    return pids.length === 0 || undefined;
  });
}

function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  } catch {
    return [];
  }
}
