import { execFileSync } from "node:child_process";
import { accessSync, constants, existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { arch, networkInterfaces } from "node:os";
import { dirname, join } from "node:path";
import { list } from "tar";
import { parseAllDocuments } from "yaml";
import { kubeconfigProblems } from "../config/external.ts";
import { overlap, parseNetwork } from "../config/network.ts";
import { homeFolder, sandboxPaths } from "../config/paths.ts";
import { type Problem, refuse } from "../config/problems.ts";
import { tlsFiles } from "../config/registries.ts";
import { CRUN, needsEgress, type StackConfig } from "../config/schema.ts";
import { type SshTarget, sshTarget } from "../config/ssh.ts";
import { knownPatches, patchRefusal } from "../toolchain/artifacts.ts";
import { k3sFolder, releaseFiles } from "../toolchain/k3sRelease.ts";
import { readElf } from "../toolchain/elf.ts";
import { ownFolders } from "./inside.ts";
import { type Machine, machineOf } from "./observe.ts";
import { readRecord } from "./record.ts";
import { keyProblems, SshError } from "./ssh.ts";
import { lastReady, versionProblems } from "./upgrade.ts";
import { notedMachine } from "./upload.ts";

/**
 * Checks what only this machine can tell, before anything is made.
 * @throws InputError that lists every problem at once
 */
export function preflight(config: StackConfig): void {
  if (config.mode === "external") {
    refuse(kubeconfigProblems(config.external));
    return;
  }
  const problems: Problem[] = [];
  const ssh = sshTarget(config);
  const here = { name: config.name, home: homeFolder() };
  if (!ssh && process.getuid?.() !== 0)
    problems.push({
      option: "user",
      value: process.getuid?.(),
      message: "root is needed to make network namespaces and sandboxes; run it with sudo",
    });
  if (ssh && !isWritable(here.home))
    problems.push({
      option: "GVISOR_K3S_HOME",
      value: here.home,
      message: "it cannot be written; set this variable to a folder of yours",
    });
  const known = knownPatches("runc");
  for (const id of config.runtime.patches) {
    const refusal = known.includes(id) ? patchRefusal("runc", id) : undefined;
    if (!known.includes(id))
      problems.push({
        option: "runtime.patches",
        value: id,
        message: `there is no such patch; there are: ${known.join(", ") || "none"}`,
      });
    if (refusal !== undefined)
      problems.push({
        option: "runtime.patches",
        value: id,
        message:
          "it does not apply to the runc that is pinned in toolchain/runc/go.mod: " +
          `${refusal.replaceAll("\n", "; ")}`,
      });
  }
  const { name: runtime, path = runtime === "crun" ? CRUN : undefined } = config.runtime;
  const inTheSandbox = {
    "runtime.path": path,
    "containerd.containerd": config.containerd.containerd,
    "containerd.shim": config.containerd.shim,
  };
  if (runtime === "crun" && config.runtime.path === undefined && !isExecutable(CRUN)) {
    problems.push({
      option: "runtime.name",
      value: runtime,
      message:
        `there is no ${CRUN}; install it (Debian: apt-get install crun), or give the path of another one ` +
        "with runtime.path",
    });
    delete inTheSandbox["runtime.path"];
  }
  problems.push(...k3sProblems(config));
  problems.push(...missing({ "k3s.path": config.k3s.path, "sandbox.runsc": config.sandbox.runsc, ...inTheSandbox }));
  for (const [option, program] of Object.entries(inTheSandbox))
    if (program && isExecutable(program))
      problems.push(...elfProblems(option, program, runtime === "crun" && option === "runtime.path"));
  const { runsc } = config.sandbox;
  if (runsc && isExecutable(runsc) && !output(runsc, "--version").startsWith("runsc version")) {
    problems.push({
      option: "sandbox.runsc",
      value: runsc,
      message:
        "`--version` of it does not say that it is runsc; give the path of gVisor's runsc, or leave the option out",
    });
  }
  problems.push(
    ...setProblems(config.containerd),
    ...config.images.flatMap(archiveProblem),
    ...config.manifests.flatMap(manifestProblems),
    ...tlsFiles(config.registries).flatMap(tlsProblems),
  );
  if (ssh) problems.push(...machineProblems(ssh, config));
  else problems.push(...versionProblems(lastReady(here), config), ...subnetProblems(config));
  if (config.target === "inside") problems.push(...insideProblems(config));
  if (needsEgress(config) && !existsSync("/dev/net/tun")) {
    problems.push({
      option: "egress.enabled",
      value: true,
      message:
        "the host has no /dev/net/tun; load it (modprobe tun), or set egress.enabled to false: pods and " +
        "pulls then reach no further than the host",
    });
  }
  refuse(problems);
}

/**
 * What stands in the way of the official release: its source is looked at before anything is made, and downloaded
 * later.
 */
function k3sProblems({ distribution, k3s }: StackConfig): Problem[] {
  if (distribution !== "k3s" || k3s.path !== undefined || existsSync(k3sFolder(k3s))) return [];
  if (k3s.airgap !== undefined) {
    const absent = Object.values(releaseFiles()).filter((file) => !existsSync(join(k3s.airgap!, file)));
    return absent.length === 0
      ? []
      : [
          {
            option: "k3s.airgap",
            value: k3s.airgap,
            message: `${absent.join(" and ")} of ${k3s.version} must be in it`,
          },
        ];
  }
  const tools = ["curl", "flock"].filter((tool) => output(tool, "--version") === "");
  return tools.map((tool) => ({
    option: "distribution",
    value: "k3s",
    message: `there is no ${tool} to download it with; install it, or set k3s.airgap or k3s.path`,
  }));
}

/** What a node on this machine would take over, and lacks. */
function insideProblems({ name, target }: StackConfig): Problem[] {
  const problem = (message: string): Problem => ({ option: "target", value: target, message });
  const problems =
    output("ip", "-V") === "" ? [problem("there is no `ip` here; install it (Debian: apt-get install iproute2)")] : [];
  if (readRecord(sandboxPaths(name)) !== undefined) return problems; // what is there is this node's
  const taken = ownFolders.filter((folder) => existsSync(folder) && readdirSync(folder).length > 0);
  return taken.length === 0
    ? problems
    : [
        ...problems,
        problem(
          `this machine has a container runtime or a node already, or what one left: ${taken.join(", ")}; ` +
            "a node needs these for itself: remove them, or use target: managed",
        ),
      ];
}

/** What stands in the way on another machine, beginning with the way to it. */
function machineProblems(ssh: SshTarget, config: StackConfig): Problem[] {
  const keys = keyProblems(ssh);
  if (keys.length > 0) return keys;
  try {
    return problemsOn(machineOf(ssh, config.name), ssh, config);
  } catch (error) {
    if (error instanceof SshError) return [error.problem];
    throw error;
  }
}

/** The same, of a machine that answers. */
function problemsOn(machine: Machine, { host }: SshTarget, config: StackConfig): Problem[] {
  const problem = (message: string): Problem => ({ option: "ssh.host", value: host, message });
  const problems: Problem[] = [];
  if (!machine.isGvisor)
    problems.push(
      problem(
        "it is no gVisor sandbox, and the node would be on its kernel; give a machine that is one, or " +
          "use target: managed on it",
      ),
    );
  if (ARCHITECTURES[machine.arch] !== arch())
    problems.push(
      problem(`it is ${machine.arch}, and what is built here is for ${arch()}; run this on a machine like it`),
    );
  if (machine.missing.length > 0)
    problems.push(
      problem(
        `it lacks ${machine.missing.join(", ")}; a node needs them (programs, on Debian: apt-get install ` +
          "iproute2 mount tar coreutils busybox-static)",
      ),
    );
  const { record, ready } = machine.observed ?? {};
  if (record === undefined) {
    if (machine.taken.length > 0)
      problems.push(
        problem(
          `it has a container runtime or a node already, or what one left: ${machine.taken.join(", ")}; a ` +
            "node needs these for itself: remove them, or give another machine",
        ),
      );
    if (machine.free < REMOTE_MIB)
      problems.push(
        problem(`/var/lib has ${machine.free} MiB free there, and a node needs ${REMOTE_MIB} MiB; make room`),
      );
  } else if (notedMachine({ name: config.name, home: homeFolder() }) === undefined) {
    problems.push({
      option: "name",
      value: config.name,
      message:
        `${host} has a node of this name that was made from elsewhere; choose another machine, or ` +
        "destroy it from there",
    });
  }
  return [...problems, ...versionProblems(ready, config)];
}

/** What is copied to another machine, and the state of an empty cluster. */
const REMOTE_MIB = 1536;

/** Node.js' names for what `uname -m` tells. */
const ARCHITECTURES: Record<string, string> = { x86_64: "x64", aarch64: "arm64" };

function missing(programs: Record<string, string | undefined>): Problem[] {
  const without = Object.entries(programs).filter(([, path]) => path && !isExecutable(path));
  return without.map(([option, value]) => ({
    option,
    value,
    message: "there is no such program; give the path of an executable file, or leave the option out",
  }));
}

/** Programs that run in the sandbox are this machine's, and find no libraries there but those that are taken along. */
function elfProblems(option: string, value: string, dynamicToo: boolean): Problem[] {
  const elf = readElf(value);
  if (elf === undefined) return []; // a script, say
  if (elf.arch !== arch())
    return [
      { option, value, message: `it is built for ${elf.arch}, and this machine is ${arch()}; give one for ${arch()}` },
    ];
  if (elf.loader !== undefined && !dynamicToo)
    return [
      {
        option,
        value,
        message: "it is linked with shared libraries, which the sandbox does not have; give a static one",
      },
    ];
  return [];
}

/** containerd and its shim speak one protocol only if they are of one version. */
function setProblems({ containerd, shim }: StackConfig["containerd"]): Problem[] {
  if (!containerd || !shim || !isExecutable(containerd) || !isExecutable(shim)) return [];
  const [ours, theirs] = [version(containerd, "--version"), version(shim, "-v")];
  if (ours === theirs) return [];
  return [
    {
      option: "containerd.shim",
      value: shim,
      message: `the shim is ${theirs} and containerd (${containerd}) is ${ours}: they must be of one version`,
    },
  ];
}

function version(program: string, flag: string): string {
  return (
    output(program, flag)
      .match(/\bv?\d+\.\d+\.\d+\S*/)?.[0]
      .replace(/^v/, "") ?? "of no known version"
  );
}

/** What a program prints; nothing if it fails. */
function output(program: string, ...args: string[]): string {
  try {
    return execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], timeout: 10_000 });
  } catch {
    return "";
  }
}

