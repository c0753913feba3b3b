/**
 * What a machine is given, and where it lies: looked up in a manifest, which tells the id of each artifact. An id names
 * an artifact by everything that goes into it, so a folder that is there is never stale, and its path is known before
 * it exists. Nothing is compiled here: what is missing is made by toolchain/build.ts, a program of its own.
 * @module
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readFileSync, readSync } from "node:fs";
import { chmod, mkdir, mkdtemp, rename, rm } from "node:fs/promises";
import { arch } from "node:os";
import { extname, join, relative } from "node:path";
import { inSandbox } from "../config/paths.ts";
import { readJson } from "../system/files.ts";
import { cacheFolder } from "../system/folders.ts";
import { run } from "../system/run.ts";

/** What is built from Go modules, for a user's machine. */
export const usualArtifacts = [
  "runsc",
  "runc",
  "containerd",
  "cni",
  "init",
  "host",
  "wrapper",
  "server",
  "images",
  "pulumi",
  "standins",
] as const;

/** What is built for tests only. */
export const testArtifacts = ["runsc-2025-02", "registry", "helm", "pulumi-yaml", "conformance"] as const;

/** The name of something that is built from Go modules. */
export type ArtifactName = (typeof usualArtifacts)[number] | (typeof testArtifacts)[number];

/** An artifact with the choices that its build takes. */
export interface Artifact {
  name: ArtifactName;
  /** Ids of patches in `toolchain/NAME/patches`, applied in order; only runc has any. */
  patches?: string[];
}

/** What the sources, or a release, hold. */
export interface Manifest {
  version: 1;
  /** The id of each artifact as it is without choices. */
  artifacts: Record<ArtifactName, string>;
  /** For each artifact that can be patched, its patches: the hash of each by its id. */
  patches: Partial<Record<ArtifactName, Record<string, string>>>;
  /** Versions of what is contained, without a leading v. */
  versions: Record<"gvisor" | "kubernetes" | "runc" | "containerd" | "pulumi", string>;
}

const root = join(import.meta.dirname, "..");
const extension = extname(import.meta.filename); // compiled in the npm package

/** Names the manifest's file for what is started from here, so that it is looked for once. */
const VARIABLE = "GVISOR_K3S_MANIFEST";

let known: Manifest | undefined;

/**
 * The manifest of this checkout or package.
 * @throws Error that says what is missing to make it
 */
export function manifest(): Manifest {
  process.env[VARIABLE] ||= toolchain("--manifest").trim();
  known ??= readJson<Manifest>(process.env[VARIABLE]!, "delete it");
  if (known === undefined) throw new Error(`there is no ${process.env[VARIABLE]}; unset ${VARIABLE}`);
  return known;
}

