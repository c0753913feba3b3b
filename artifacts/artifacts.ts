/**
 * What a machine is given, and where it lies: looked up in a manifest, which tells the id of each artifact. An id names
 * an artifact by everything that goes into it, so a folder that is there is never stale, and its path is known before
 * it exists. Nothing is compiled here: what is missing is made by toolchain/build.ts, a program of its own.
 * @module
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { arch } from "node:os";
import { extname, join, relative } from "node:path";
import { type KubernetesMinor, newestKubernetes, olderKubernetes } from "../config/kubernetes.ts";
import { inSandbox } from "../config/paths.ts";
import { readJson } from "../system/files.ts";
import { compileCacheFolder } from "../system/folders.ts";
import { findProgram } from "../system/programs.ts";
import { run } from "../system/run.ts";
import { artifactsFolder } from "./cache.ts";
import { isInstalled, isObtainable, obtain, type Release } from "./release.ts";

export { artifactsFolder, fileDigest, intoPlace } from "./cache.ts";

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
  "language-host",
  "standins",
] as const;

/** What is built, or taken from a release, only where an option asks for it. */
export const optionalArtifacts = ["traefik"] as const;

/** What is built for tests only. */
export const testArtifacts = [
  "runsc-2025-02",
  "registry",
  "helm",
  "pulumi-yaml",
  "pulumi-sdks",
  "csi-driver",
  "conformance",
  "workloads",
  "prometheus-operator",
  "flux",
] as const;

/** The server, and what is of its version: the newest minor one is built for everybody, the others for who asks. */
export type ServerArtifact = "server" | `server-${(typeof olderKubernetes)[number]}`;

/** The servers that are built for who asks for them. */
export const olderServers = olderKubernetes.map((minor) => `server-${minor}` as const);

/** The server of a minor version of Kubernetes, with its kubectl and service proxy. */
export const serverOf = (minor: KubernetesMinor): ServerArtifact =>
  minor === newestKubernetes ? "server" : `server-${minor}`;

/** The name of something that is built from Go modules. */
export type ArtifactName =
  | (typeof usualArtifacts | typeof optionalArtifacts | typeof testArtifacts)[number]
  | ServerArtifact;

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
  versions: Record<"gvisor" | "runc" | "containerd" | "pulumi", string>;
  /** The version of Kubernetes by its minor version, without a leading v. */
  kubernetes: Record<KubernetesMinor, string>;
  /** The file that the steps are loaded from; without one, they are loaded from their sources. */
  steps?: string;
  /** The folder of what every sandbox has in its /bin; without one, it is made of this machine's busybox. */
  base?: string;
  /** Where what is named above is ready-made; nothing is compiled then. */
  release?: Release;
}

const root = join(import.meta.dirname, "..");
const extension = extname(import.meta.filename); // compiled in the npm package

/** Names the manifest's file for what is started from here, so that it is looked for once. */
const VARIABLE = "GVISOR_K3S_MANIFEST";

let known: Manifest | undefined;

/** What the npm package has of a release for this kind of machine. */
const shipped = join(root, "manifests", `${process.platform}-${process.arch}.json`);

/**
 * The manifest of this checkout or package: that of the release, unless nothing of it can be had and there is a compiler.
 * @throws Error that says what is missing to make it
 */
export function manifest(): Manifest {
  process.env[VARIABLE] ||= takesRelease() ? shipped : (madeManifest() ?? toolchain("--manifest").trim());
  known ??= readJson<Manifest>(process.env[VARIABLE]!, "delete it");
  if (known === undefined) throw new Error(`there is no ${process.env[VARIABLE]}; unset ${VARIABLE}`);
  return known;
}

function takesRelease(): boolean {
  const release = readJson<Manifest>(shipped, "install gvisor-k3s again")?.release;
  return release !== undefined && (isObtainable(release) || findProgram("go") === undefined);
}

/**
 * Whether Pulumi's plugins are this project's stand-ins: those of a checkout, or of a release whose package of them was
 * installed, or is asked for with GVISOR_K3S_STANDINS=1. Otherwise Pulumi brings its own.
 */
export function takesStandins(): boolean {
  const { artifacts, release } = manifest();
  if (release === undefined) return artifacts.standins !== undefined;
  const archive = release.archives[artifacts.standins];
  if (archive === undefined) return false;
  return process.env.GVISOR_K3S_STANDINS === "1" || isInstalled(archive.package, release);
}

