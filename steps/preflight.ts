/**
 * What stands in the way of a configuration on this machine, before anything is made.
 * @module
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { arch, totalmem } from "node:os";
import { parseAllDocuments } from "yaml";
import { entriesOf } from "../artifacts/archive.ts";
import { knownPatches, patchRefusal } from "../artifacts/artifacts.ts";
import { readElf } from "../artifacts/elf.ts";
import { type JoiningNode, joiningNodes, nodesOf } from "../config/nodes.ts";
import { type Problem, refuse } from "../config/problems.ts";
import { tlsFiles } from "../config/registries.ts";
import { CRUN, type StackConfig } from "../config/schema.ts";
import { driverOf, openMachine, refOf } from "../machines/index.ts";
import type { Observed } from "../machines/observe.ts";
import { readRecord, takenBy } from "../machines/record.ts";
import type { MachineRef } from "../machines/ref.ts";
import { externalProblems } from "../servers/external.ts";
import { distributionOf } from "../servers/index.ts";
import { lastReady, versionProblems } from "../servers/ready.ts";
import { isExecutable, says } from "../system/programs.ts";

/**
 * Checks what only this machine can tell.
 * @param owner who asks, as "PROJECT/STACK": a name that is another one's here is refused
 * @throws InputError that lists every problem at once
 */
export function preflight(config: StackConfig, owner?: string): void {
  if (config.mode === "external") {
    refuse(externalProblems(config.external));
    return;
  }
  const driver = driverOf(config);
  const ref = refOf(config);
  refuse([
    ...ownerProblems(ref, owner),
    ...driver.problemsOf(config, ref, owner),
    ...patchProblems(config),
    ...releases(config).flatMap((node) => distributionOf(node).problemsOf(node)),
    ...joiningNodes(config).flatMap((node) => nodeProblems(node, owner)),
    ...memoryProblems(config),
    ...versionProblems(lastReady(ref), config),
    ...programProblems(config),
    ...config.images.flatMap(archiveProblem),
    ...config.manifests.flatMap(manifestProblems),
    ...tlsFiles(config.registries).flatMap(tlsProblems),
    ...Object.entries(config.node.files).flatMap(fileProblems),
  ]);
}

/**
 * Checks what only the machine itself can tell, which may be elsewhere.
 * @throws InputError that lists every problem at once
 */
export async function preflightThere(config: StackConfig): Promise<void> {
  if (config.mode === "external") return;
  const nodes = nodesOf(config).filter((node) => driverOf(node).problemsThere);
  const asked = nodes.map(async (node) => problemsThere(node, await openMachine(refOf(node)).observe()));
  refuse((await Promise.all(asked)).flat());
}

const problemsThere = (config: StackConfig, observed: Observed) =>
  driverOf(config).problemsThere?.(config, refOf(config), observed) ?? [];

/** The same, of a machine that was observed. */
export function needMachine(config: StackConfig, observed: Observed): void {
  refuse(problemsThere(config, observed));
}

/** What stands in the way of a further node: as of the server's, but for what the options say of all of them. */
function nodeProblems({ name, pool, config }: JoiningNode, owner: string | undefined): Problem[] {
  const ref = refOf(config);
  const own = [...ownerProblems(ref, owner), ...driverOf(config).problemsOf(config, ref, owner)];
  if (config.target === "ssh") return own.map((problem) => ({ ...problem, option: `nodes.${pool}.${problem.option}` }));
  return own
    .filter(({ option }) => option === "name" || option === "sandbox.subnet")
    .map((problem) => ({ ...problem, option: "nodes", value: `${name} (${config.sandbox.subnet})` }));
}

/** The options of one node for each release of Kubernetes that the cluster's nodes are of. */
function releases(config: StackConfig): StackConfig[] {
  const of = ({ kubernetes, k3s }: StackConfig) => JSON.stringify([kubernetes, k3s]);
  return [...new Map(nodesOf(config).map((node) => [of(node), node])).values()];
}

/** MiB that a node takes at least, and the server's. */
const [NODE_MIB, SERVER_MIB] = [160, 350];

function memoryProblems({ nodes }: StackConfig): Problem[] {
  const count = nodes.filter(({ ssh }) => ssh === undefined).reduce((sum, pool) => sum + pool.count, 0);
  const [needed, has] = [SERVER_MIB + count * NODE_MIB, Math.floor(totalmem() / 2 ** 20)];
  if (count === 0 || needed <= has) return [];
  const message = `so many nodes take at least ${needed} MiB, and this host has ${has} MiB; have fewer of them`;
  return [{ option: "nodes", value: `${count} nodes`, message }];
}

function ownerProblems(ref: MachineRef, owner: string | undefined): Problem[] {
  const taken = owner === undefined ? undefined : takenBy(ref, readRecord(ref.name, ref.home), owner);
  return taken === undefined ? [] : [{ option: "name", value: ref.name, message: taken }];
}

function patchProblems({ runtime: { patches } }: StackConfig): Problem[] {
  if (patches.length === 0) return [];
  const known = knownPatches("runc");
  return patches.flatMap((id): Problem[] => {
    const problem = (message: string) => [{ option: "runtime.patches", value: id, message }];
    if (!known.includes(id)) return problem(`there is no such patch; there are: ${known.join(", ") || "none"}`);
    const refusal = patchRefusal("runc", id)?.replaceAll("\n", "; ");
    const pinned = "the runc that is pinned in toolchain/runc/go.mod";
    return refusal === undefined ? [] : problem(`it does not apply to ${pinned}: ${refusal}`);
  });
}

