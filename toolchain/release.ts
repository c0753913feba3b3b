/**
 * `node toolchain/release.ts [x64] [arm64]`: makes `release`, with all that users need no compiler for:
 *
 *     gvisor-k3s-VERSION.tgz                          the program; npm brings, as optional dependencies, the next two
 *     gvisor-k3s-linux-ARCH-VERSION.tgz               what a machine is given
 *     gvisor-k3s-pulumi-linux-ARCH-VERSION.tgz        Pulumi's CLI and a language host, where the machine has none
 *     gvisor-k3s-ingress-VERSION.tgz                  Traefik, for who asks for Ingresses
 *     gvisor-k3s-ingress-linux-ARCH-VERSION.tgz
 *     gvisor-k3s-standins-VERSION.tgz                 stand-ins for Pulumi's plugins, for who asks for them alone
 *     gvisor-k3s-standins-linux-ARCH-VERSION.tgz
 *     gvisor-k3s-kubernetes-1.36-VERSION.tgz          an older Kubernetes, for who asks for it, and so each of the others
 *     gvisor-k3s-kubernetes-1.36-linux-ARCH-VERSION.tgz
 *     ID.tar.zst                                      the same archives that are in these, for GVISOR_K3S_ARTIFACTS
 *     manifest-linux-ARCH.json, *.cdx.json, SHA256SUMS
 *
 * The same sources and compilers make the same bytes. `--out` names another folder. `--level` is zstd's, 19 by default;
 * archives are cached by it.
 * `--kubernetes 1.36,1.35` names the older versions that are packed, by default all; `--kubernetes none` packs none.
 * `--only ARCH` makes the packages of one architecture, by the compilers that GOARCH and CC name: it is what this starts
 * for each.
 * @module
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  copyFileSync,
  createWriteStream,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { readdir } from "node:fs/promises";
import { join, relative, resolve } from "node:path";
import { pipeline } from "node:stream/promises";
import { parseArgs } from "node:util";
import { constants, createZstdCompress } from "node:zlib";
import { create } from "tar";
import {
  type Artifact,
  type ArtifactName,
  artifactFolder,
  artifactId,
  fileDigest,
  type Manifest,
  manifest,
  serverOf,
} from "../artifacts/artifacts.ts";
import { type Archive, archiveName, filesIn } from "../artifacts/release.ts";
import { baseFolder, stageBase } from "../artifacts/stage.ts";
import { olderKubernetes } from "../config/kubernetes.ts";
import { cacheFolder } from "../system/folders.ts";
import { ownPackage } from "../system/package.ts";
import { run } from "../system/run.ts";
import { root } from "./builds.ts";
import { crossEnvironment } from "./cross.ts";
import { build } from "./make.ts";
import { bill, debianPart, licencesText, npmBill, type Part, partsOf } from "./sbom.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    level: { type: "string", default: "19" },
    kubernetes: { type: "string", default: olderKubernetes.join() },
    only: { type: "string" },
    out: { type: "string", default: join(root, "release") },
  },
});
const out = resolve(values.out);
const packages = join(out, "packages");
const version = ownPackage.version;
const say = (line: string) => console.log(line);

/** The older versions of Kubernetes that are packed. */
const older = olderKubernetes.filter((minor) => values.kubernetes.split(",").includes(minor));

/** What is in which package; `usual` is what every machine takes. */
const contents: { package: string; description: string; usual: boolean; artifacts: Artifact[] }[] = [
  {
    package: "gvisor-k3s",
    description: "What gvisor-k3s gives to a machine",
    usual: true,
    artifacts: (
      ["runsc", "runc", "containerd", "cni", "init", "host", "wrapper", "server", "images"] satisfies ArtifactName[]
    ).map((name) => ({ name })),
  },
  {
    package: "gvisor-k3s-pulumi",
    description: "Pulumi's CLI, and a language host for Node.js, for gvisor-k3s on machines without",
    usual: true,
    artifacts: [{ name: "pulumi" }, { name: "language-host" }],
  },
  {
    package: "gvisor-k3s-ingress",
    description: "Traefik, which serves Ingresses where gvisor-k3s's option addons.ingress is on",
    usual: false,
    artifacts: [{ name: "traefik" }],
  },
  {
    package: "gvisor-k3s-standins",
    description: "Stand-ins for Pulumi's plugins command and kubernetes, for machines that cannot download these",
    usual: false,
    artifacts: [{ name: "standins" }],
  },
  ...older.map((minor) => ({
    package: `gvisor-k3s-kubernetes-${minor}`,
    description: `The server of Kubernetes ${minor}, for clusters of gvisor-k3s that take it in place of the newest`,
    usual: false,
    artifacts: [{ name: serverOf(minor) }],
  })),
];