/** The manifest's file where nothing is to be made for it: to ask another process takes a quarter of a second. */
function madeManifest(): string | undefined {
  const load = createRequire(join(root, "package.json"));
  const made = load(join(root, `toolchain/manifest${extension}`)) as { madeManifest(): string | undefined };
  return made.madeManifest();
}

/** Runs toolchain/build.ts, which is fast unless it builds, and returns what it prints. */
function toolchain(...args: string[]): string {
  try {
    return execFileSync(process.execPath, [join(root, `toolchain/build${extension}`), ...args], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, NODE_COMPILE_CACHE: compileCacheFolder() },
    });
  } catch (error) {
    throw new Error((error as { stderr?: string }).stderr?.trim() || (error as Error).message, { cause: error });
  }
}

/** The name of an artifact's folder. */
export function artifactId({ name, patches = [] }: Artifact): string {
  const { artifacts, patches: all, release } = manifest();
  const plain = artifacts[name];
  if (patches.length === 0) return plain;
  const hashes = readyWith(patches, release?.variants[name]).map((id) => {
    const hash = all[name]?.[id];
    if (hash === undefined) throw new Error(`there is no patch ${id} of ${name}`);
    return hash;
  });
  return `${name}-${digest(plain, ...hashes)}`;
}

/**
 * The patches that an artifact is ready with, of those sets that a release has: the fewest that have all that are asked
 * for in them. A patch does something only where the kernel lacks what it makes up for.
 */
function readyWith(patches: string[], sets: string[][] = []): string[] {
  const enough = sets.filter((set) => patches.every((id) => set.includes(id)));
  return enough.sort((one, other) => one.length - other.length)[0] ?? patches;
}

/** The ids of the patches that an artifact can be built with. */
export function knownPatches(name: ArtifactName): string[] {
  return Object.keys(manifest().patches[name] ?? {}).sort();
}

/** What `patch` says of a patch that does not apply to the pinned source; undefined if it does, as in a release. */
export function patchRefusal(name: ArtifactName, id: string): string | undefined {
  if (manifest().release !== undefined) return undefined;
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
 * @throws CommandError of the compiler, or of a patch that does not apply; of a release, Error that tells where it was
 *   looked for
 */
export async function provide({ id, name, patches = [] }: Wanted, say: (line: string) => void): Promise<string> {
  const folder = join(artifactsFolder(), id);
  if (existsSync(folder)) return folder;
  const { release } = manifest();
  if (release !== undefined) return await obtain(id, release, say);
  say(`building ${[name, ...patches].join(" with ")}`);
  const choices = patches.flatMap((patch) => ["--patch", patch]);
  const [began, every] = [performance.now(), 30_000];
  const telling = setInterval(
    () => say(`still building ${name}, ${Math.round((performance.now() - began) / 1000)} s`),
    every,
  );
  const building = run(process.execPath, [join(root, `toolchain/build${extension}`), ...choices, name]);
  await building.finally(() => clearInterval(telling));
  if (!existsSync(folder)) throw new Error(`${name} was built, and not as ${folder}: its sources changed meanwhile`);
  return folder;
}

/** The images that are built here with their program. */
export const plainImages = ["pause", "testpod"] as const;

/**
 * Those of addons. What is in them is a place for their program: that is mounted there from the artifact cache, which
 * the sandbox has already. Imported it would be copied four times at each start, some hundred MB, while others wait.
 */
export const addonImages = ["coredns", "metrics-server", "traefik"] as const;

export type AddonImage = (typeof addonImages)[number];
export type OwnImage = (typeof plainImages)[number] | AddonImage;

/** All of them. */
export const ownImages: readonly OwnImage[] = [...plainImages, ...addonImages];

/** The artifact that an addon's program is in. */
export function programOf(addon: AddonImage): Artifact {
  return { name: addon === "traefik" ? "traefik" : "images" };
}

/** What their names begin with. */
export const OWN_IMAGES = "gvisor-k3s.local/";

/**
 * The full name of an image that is built here; the tag is a hash of what goes into them, so a name is never reused for
 * other content.
 */
export function imageName(image: OwnImage): string {
  return `${OWN_IMAGES}${image}:${artifactId({ name: "images" }).split("-").at(-1)}`;
}

/** The archive of all images that are built here, on the host. */
export function imageArchive(): string {
  return join(artifactFolder({ name: "images" }), "images.tar");
}

/** Go's name for this machine's architecture, or for that which is built for (GOARCH). */
export function goArch(): string {
  return process.env.GOARCH || (arch() === "x64" ? "amd64" : arch());
}

/** Names something by everything that goes into it. */
export function digest(...parts: (string | Buffer)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest("hex").slice(0, 12);
}