/** What is wrong with the programs of the user's. */
function programProblems(config: StackConfig): Problem[] {
  const { containerd, k3s, sandbox, runtime } = config;
  const crun = runtime.name === "crun";
  const inTheSandbox: Record<string, string | undefined> = {
    "containerd.containerd": containerd.containerd,
    "containerd.shim": containerd.shim,
    "runtime.path": runtime.path,
  };
  const theirs = config.nodes.map(({ name, k3s: its }) => [`nodes.${name}.k3s.path`, its?.path]);
  const k3sPaths = { "k3s.path": k3s.path, ...Object.fromEntries(theirs) };
  const problems = missing({ ...k3sPaths, "sandbox.runsc": sandbox.runsc, ...inTheSandbox });
  if (crun && runtime.path === undefined && !isExecutable(CRUN)) {
    const message =
      `there is no ${CRUN}; install it (Debian: apt-get install crun), or give the path of another one with ` +
      "runtime.path";
    problems.push({ option: "runtime.name", value: "crun", message });
  }
  for (const [option, program] of Object.entries(inTheSandbox)) {
    if (!program || !isExecutable(program)) continue;
    problems.push(...elfProblems(option, program, crun && option === "runtime.path"));
  }
  return [...problems, ...setProblems(containerd)];
}

function missing(programs: Record<string, string | undefined>): Problem[] {
  const message = "there is no such program; give the path of an executable file, or leave the option out";
  const without = Object.entries(programs).filter(([, path]) => path && !isExecutable(path));
  return without.map(([option, value]) => ({ option, value, message }));
}

/** Programs that run in the sandbox are this machine's, and find no libraries there but those that are taken along. */
function elfProblems(option: string, value: string, dynamicToo: boolean): Problem[] {
  const elf = readElf(value);
  if (elf === undefined) return []; // a script, say
  const problem = (message: string): Problem[] => [{ option, value, message }];
  if (elf.arch !== arch()) {
    return problem(`it is built for ${elf.arch}, and this machine is ${arch()}; give one for ${arch()}`);
  }
  if (elf.loader === undefined || dynamicToo) return [];
  return problem("it is linked with shared libraries, which the sandbox does not have; give a static one");
}

/** containerd and its shim speak one protocol only if they are of one version. */
function setProblems({ containerd, shim }: StackConfig["containerd"]): Problem[] {
  if (!containerd || !shim || !isExecutable(containerd) || !isExecutable(shim)) return [];
  const [ours, theirs] = [version(containerd, "--version"), version(shim, "-v")];
  if (ours === theirs) return [];
  const message = `the shim is ${theirs} and containerd (${containerd}) is ${ours}: they must be of one version`;
  return [{ option: "containerd.shim", value: shim, message }];
}

function version(program: string, flag: string): string {
  const found = says(program, flag).match(/\bv?\d+\.\d+\.\d+\S*/)?.[0];
  return found?.replace(/^v/, "") ?? "of no known version";
}

/** Bytes that a file for the server may have; a step's content passes through the stack's state. */
const LARGEST_FILE = 2 ** 20;

/** Looks at the archive as far as it is a tar archive; containerd is the judge of what is in it. */
export function archiveProblem(path: string): Problem[] {
  const problem = (message: string): Problem[] => [{ option: "images", value: path, message }];
  const advice = "give one that `docker save` or an OCI tool wrote";
  if (!existsSync(path)) return problem("there is no such file");
  let entries: string[];
  try {
    entries = entriesOf(path);
  } catch (error) {
    return problem(`it is no tar archive, or a broken one (${(error as Error).message}); ${advice}`);
  }
  // Both of what `docker save` and what OCI tools write have an index at the top.
  if (entries.some((entry) => /^(\.\/)?(index|manifest)\.json$/.test(entry))) return [];
  return problem(`it is a tar archive but none of an image: it has neither index.json nor manifest.json; ${advice}`);
}

function tlsProblems({ option, path }: { option: string; path: string }): Problem[] {
  if (!existsSync(path)) return [{ option, value: path, message: "there is no such file" }];
  if (readFileSync(path, "utf8").includes("-----BEGIN ")) return [];
  return [{ option, value: path, message: "it is no PEM file; give one that has a -----BEGIN line" }];
}

/** A file for the server that cannot be brought in. */
function fileProblems([path, source]: [string, string]): Problem[] {
  const problem = (message: string): Problem[] => [{ option: `node.files.${path}`, value: source, message }];
  const stat = statSync(source, { throwIfNoEntry: false });
  if (stat === undefined) return problem("there is no such file");
  if (!stat.isFile()) return problem("it is no regular file");
  return stat.size > LARGEST_FILE ? problem(`it is larger than ${LARGEST_FILE} bytes`) : [];
}

/** What is no Kubernetes object in a manifest; whether the cluster takes it, the cluster tells. */
function manifestProblems(path: string): Problem[] {
  const problem = (message: string): Problem => ({ option: "manifests", value: path, message });
  if (!existsSync(path)) return [problem("there is no such file")];
  return parseAllDocuments(readFileSync(path, "utf8")).flatMap((document, i) => {
    const [error] = document.errors;
    if (error) return [problem(`document ${i + 1} is no YAML: ${error.message.split("\n")[0]}`)];
    type Shape = { apiVersion?: unknown; kind?: unknown; metadata?: { name?: unknown }; items?: unknown };
    const object = document.toJS() as Shape | null;
    const whole = object === null || (object.apiVersion && object.kind && (object.metadata?.name || object.items));
    if (whole) return [];
    return [problem(`document ${i + 1} is no Kubernetes object: apiVersion, kind and metadata.name are needed`)];
  });
}
