/**
 * Makes artifacts. An artifact's folder is named by a hash of everything that goes into it (sources, module pins, flags,
 * patches, compilers), so a build is never stale and its path is known before it exists.
 * @module
 */
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { copyFile, cp, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { arch, tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import {
  type Artifact,
  type ArtifactName,
  addonImages,
  artifactFolder,
  digest,
  goArch,
  imageName,
  intoPlace,
  type Manifest,
  plainImages,
} from "../artifacts/artifacts.ts";
import { readElf } from "../artifacts/elf.ts";
import { kubernetesMinors } from "../config/kubernetes.ts";
import { run } from "../system/run.ts";
import { builds, type GoBuild, kubernetesVersion, moduleVersion, root } from "./builds.ts";

/** The names of all artifacts; the npm package has no sources of those that are for tests, nor of the stand-ins. */
export const artifactNames = (Object.keys(builds) as ArtifactName[]).filter((name) =>
  builds[name].every(({ module, packages }) =>
    [".", ...packages.filter((path) => path.startsWith("./"))].every((path) => existsSync(join(root, module, path))),
  ),
);

/** What the sources make, by the compilers that are here. */
export function currentManifest(): Manifest {
  const patches = artifactNames.map((name) => [name, patchesOf(name)] as const).filter(([, ids]) => ids.length > 0);
  const hashes = (name: ArtifactName, ids: string[]) =>
    ids.map((id) => [id, digest(readFileSync(patchFile(name, id)))]);
  return {
    version: 1,
    artifacts: Object.fromEntries(
      artifactNames.map((name) => [name, `${name}-${digest(...inputs(name))}`]),
    ) as Manifest["artifacts"],
    patches: Object.fromEntries(patches.map(([name, ids]) => [name, Object.fromEntries(hashes(name, ids))])),
    versions: {
      gvisor: moduleVersion("toolchain/runsc", "gvisor.dev/gvisor"),
      runc: moduleVersion("toolchain/runc", "github.com/opencontainers/runc"),
      containerd: moduleVersion("toolchain/containerd", "github.com/containerd/containerd/v2"),
      pulumi: moduleVersion("toolchain/pulumi", "github.com/pulumi/pulumi/pkg/v3"),
    },
    kubernetes: Object.fromEntries(
      kubernetesMinors.map((minor) => [minor, kubernetesVersion(minor)]),
    ) as Manifest["kubernetes"],
  };
}

/**
 * Builds an artifact unless it is there.
 * @param say takes one line per thing done
 * @throws CommandError of the compiler or of a patch that does not apply
 * @returns the artifact's folder
 */
export async function build(artifact: Artifact, say: (line: string) => void = () => {}): Promise<string> {
  const folder = artifactFolder(artifact);
  if (existsSync(folder)) return folder;
  return await intoPlace(folder, async (work) => {
    for (const goBuild of builds[artifact.name] as GoBuild[]) {
      say(`go build ${goBuild.packages.join(" ")}`);
      await compile(goBuild, artifact, work);
    }
    await makeImages(artifact.name, work, say);
  });
}

/** The ids of the patches that lie beside an artifact's module. */
const patchesOf = (name: ArtifactName) => patchFilesIn(name, "patches").map((file) => basename(file, ".patch"));

/** All patches that an artifact is built with: those that every build of it has, and those that are asked for. */
const allPatches = ({ name, patches = [] }: Artifact): string[] => [
  ...fixesOf(name),
  ...patches.map((id) => patchFile(name, id)),
];

/** What is mended in every build of an artifact: the server of an older Kubernetes may have fixes of its own beside. */
const fixesOf = (name: ArtifactName): string[] =>
  (name.startsWith("server-") ? (["server", name] as const) : [name]).flatMap((of) => patchFilesIn(of, "fixes"));

function patchFilesIn(name: ArtifactName, kind: "patches" | "fixes"): string[] {
  const folder = join(root, "toolchain", name, kind);
  const files = existsSync(folder) ? readdirSync(folder).filter((file) => file.endsWith(".patch")) : [];
  return files.sort().map((file) => join(folder, file));
}

async function compile(goBuild: GoBuild, artifact: Artifact, into: string): Promise<void> {
  const module = join(root, goBuild.module);
  const flags = [
    "-trimpath",
    "-buildvcs=false",
    "-tags",
    [...(goBuild.cgo ? ["netgo", "osusergo"] : []), ...(goBuild.tags ?? [])].join(","),
  ];
  const link = [
    "-s",
    "-w",
    "-buildid=",
    ...Object.entries(goBuild.variables ?? {}).map(([name, value]) => `-X ${name}=${value}`),
  ];
  if (goBuild.cgo) link.push("-linkmode external", "-extldflags -static");
  const output = ["-o", join(into, goBuild.output ?? "/")];
  await withSources(goBuild, artifact, `${into}-src`, async (sources, env) => {
    const args = [...(goBuild.test ? ["test", "-c"] : ["build"]), ...flags, "-ldflags", link.join(" "), ...sources];
    await run("go", [...args, ...output, ...goBuild.packages], { cwd: module, env });
  });
}

/**
 * Has Go work on the sources that a build takes, with the patches of the artifact.
 * @param work a folder for what is patched; it is removed at the end
 * @param use takes the flags and the environment that Go needs for it
 */
export async function withSources<T>(
  goBuild: GoBuild,
  artifact: Artifact,
  work: string,
  use: (flags: string[], env: Record<string, string>) => Promise<T>,
): Promise<T> {
  try {
    const patches = allPatches(artifact);
    const patched = patches.length > 0 ? await patchedModfile(goBuild, patches, work) : undefined;
    return await use(chosenPins({ modfile: patched ?? goBuild.modfile }), {
      CGO_ENABLED: goBuild.cgo ? "1" : "0",
      GOFLAGS: patched ? "-mod=mod" : "-mod=readonly",
      ...(goBuild.toolchain ? { GOTOOLCHAIN: goBuild.toolchain } : {}),
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/**
 * Copies the modules that the patches change, applies them and returns a go.mod that builds from the copies. The paths
 * in a patch begin with the module's: a fix may belong into a library that runc uses.
 */
async function patchedModfile(goBuild: GoBuild, patches: string[], work: string): Promise<string> {
  const module = join(root, goBuild.module);
  const source = join(work, "source");
  const [pinned, sums] = pinFiles(goBuild);
  let pins = readFileSync(join(module, pinned), "utf8");
  const replaced: string[] = [];
  for (const path of patchedModules(
    pins,
    patches.map((file) => readFileSync(file, "utf8")),
  )) {
    const { stdout } = await run("go", ["mod", "download", ...chosenPins(goBuild), "-json", path], { cwd: module });
    const copy = join(source, path);
    await cp((JSON.parse(stdout) as { Dir: string }).Dir, copy, { recursive: true });
    await run("chmod", ["-R", "u+w", copy]);
    pins = pins.replace(new RegExp(`^(replace)?\\s+${path.replaceAll(".", "\\.")} => .*\n`, "m"), ""); // one is allowed
    replaced.push(`replace ${path} => ${copy}`);
  }
  for (const file of patches) {
    await mkdir(source, { recursive: true });
    await run("patch", patchArguments(source, file));
  }
  const modfile = join(work, "go.mod");
  await copyFile(join(module, sums), join(work, "go.sum"));
  await writeFile(modfile, [pins, ...replaced, ""].join("\n"));
  return modfile;
}

/** What has Go take a build's own pins. */
export const chosenPins = ({ modfile }: { modfile?: string | undefined }): string[] =>
  modfile === undefined ? [] : [`-modfile=${modfile}`];

/** What a build's versions and their hashes are pinned by: two files, from its module's folder. */
function pinFiles({ modfile = "go.mod" }: GoBuild): [pins: string, sums: string] {
  return [modfile, modfile.replace(/mod$/, "sum")];
}

/**
 * Tries a patch on the pinned source, without changing anything.
 * @returns what `patch` says if it does not apply; undefined if it does, or if the source cannot be had, which a build
 *   will tell
 */
export function patchRefusal(name: ArtifactName, id: string): string | undefined {
  const module = join(root, (builds[name] as GoBuild[])[0]!.module);
  const work = mkdtempSync(join(tmpdir(), "gvisor-k3s-patch-"));
  try {
    const [pins, patch] = [readFileSync(join(module, "go.mod"), "utf8"), readFileSync(patchFile(name, id), "utf8")];
    for (const path of patchedModules(pins, [patch])) {
      const { Dir } = JSON.parse(
        execFileSync("go", ["mod", "download", "-json", path], { cwd: module, encoding: "utf8", stdio: "pipe" }),
      ) as { Dir: string };
      for (const file of patchedFiles(patch).filter((candidate) => candidate.startsWith(`${path}/`))) {
        mkdirSync(join(work, dirname(file)), { recursive: true });
        copyFileSync(join(Dir, file.slice(path.length + 1)), join(work, file));
      }
    }
  } catch {
    rmSync(work, { recursive: true });
    return undefined;
  }
  try {
    execFileSync("patch", ["--dry-run", ...patchArguments(work, patchFile(name, id))], {
      encoding: "utf8",
      stdio: "pipe",
    });
    return undefined;
  } catch (error) {
    return (error as { stdout: string }).stdout.trim();
  } finally {
    rmSync(work, { recursive: true });
  }
}

function patchArguments(source: string, file: string): string[] {
  return ["--strip=1", "--fuzz=0", "--batch", "--directory", source, "--input", file];
}

/** The files that a patch changes; each path begins with its module's. */
function patchedFiles(patch: string): string[] {
  return [...patch.matchAll(/^\+\+\+ b\/(\S+)/gm)].map(([, file]) => file!);
}

/** The modules of a go.mod that patches change. */
function patchedModules(pins: string, patches: string[]): string[] {
  const files = patches.flatMap(patchedFiles);
  const modules = [...pins.matchAll(/^(?:require)?\s*(\S+) v\S+/gm)].map(([, path]) => path!);
  return modules.filter((path) => files.some((file) => file.startsWith(`${path}/`)));
}

function patchFile(name: ArtifactName, id: string): string {
  return join(root, "toolchain", name, "patches", `${id}.patch`);
}

/** Makes the archives of images from the programs in their artifact's folder. */
async function makeImages(artifact: ArtifactName, folder: string, say: (line: string) => void): Promise<void> {
  if (artifact !== "images") return;
  const pause = join(folder, "pause");
  await run("sh", [join(root, "node/images/pause/build.sh"), pause]);
  const mkimage = await runnable("mkimage", folder);
  const place = join(folder, "place");
  await writeFile(place, "");
  say("images' archive");
  const content = [
    ...plainImages.map((name) => ["--name", imageName(name), "--file", `${join(folder, name)}:/${name}:0755`]),
    addonImages.flatMap((name) => ["--name", imageName(name), "--file", `${place}:/${name}:0755`]),
  ];
  const images = imageRecipes().flatMap((recipe, i) => [...(i > 0 ? ["--"] : []), ...recipe, ...content[i]!]);
  await run(mkimage, ["-o", join(folder, "images.tar"), ...images]);
  if (dirname(mkimage) !== folder) await rm(dirname(mkimage), { recursive: true });
  for (const file of [pause, place]) await rm(file);
}

/** A program of node/images that this machine can run, also when it builds for another one. */
async function runnable(program: string, folder: string): Promise<string> {
  const made = join(folder, program);
  if (existsSync(made) && readElf(made)?.arch === arch()) return made;
  const native = join(await mkdtemp(join(tmpdir(), "gvisor-k3s-")), program);
  const env = { CGO_ENABLED: "0", GOARCH: "" };
  await run("go", ["build", "-o", native, `./${program}`], { cwd: join(root, "node/images"), env });
  return native;
}

/** What the images are beside their files: those with their program, and, as one, those with a place for it. */
function imageRecipes(): string[][] {
  const recipe = (user: number, ...more: string[]) => {
    return ["--platform", `linux/${goArch()}`, "--user", `${user}:${user}`, ...more];
  };
  const plain = plainImages.map((name) => recipe(name === "pause" ? 65535 : 65532, "--entrypoint", `/${name}`));
  return [...plain, recipe(65532)];
}

function* inputs(name: ArtifactName): Generator<string | Buffer> {
  yield compiler("go", ["env", "GOVERSION", "GOARCH"]);
  for (const goBuild of builds[name] as GoBuild[]) {
    yield JSON.stringify(goBuild);
    if (goBuild.cgo) yield compiler(process.env.CC || "gcc", ["-dumpfullversion", "-dumpmachine"]);
    const { module: own, modfile } = goBuild;
    for (const module of [own, ...localModules(goBuild)]) {
      const files = sources(join(root, module));
      const pinned =
        module === own && modfile ? [...files.filter((file) => !isPins(file)), ...pinFiles(goBuild)] : files;
      for (const file of pinned) {
        yield file;
        yield readFileSync(join(root, module, file));
      }
    }
  }
  for (const file of fixesOf(name)) yield readFileSync(file);
  if (name === "images") yield JSON.stringify([imageRecipes(), addonImages]);
}

const compilers = new Map<string, string>();

/** A compiler's own word on its version; what is built with another one is another artifact. */
function compiler(program: string, args: string[]): string {
  try {
    const said = compilers.get(program) ?? execFileSync(program, args, { encoding: "utf8", cwd: root });
    compilers.set(program, said);
    return said;
  } catch (cause) {
    throw new Error(
      `${program} is needed to build this project's parts and could not be run; see "What it needs" in the README`,
      { cause },
    );
  }
}

const isPins = (file: string) => file === "go.mod" || file === "go.sum";

/** The modules of this project that a build takes by a relative path. */
function localModules(goBuild: GoBuild): string[] {
  const pins = readFileSync(join(root, goBuild.module, pinFiles(goBuild)[0]), "utf8");
  return [...pins.matchAll(/=> (\.\.?\/\S+)/g)].map(([, path]) => join(goBuild.module, path!)).sort();
}

/** The files of a Go module that a build reads, in a fixed order; a module within it is another one. */
function sources(module: string): string[] {
  const files = readdirSync(module, { recursive: true, encoding: "utf8" });
  const others = files.filter((file) => file.endsWith("/go.mod")).map((file) => file.slice(0, -"go.mod".length));
  return files
    .filter((file) => isPins(file) || (/\.(go|c|h|s|sh)$/.test(file) && !file.endsWith("_test.go")))
    .filter((file) => !others.some((folder) => file.startsWith(folder)))
    .sort();
}