/** The sets of patches that runc is ready with: what a known generation of gVisor needs (docs/runtimes.md), and all. */
const variants = (all: string[]) => [["procfs-root-inode", "setns-exec", "tmpfs-nr-blocks"], all];

async function release(archs: string[]): Promise<void> {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(packages, { recursive: true });
  for (const arch of archs) {
    say(`== linux-${arch}`);
    const env = arch === process.arch ? {} : await crossEnvironment(arch, say);
    const chosen = ["--level", values.level, "--kubernetes", values.kubernetes, "--out", out];
    const args = [import.meta.filename, "--only", arch, ...chosen];
    const { status } = spawnSync(process.execPath, args, { stdio: "inherit", env: { ...process.env, ...env } });
    if (status !== 0) throw new Error(`the packages for linux-${arch} could not be made`);
  }
  await mainPackage(archs);
  for (const chosen of contents.filter(({ usual }) => !usual)) choicePackage(chosen, archs);
  writeJson(join(out, "gvisor-k3s.cdx.json"), await npmBill());
  for (const name of readdirSync(packages)) await packTarball(name);
  rmSync(packages, { recursive: true });
  const files = readdirSync(out).sort();
  const sums = files.map((file) => `${fileDigest(join(out, file))}  ${file}\n`);
  writeFileSync(join(out, "SHA256SUMS"), sums.join(""));
  for (const file of files.filter((name) => name.endsWith(".tgz"))) {
    say(`${file}: ${(statSync(join(out, file)).size / 1e6).toFixed(1)} MB`);
  }
}

