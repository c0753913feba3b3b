/**
 * What a release has ready-made, so that nothing is compiled: an archive an artifact, `ID.tar.zst`, in npm packages for
 * one kind of machine each, in a folder, or at an address. Who made it: toolchain/release.ts.
 * @module
 */
import { createReadStream, existsSync, statfsSync } from "node:fs";
import { chmod, lstat, mkdir, readdir, readlink, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { createZstdDecompress } from "node:zlib";
import { extract } from "tar";
import { cacheFolder } from "../system/folders.ts";
import { findProgram } from "../system/programs.ts";
import { Refusal } from "../system/refusal.ts";
import { artifactsFolder, fileDigest, intoPlace, makeArtifactsFolder } from "./cache.ts";
import { download, type Known, megabytes } from "./download.ts";

/** What is in a release for one kind of machine. The npm package has it; so what is taken is what it was made with. */
export interface Release {
  /** This project's version, which its packages have too. */
  version: string;
  /** Node.js' names of the system and the architecture. */
  platform: string;
  /** A hash of all sources that it was made from. */
  sources: string;
  /** The sets of patches that an artifact is ready with. */
  variants: Record<string, string[][]>;
  /** The archives by the artifact's id. */
  archives: Record<string, Archive>;
}

/** A compressed artifact. */
export interface Archive extends Known {
  /** The npm package that it is in. */
  package: string;
  /** Whether a machine usually takes it; a patched runc, say, is for others. */
  usual: boolean;
  /** Bytes on the disk. */
  unpacked: number;
  /** The SHA-256 of each file by its path, or `-> ` and where a link leads. */
  files: Record<string, string>;
}

/** The archive's file of an artifact. */
export const archiveName = (id: string) => `${id}.tar.zst`;

/** Names a folder or an address with archives. */
const SOURCE = "GVISOR_K3S_ARTIFACTS";

/** What {@link SOURCE} says; a relative folder is taken from the current folder, also by what is started elsewhere. */
function source(): string | undefined {
  const given = process.env[SOURCE];
  if (!given) return undefined;
  process.env[SOURCE] = isAddress(given) ? given.replace(/\/+$/, "") : resolve(given);
  return process.env[SOURCE];
}

const isAddress = (text: string) => /^https?:\/\//.test(text);

/** The folder of an npm package of this release that is installed beside this one. */
export function packageFolder(name: string, { version }: Release): string | undefined {
  try {
    const require = createRequire(import.meta.url);
    const file = require.resolve(`${name}/package.json`);
    return (require(file) as { version: string }).version === version ? dirname(file) : undefined;
  } catch {
    return undefined;
  }
}

/** Whether there is any place where a release's artifacts may come from without a compiler. */
export function isObtainable(release: Release): boolean {
  if (source() !== undefined) return true;
  const usual = Object.entries(release.archives).filter(([, archive]) => archive.usual);
  return usual.every(
    ([id, archive]) => existsSync(join(artifactsFolder(), id)) || packageFolder(archive.package, release) !== undefined,
  );
}

/**
 * Brings an artifact of a release into the cache, verified: from the npm package, or from what GVISOR_K3S_ARTIFACTS names.
 * @returns its folder
 * @throws Refusal that tells each place that was tried, and what to do
 */
export async function obtain(id: string, release: Release, say: (line: string) => void): Promise<string> {
  const folder = join(artifactsFolder(), id);
  const archive = release.archives[id];
  const refused: string[] = [];
  const refuse = (place: string, why: string) => refused.push(`${place}: ${why}`);
  if (archive === undefined) {
    const known = Object.keys(release.archives).join(", ");
    const which = `the release ${release.version} for ${release.platform}, which has ${known}`;
    throw new Refusal(`${id} is not in ${which}; a checkout of the sources builds it`);
  }
  await needSpace(release);
  const file = archiveName(id);
  const beside = packageFolder(archive.package, release);
  const place = `the npm package ${archive.package} ${release.version}`;
  if (beside === undefined) refuse(place, "it is not installed");
  else if (await tried(place, () => unpack(join(beside, file), id, archive))) return folder;
  const other = source();
  if (other === undefined) {
    refuse(SOURCE, "it is not set");
  } else if (isAddress(other)) {
    if (await tried(`${SOURCE} (${other}/${file})`, () => fetched(`${other}/${file}`, id, archive, say))) return folder;
  } else if (await tried(`${SOURCE} (${join(other, file)})`, () => unpack(join(other, file), id, archive))) {
    return folder;
  }
  refuse(`the cache (${artifactsFolder()})`, "it is not in it");
  const compiler = findProgram("go") === undefined ? "there is no Go compiler" : "it is done where none of these is";
  refuse("a build from source", compiler);
  throw new Refusal(
    `${id} cannot be had:\n${refused.map((line) => `  ${line}\n`).join("")}` +
      `install ${missingPackages(archive, release)}${archive.usual ? " (npm leaves it out with --omit=optional)" : ""}, ` +
      `or set ${SOURCE} to a folder or an https address with the archives of this release`,
  );

  async function tried(where: string, take: () => Promise<unknown>): Promise<boolean> {
    try {
      await take();
      return true;
    } catch (error) {
      if (error instanceof Refusal) throw error;
      refuse(where, (error as Error).message);
      return false;
    }
  }
}

/** The package that an archive is in, and, so that nothing is told twice, the other usual ones that are not installed. */
function missingPackages(archive: Archive, release: Release): string {
  const usual = Object.values(release.archives).filter((other) => other.usual && !isInstalled(other.package, release));
  const names = new Set([archive, ...usual].map((other) => `${other.package}@${release.version}`));
  return [...names].join(" ");
}

/** Whether the archives of an npm package are asked for by its being installed. */
export const isInstalled = (name: string, release: Release) => packageFolder(name, release) !== undefined;

async function fetched(url: string, id: string, archive: Archive, say: (line: string) => void): Promise<void> {
  const folder = join(cacheFolder(), "downloads");
  await mkdir(folder, { recursive: true });
  const part = join(folder, `${archiveName(id)}.${process.pid}`);
  say(`downloading ${id} (${megabytes(archive.size)}) from ${url}`);
  try {
    await download(url, part, archive, (line) => say(`${id}: ${line}`));
    await unpack(part, id, archive);
  } finally {
    await rm(part, { force: true });
  }
}

/** Unpacks an archive into the cache: first it is verified, then each file. */
async function unpack(file: string, id: string, archive: Archive): Promise<void> {
  if (!existsSync(file)) throw new Error("there is no such file");
  const found = fileDigest(file);
  if (found !== archive.sha256) throw new Error(`its SHA-256 is ${found}, and ${archive.sha256} is expected`);
  await intoPlace(join(artifactsFolder(), id), async (work) => {
    await pipeline(createReadStream(file), createZstdDecompress(), extract({ cwd: work, preserveOwner: false }));
    await verify(work, archive);
  });
}

/** Looks whether a folder has the files that it should have and no others, and gives them their modes, whatever the umask. */
async function verify(folder: string, { files }: Archive): Promise<void> {
  for (const path of await readdir(folder, { recursive: true })) {
    const status = await lstat(join(folder, path));
    if (status.isSymbolicLink()) continue;
    await chmod(join(folder, path), status.isDirectory() || status.mode & 0o100 ? 0o755 : 0o644);
  }
  const there = await filesIn(folder);
  const wrong = new Set([...Object.keys(files), ...Object.keys(there)].filter((path) => files[path] !== there[path]));
  if (wrong.size > 0) throw new Error(`${[...wrong].join(", ")} in it is not what the manifest says`);
}

/** What is in a folder, as {@link Archive.files} tells it. */
export async function filesIn(folder: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const path of (await readdir(folder, { recursive: true })).sort()) {
    const whole = join(folder, path);
    const status = await lstat(whole);
    if (status.isSymbolicLink()) found[path] = `-> ${await readlink(whole)}`;
    else if (!status.isDirectory()) found[path] = fileDigest(whole);
  }
  return found;
}

/** Room that is left beside the artifacts, in bytes: what Pulumi and Node.js keep in the cache. */
const BESIDE = 64e6;

/** Refuses a disk that has no room for what a machine usually takes, before any of it is there. */
async function needSpace({ archives }: Release): Promise<void> {
  const folder = await makeArtifactsFolder();
  const missing = Object.entries(archives).filter(([id, { usual }]) => usual && !existsSync(join(folder, id)));
  const needed = missing.reduce((sum, [, { unpacked }]) => sum + unpacked, missing.length > 0 ? BESIDE : 0);
  const { bavail, bsize } = statfsSync(folder);
  if (bavail * bsize >= needed) return;
  throw new Refusal(
    `no space: ${folder} has ${megabytes(bavail * bsize)} free, and what a machine takes needs ${megabytes(needed)}; ` +
      "make room, or set GVISOR_K3S_CACHE to a folder on another disk",
  );
}