/** Reads the archive through, as far as it is a tar archive; containerd is the judge of what is in it. */
export function archiveProblem(path: string): Problem[] {
  const problem = (message: string): Problem[] => [{ option: "images", value: path, message }];
  if (!existsSync(path)) return problem("there is no such file");
  const entries: string[] = [];
  try {
    list({ file: path, sync: true, strict: true, onReadEntry: (entry) => void entries.push(entry.path) });
  } catch (error) {
    return problem(
      `it is no tar archive, or a broken one (${(error as Error).message}); give one that \`docker ` +
        `save\` or an OCI tool wrote`,
    );
  }
  // Both of what `docker save` and what OCI tools write have an index at the top.
  return entries.some((entry) => /^(\.\/)?(index|manifest)\.json$/.test(entry))
    ? []
    : problem(
        "it is a tar archive but none of an image: it has neither index.json nor manifest.json; give one " +
          "that `docker save` or an OCI tool wrote",
      );
}

function tlsProblems({ option, path }: { option: string; path: string }): Problem[] {
  if (!existsSync(path)) return [{ option, value: path, message: "there is no such file" }];
  return readFileSync(path, "utf8").includes("-----BEGIN ")
    ? []
    : [{ option, value: path, message: "it is no PEM file; give one that has a -----BEGIN line" }];
}