/** Runs toolchain/build.ts, which is fast unless it builds, and returns what it prints. */
function toolchain(...args: string[]): string {
  try {
    return execFileSync(process.execPath, [join(root, `toolchain/build${extension}`), ...args], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
  } catch (error) {
    throw new Error((error as { stderr?: string }).stderr?.trim() || (error as Error).message, { cause: error });
  }
}

/** The name of an artifact's folder. */
export function artifactId({ name, patches = [] }: Artifact): string {
  const { artifacts, patches: all } = manifest();
  const plain = artifacts[name];
  if (patches.length === 0) return plain;
  const hashes = patches.map((id) => {
    const hash = all[name]?.[id];
    if (hash === undefined) throw new Error(`there is no patch ${id} of ${name}`);
    return hash;
  });
  return `${name}-${digest(plain, ...hashes)}`;
}

/** The ids of the patches that an artifact can be built with. */
export function knownPatches(name: ArtifactName): string[] {
  return Object.keys(manifest().patches[name] ?? {}).sort();
}

/** What `patch` says of a patch that does not apply to the pinned source; undefined if it does. */
export function patchRefusal(name: ArtifactName, id: string): string | undefined {
  return toolchain("--try-patch", id, name).trim() || undefined;
}

/** The folder of an artifact below the cache; it exists once the artifact is there. */
export function artifactFolder(artifact: Artifact): string {
  return join(artifactsFolder(), artifactId(artifact));
}

/** A file of an artifact by its path in a sandbox. */
export function pathInSandbox(artifact: Artifact, file: string): string {
  return join(inSandbox.artifacts, artifactId(artifact), file);
}

/** A program of an artifact on the host, from its path in a sandbox. */
export function pathOnHost(inside: string): string {
  return join(artifactsFolder(), relative(inSandbox.artifacts, inside));
}

/** The folder of the artifact that a path in a sandbox lies in, below the cache. */
export function folderOf(inside: string): string {
  return join(artifactsFolder(), relative(inSandbox.artifacts, inside).split("/")[0]!);
}

/** The folder that holds all artifacts, which every sandbox sees read-only. */
export function artifactsFolder(): string {
  return join(cacheFolder(), "artifacts");
}

/** An artifact by its id, as a step takes it: where it is there already, nothing else is asked. */
export type Wanted = Artifact & { id: string };

/** An artifact as it is to be provided. */
export function wanted(artifact: Artifact): Wanted {
  return { ...artifact, id: artifactId(artifact) };
}

/**
 * Sees to it that an artifact is there.
 * @param say takes a line per thing that is done
 * @returns its folder
 * @throws CommandError of the compiler, or of a patch that does not apply
 */
export async function provide({ id, name, patches = [] }: Wanted, say: (line: string) => void): Promise<string> {
  const folder = join(artifactsFolder(), id);
  if (existsSync(folder)) return folder;
  say(`building ${[name, ...patches].join(" with ")}`);
  const choices = patches.flatMap((patch) => ["--patch", patch]);
  await run(process.execPath, [join(root, `toolchain/build${extension}`), ...choices, name]);
  if (!existsSync(folder)) throw new Error(`${name} was built, and not as ${folder}: its sources changed meanwhile`);
  return folder;
}

/** Fills a folder under a temporary name and moves it into place at once, so that a folder that exists is whole. */
export async function intoPlace(folder: string, fill: (work: string) => Promise<void>): Promise<string> {
  await mkdir(artifactsFolder(), { recursive: true, mode: 0o755 });
  const work = await mkdtemp(`${folder}.tmp-`);
  try {
    await fill(work);
    await chmod(work, 0o755);
    await rename(work, folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error; // another process was faster
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return folder;
}

/** The images that are built here. */
export const ownImages = ["pause", "testpod", "coredns", "metrics-server"] as const;
export type OwnImage = (typeof ownImages)[number];

/** What their names begin with. */
export const OWN_IMAGES = "gvisor-k3s.local/";

/**
 * The full name of an image that is built here; the tag is a hash of what goes into them, so a name is never reused for
 * other content.
 */
export function imageName(image: OwnImage, id = artifactId({ name: "images" })): string {
  return `${OWN_IMAGES}${image}:${id.split("-").at(-1)}`;
}

/** The archive of an image that is built here, on the host. */
export function imageArchive(image: OwnImage): string {
  return join(artifactFolder({ name: "images" }), `${image}.tar`);
}

/** Go's name for this machine's architecture. */
export function goArch(): string {
  return arch() === "x64" ? "amd64" : arch();
}

/** Names something by everything that goes into it. */
export function digest(...parts: (string | Buffer)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest("hex").slice(0, 12);
}

/** The SHA-256 of a file of any size, in hex. */
export function fileDigest(path: string): string {
  const [hash, buffer, file] = [createHash("sha256"), Buffer.alloc(2 ** 20), openSync(path, "r")];
  try {
    for (let size = readSync(file, buffer); size > 0; size = readSync(file, buffer))
      hash.update(buffer.subarray(0, size));
    return hash.digest("hex");
  } finally {
    closeSync(file);
  }
}

/** This project's version. */
export function ownVersion(): string {
  return (JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string }).version;
}