/** Packs an npm package as `npm pack` does, which would compress again what is compressed, for minutes. */
async function packTarball(name: string): Promise<void> {
  const [cwd, file] = [join(packages, name), join(out, `${name}-${version}.tgz`)];
  const files = (await readdir(cwd, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => relative(cwd, join(entry.parentPath, entry.name)));
  const gzip = { level: files.some((path) => path.endsWith(".zst")) ? 1 : 9 };
  await create({ cwd, file, gzip, prefix: "package", portable: true, mtime: new Date(0) }, files.sort());
}

/** The program's own package, with the manifests by which it knows all else. */
async function mainPackage(archs: string[]): Promise<void> {
  const folder = join(packages, "gvisor-k3s");
  await run(process.execPath, [join(root, "toolchain/package.ts"), folder]);
  mkdirSync(join(folder, "manifests"));
  for (const arch of archs) {
    const file = `linux-${arch}.json`;
    copyFileSync(join(out, `manifest-${file}`), join(folder, "manifests", file));
  }
  const usual = contents.filter((content) => content.usual).map((content) => content.package);
  const names = usual.flatMap((name) => archs.map((arch) => `${name}-linux-${arch}`));
  const known = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as object;
  const optionalDependencies = Object.fromEntries(names.map((name) => [name, version]));
  writeJson(join(folder, "package.json"), { ...known, optionalDependencies });
}

/** What brings, of what is for who asks for it, that for the machine's kind. */
function choicePackage({ package: name, description }: (typeof contents)[number], archs: string[]): void {
  const optionalDependencies = Object.fromEntries(archs.map((arch) => [`${name}-linux-${arch}`, version]));
  const folder = join(packages, name);
  mkdirSync(folder);
  writeJson(join(folder, "package.json"), { name, version, description, license: "Apache-2.0", optionalDependencies });
}

/** Builds and packs all for the architecture that Go builds for. */
async function packagesFor(arch: string): Promise<void> {
  const sources = await sourcesDigest();
  const { steps: _, ...plain } = manifest(); // those of this machine; the npm package has its own
  const sets = variants(Object.keys(plain.patches.runc ?? {}).sort());
  const archives: Record<string, Archive> = {};
  const parts: Record<string, Part[]> = {};
  for (const { package: name, usual, artifacts } of contents) {
    const archived = `${name}-linux-${arch}`;
    for (const artifact of artifacts) {
      await build(artifact, say);
      archives[artifactId(artifact)] = { ...(await pack(artifactFolder(artifact))), package: archived, usual };
    }
    parts[archived] = await partsOf(artifacts.map((artifact) => artifact.name));
  }
  const node = `gvisor-k3s-linux-${arch}`;
  for (const patches of sets) {
    const runc: Artifact = { name: "runc", patches };
    await build(runc, say);
    archives[artifactId(runc)] = { ...(await pack(artifactFolder(runc))), package: node, usual: false };
  }
  await stageBase();
  const base = baseFolder();
  archives[idOf(base)] = { ...(await pack(base)), package: node, usual: true };
  parts[node]!.push({ ...(await debianPart("busybox-static")), in: ["base"] });
  const release = { version, platform: `linux-${arch}`, sources, variants: { runc: sets }, archives };
  const whole: Manifest = { ...plain, base: idOf(base), release };
  writeJson(join(out, `manifest-linux-${arch}.json`), whole);
  for (const { package: name, description } of contents) {
    const own = Object.entries(archives).filter(([, archive]) => archive.package === `${name}-linux-${arch}`);
    platformPackage(`${name}-linux-${arch}`, description, arch, own, parts[`${name}-linux-${arch}`]!);
  }
}

const idOf = (folder: string) => folder.split("/").at(-1)!;

/** An npm package of archives, for one kind of machine. */
function platformPackage(
  name: string,
  description: string,
  arch: string,
  archives: [string, Archive][],
  parts: Part[],
): void {
  const folder = join(packages, name);
  mkdirSync(folder);
  const about = { name, version, description: `${description} (linux, ${arch})` };
  writeJson(join(folder, "package.json"), {
    ...about,
    license: "SEE LICENSE IN LICENSES.txt",
    os: ["linux"],
    cpu: [arch],
  });
  writeFileSync(join(folder, "LICENSES.txt"), licencesText(parts));
  const files = Object.fromEntries(
    archives.flatMap(([id, { files }]) =>
      Object.entries(files)
        .filter(([, sum]) => !sum.startsWith("->"))
        .map(([file, sum]) => [`${id}/${file}`, sum]),
    ),
  );
  const sbom = bill(name, version, parts, files);
  writeJson(join(folder, "sbom.cdx.json"), sbom);
  writeJson(join(out, `${name}.cdx.json`), sbom);
  writeFileSync(
    join(folder, "README.md"),
    `# ${name}\n\n${description}, for ${arch}. It is a part of [gvisor-k3s](https://www.npmjs.com/package/gvisor-k3s), ` +
      `which alone takes it, and verifies it by its own manifest. \`sbom.cdx.json\` names all that is contained, and ` +
      "`LICENSES.txt` has the licences. What is under the GPL or the LGPL (busybox, the C library, libseccomp) is " +
      "Debian's, whose source packages of the versions named are at https://snapshot.debian.org.\n",
  );
  for (const [id] of archives) {
    linkSync(packed(id), join(folder, archiveName(id)));
    linkSync(packed(id), join(out, archiveName(id)));
  }
}

/** Where a compressed artifact is cached. */
const packed = (id: string) => join(cacheFolder(), "packed", values.level, archiveName(id));

/** Compresses an artifact, unless that was done already. */
async function pack(folder: string): Promise<Omit<Archive, "package" | "usual">> {
  const id = idOf(folder);
  const archive = packed(id);
  const files = await filesIn(folder);
  if (!existsSync(archive)) {
    mkdirSync(join(archive, ".."), { recursive: true });
    const part = `${archive}.${process.pid}`;
    const { ZSTD_c_compressionLevel, ZSTD_c_enableLongDistanceMatching, ZSTD_c_windowLog } = constants;
    const params = {
      [ZSTD_c_compressionLevel]: Number(values.level),
      [ZSTD_c_enableLongDistanceMatching]: 1,
      [ZSTD_c_windowLog]: 27, // the most that is taken without being asked for
    };
    const began = performance.now();
    // What is the same in any two builds: order, times, owners.
    const tarball = create({ cwd: folder, portable: true, mtime: new Date(0) }, Object.keys(files).sort());
    await pipeline(tarball, createZstdCompress({ params }), createWriteStream(part));
    renameSync(part, archive);
    say(`${id}: ${(statSync(archive).size / 1e6).toFixed(1)} MB (${Math.round((performance.now() - began) / 1000)} s)`);
  }
  const unpacked = Object.keys(files).reduce((sum, file) => sum + lstatSync(join(folder, file)).size, 0);
  return { size: statSync(archive).size, sha256: fileDigest(archive), unpacked, files };
}

/** A hash of every file that is in the sources. */
async function sourcesDigest(): Promise<string> {
  const { stdout } = await run("git", ["ls-files", "-z"], { cwd: root });
  const hash = createHash("sha256");
  for (const file of stdout
    .split("\0")
    .filter((name) => name !== "" && existsSync(join(root, name)))
    .sort()) {
    hash.update(`${file}\0`).update(readFileSync(join(root, file)));
  }
  return hash.digest("hex");
}

function writeJson(file: string, content: object): void {
  writeFileSync(file, `${JSON.stringify(content, null, 2)}\n`);
}

try {
  if (values.only !== undefined) await packagesFor(values.only);
  else await release(positionals.length > 0 ? positionals : [process.arch]);
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