/** What is no Kubernetes object in a manifest; whether the cluster takes it, the cluster tells. */
function manifestProblems(path: string): Problem[] {
  const problem = (message: string): Problem => ({ option: "manifests", value: path, message });
  if (!existsSync(path)) return [problem("there is no such file")];
  return parseAllDocuments(readFileSync(path, "utf8")).flatMap((document, i) => {
    if (document.errors.length > 0)
      return [problem(`document ${i + 1} is no YAML: ${document.errors[0]!.message.split("\n")[0]}`)];
    const object = document.toJS() as {
      apiVersion?: unknown;
      kind?: unknown;
      metadata?: { name?: unknown };
      items?: unknown;
    } | null;
    const whole = object === null || (object.apiVersion && object.kind && (object.metadata?.name || object.items));
    return whole
      ? []
      : [problem(`document ${i + 1} is no Kubernetes object: apiVersion, kind and metadata.name are needed`)];
  });
}

/** An address of the host in the sandbox's subnet, unless it is this sandbox's own link. */
function subnetProblems({ target, name, sandbox }: StackConfig): Problem[] {
  const { link } = sandboxPaths(name);
  if (target === "inside" && readRecord(sandboxPaths(name)) !== undefined) return []; // it is this node's
  const subnet = parseNetwork(sandbox.subnet)!;
  const taken = Object.entries(networkInterfaces()).flatMap(([device, addresses]) =>
    (addresses ?? []).map(({ cidr }) => ({ device, cidr })),
  );
  const problems: Problem[] = [];
  for (const { device, cidr } of taken) {
    const [address, prefix] = (cidr ?? "").split("/");
    const size = 2 ** (32 - Number(prefix));
    const host = address && !address.includes(":") ? parseNetwork(`${address}/32`) : undefined;
    if (!host || device === link) continue;
    const network = { cidr: cidr!, first: host.first - (host.first % size), size };
    if (overlap(subnet, network))
      problems.push({
        option: "sandbox.subnet",
        value: sandbox.subnet,
        message: `the host's ${device} has ${cidr}; choose a network that the host does not use`,
      });
  }
  if (existsSync(`/run/netns/${link}`) && readRecord(sandboxPaths(name)) === undefined) {
    problems.push({
      option: "name",
      value: name,
      message:
        `a sandbox of this name exists on this machine with another home (network namespace ${link}); ` +
        "choose another name",
    });
  }
  return problems;
}

/** Whether a folder can be written, or made. */
function isWritable(folder: string): boolean {
  const there = existsSync(folder);
  try {
    if (there) accessSync(folder, constants.W_OK);
  } catch {
    return false;
  }
  return there || isWritable(dirname(folder));
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile(); // a folder's permission to enter it looks the same
  } catch {
    return false;
  }
}
