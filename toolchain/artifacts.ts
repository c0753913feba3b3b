/**
 * What this project builds, and where it lies once built. An artifact's folder is named by a hash of everything that
 * goes into it (sources, module pins, flags, patches, compilers), so a build is never stale and its path is known
 * before it exists.
 * @module
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { chmod, copyFile, cp, mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { arch, tmpdir } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { cacheFolder, inSandbox } from "../config/paths.ts";
import { run } from "../steps/run.ts";
import { readElf } from "./elf.ts";

const root = join(import.meta.dirname, "..");

/** One `go build` in one module. */
interface GoBuild {
  /** The module's folder, from the project's root. */
  module: string;
  /** What to build: packages of that module or of one that it pins. */
  packages: string[];
  /** The program's file name, where the package's own would not do. */
  output?: string;
  tags?: string[];
  /** Links C code, statically. */
  cgo?: boolean;
  /** Builds the package's tests. */
  test?: boolean;
  /** Values for string variables, for the linker's -X. */
  variables?: Record<string, string>;
  /** The Go toolchain that it takes, where the machine's own will not do; Go gets it as it gets modules. */
  toolchain?: string;
}

const kubernetes = () => moduleVersion("node/server", "k8s.io/kubernetes");

const builds = {
  runsc: [
    {
      module: "toolchain/runsc",
      packages: ["gvisor.dev/gvisor/runsc"],
      get variables() {
        return { "gvisor.dev/gvisor/runsc/version.version": moduleVersion("toolchain/runsc", "gvisor.dev/gvisor") };
      },
    },
  ],
  // Newer toolchains build it, and what they build crashes.
  "runsc-2025-02": [
    {
      module: "toolchain/runsc-2025-02",
      packages: ["gvisor.dev/gvisor/runsc"],
      toolchain: "go1.24.11",
      get variables() {
        return {
          "gvisor.dev/gvisor/runsc/version.version": moduleVersion("toolchain/runsc-2025-02", "gvisor.dev/gvisor"),
        };
      },
    },
  ],
  runc: [{ module: "toolchain/runc", packages: ["github.com/opencontainers/runc"], tags: ["seccomp"], cgo: true }],
  containerd: [
    {
      module: "toolchain/containerd",
      packages: ["containerd", "containerd-shim-runc-v2", "ctr"].map(
        (name) => `github.com/containerd/containerd/v2/cmd/${name}`,
      ),
      get variables() {
        return {
          "github.com/containerd/containerd/v2/version.Version": moduleVersion(
            "toolchain/containerd",
            "github.com/containerd/containerd/v2",
          ),
        };
      },
    },
  ],
  cni: [
    { module: "node/cni", packages: ["./gvisor-bridge"] },
    {
      module: "toolchain/containerd",
      packages: ["ipam/host-local", "main/loopback"].map(
        (name) => `github.com/containernetworking/plugins/plugins/${name}`,
      ),
    },
  ],
  init: [{ module: "node/init", packages: ["."], output: "sandbox-init" }],
  egress: [
    { module: "node/egress", packages: ["."], output: "egress" },
    { module: "node/egress", packages: ["./linkfilter"] },
  ],
  wrapper: [{ module: "node/wrapper", packages: ["."], output: "runc-wrapper" }],
  server: [
    {
      module: "node/server",
      packages: ["."],
      output: "gvisor-k3s-node",
      cgo: true,
      tags: ["sqlite_omit_load_extension"],
      get variables() {
        return versionVariables();
      },
    },
    // With the server's settings, so that what both are made of is compiled once.
    {
      module: "node/server",
      packages: ["./service-proxy"],
      cgo: true,
      tags: ["sqlite_omit_load_extension"],
      get variables() {
        return versionVariables();
      },
    },
  ],
  images: [
    { module: "node/images", packages: ["./testpod", "./mkimage"] },
    { module: "node/coredns", packages: ["."], output: "coredns" },
    { module: "node/metrics-server", packages: ["."], output: "metrics-server" },
  ],
  pulumi: [
    {
      module: "toolchain/pulumi",
      packages: ["github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"],
      get variables() {
        return {
          "github.com/pulumi/pulumi/sdk/v3/go/common/version.Version": moduleVersion(
            "toolchain/pulumi",
            "github.com/pulumi/pulumi/pkg/v3",
          ),
        };
      },
    },
  ],
  registry: [{ module: "toolchain/registry", packages: ["github.com/distribution/distribution/v3/cmd/registry"] }],
  helm: [{ module: "toolchain/helm", packages: ["helm.sh/helm/v3/cmd/helm"] }],
  "pulumi-yaml": [
    {
      module: "toolchain/pulumi-yaml",
      packages: ["github.com/pulumi/pulumi-yaml/cmd/pulumi-language-yaml"],
      get variables() {
        return {
          "github.com/pulumi/pulumi-yaml/pkg/version.Version": moduleVersion(
            "toolchain/pulumi-yaml",
            "github.com/pulumi/pulumi-yaml",
          ),
        };
      },
    },
  ],
  // With the server's settings, as above.
  conformance: [
    {
      module: "toolchain/conformance",
      packages: ["k8s.io/kubernetes/test/e2e"],
      test: true,
      output: "e2e.test",
      cgo: true,
      tags: ["sqlite_omit_load_extension"],
      get variables() {
        return versionVariables();
      },
    },
    {
      module: "toolchain/conformance",
      packages: [
        "k8s.io/kubernetes/test/images/agnhost",
        "k8s.io/kubernetes/test/images/nonewprivs",
        "github.com/onsi/ginkgo/v2/ginkgo",
      ],
      cgo: true,
      tags: ["sqlite_omit_load_extension"],
    },
  ],
  plugins: [{ module: "toolchain/plugins", packages: ["./cmd/..."] }],
} satisfies Record<string, GoBuild[]>;

/** The name of something that is built from Go modules. */
export type ArtifactName = keyof typeof builds;

export const artifactNames = Object.keys(builds) as ArtifactName[];

/** What a user's sandbox takes; the rest is for tests. */
export const usualArtifacts = artifactNames.filter(
  (name) => !["runsc-2025-02", "registry", "helm", "pulumi-yaml", "conformance"].includes(name),
);

/** An artifact with the choices that its build takes. */
export interface Artifact {
  name: ArtifactName;
  /** Ids of patches in `toolchain/NAME/patches`, applied in order; only runc has any. */
  patches?: string[];
}

/** The folder of an artifact below the cache; it exists once the artifact is built. */
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

/** The folder that holds all artifacts, which every sandbox sees read-only. */
export function artifactsFolder(): string {
  return join(cacheFolder(), "artifacts");
}

/** The version of a module that one of the project's Go modules pins, without the leading v. */
export function moduleVersion(module: string, path: string): string {
  const pin = readFileSync(join(root, module, "go.mod"), "utf8").match(
    new RegExp(`^(?:require )?\\s*${path.replaceAll(".", "\\.")} v(\\S+)`, "m"),
  );
  if (!pin) throw new Error(`${module}/go.mod does not require ${path}`);
  return pin[1]!;
}

/** The ids of the patches that an artifact can be built with. */
export function knownPatches(name: ArtifactName): string[] {
  const folder = join(root, "toolchain", name, "patches");
  return existsSync(folder)
    ? readdirSync(folder)
        .filter((file) => file.endsWith(".patch"))
        .map((file) => basename(file, ".patch"))
        .sort()
    : [];
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
    if (artifact.name === "images") await makeImages(work, say);
  });
}

/**
 * Copies a program of the user's into the cache, where sandboxes see it, with the libraries that it is linked with.
 * Its path is known before: see {@link stagedPath} and {@link stagedProgram}.
 * @returns its folder
 */
export async function stage(source: string, name: string): Promise<string> {
  const folder = join(artifactsFolder(), stagedId(source, name));
  if (existsSync(folder)) return folder;
  return await intoPlace(folder, async (work) => {
    await copyProgram(source, work, name);
  });
}

/** Copies a program into a folder, and the libraries that it is linked with into `lib` there. */
export async function copyProgram(source: string, folder: string, name: string): Promise<void> {
  await copyFile(source, join(folder, name));
  await chmod(join(folder, name), 0o755);
  const libraries = librariesOf(source);
  if (libraries.length > 0) await mkdir(join(folder, "lib"), { mode: 0o755 });
  for (const library of libraries) await copyFile(library, join(folder, "lib", basename(library)));
}

/** Where {@link stage} puts a program, as the sandbox sees it. */
export function stagedPath(source: string, name: string): string {
  return join(inSandbox.artifacts, stagedId(source, name), name);
}

/**
 * What starts a program of {@link stage} in the sandbox: its path or, where it has libraries, its loader with where
 * they are.
 */
export function stagedProgram(source: string, name: string): string[] {
  const path = stagedPath(source, name);
  const loader = readElf(source)?.loader;
  const libraries = join(dirname(path), "lib");
  return loader === undefined ? [path] : [join(libraries, basename(loader)), "--library-path", libraries, path];
}

function stagedId(source: string, name: string): string {
  return `own-${name}-${digest(...[source, ...librariesOf(source)].map(fileDigest))}`;
}

/** The libraries of a program by their paths on the host, its loader among them; a static program has none. */
function librariesOf(program: string): string[] {
  if (readElf(program)?.loader === undefined) return [];
  const lines = execFileSync("ldd", [program], { encoding: "utf8" }).split("\n");
  return lines.flatMap((line) => /(?:=> )?(\/\S+) \(0x/.exec(line)?.[1] ?? []);
}

/** The SHA-256 of a file, in hex. */
export function fileDigest(path: string): string {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}

/** Puts a runtime wrapper with its rules into the cache; the folder is named by both. */
export async function stageWrapper(rulesFile: string): Promise<void> {
  const folder = join(artifactsFolder(), wrapperId(rulesFile));
  if (existsSync(folder)) return;
  const built = await build({ name: "wrapper" });
  await intoPlace(folder, async (work) => {
    await copyFile(join(built, "runc-wrapper"), join(work, "runc-wrapper"));
    await writeFile(join(work, "rules.json"), rulesFile);
  });
}

/** Where {@link stageWrapper} puts the wrapper, as the sandbox sees it. */
export function wrapperPath(rulesFile: string): string {
  return join(inSandbox.artifacts, wrapperId(rulesFile), "runc-wrapper");
}

function wrapperId(rulesFile: string): string {
  return `runc-wrapper-${digest(artifactId({ name: "wrapper" }), rulesFile)}`;
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
  try {
    const patched = artifact.patches?.length ? await patchedModfile(goBuild, artifact, `${into}-src`) : undefined;
    await run(
      "go",
      [
        ...(goBuild.test ? ["test", "-c"] : ["build"]),
        ...flags,
        "-ldflags",
        link.join(" "),
        ...(patched ? [`-modfile=${patched}`] : []),
        "-o",
        join(into, goBuild.output ?? "/"),
        ...goBuild.packages,
      ],
      {
        cwd: module,
        env: {
          CGO_ENABLED: goBuild.cgo ? "1" : "0",
          GOFLAGS: patched ? "-mod=mod" : "-mod=readonly",
          ...(goBuild.toolchain ? { GOTOOLCHAIN: goBuild.toolchain } : {}),
        },
      },
    );
  } finally {
    await rm(`${into}-src`, { recursive: true, force: true });
  }
}

/**
 * Copies the modules that the patches change, applies them and returns a go.mod that builds from the copies. The paths
 * in a patch begin with the module's: a fix may belong into a library that runc uses.
 */
async function patchedModfile(goBuild: GoBuild, artifact: Artifact, work: string): Promise<string> {
  const module = join(root, goBuild.module);
  const source = join(work, "source");
  const pins = readFileSync(join(module, "go.mod"), "utf8");
  const replaced: string[] = [];
  for (const path of patchedModules(
    pins,
    artifact.patches!.map((id) => readFileSync(patchFile(artifact.name, id), "utf8")),
  )) {
    const { stdout } = await run("go", ["mod", "download", "-json", path], { cwd: module });
    const copy = join(source, path);
    await cp((JSON.parse(stdout) as { Dir: string }).Dir, copy, { recursive: true });
    await run("chmod", ["-R", "u+w", copy]);
    replaced.push(`replace ${path} => ${copy}`);
  }
  for (const id of artifact.patches!) {
    await mkdir(source, { recursive: true });
    await run("patch", patchArguments(source, patchFile(artifact.name, id)));
  }
  const modfile = join(work, "go.mod");
  await copyFile(join(module, "go.sum"), join(work, "go.sum"));
  await writeFile(modfile, [pins, ...replaced, ""].join("\n"));
  return modfile;
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

/** The images that are built here. */
export const ownImages = ["pause", "testpod", "coredns", "metrics-server"] as const;
export type OwnImage = (typeof ownImages)[number];

/**
 * The full name of an image that is built here; the tag is a hash of what goes into them, so a name is never reused for
 * other content.
 */
export function imageName(image: OwnImage): string {
  return `gvisor-k3s.local/${image}:${artifactId({ name: "images" }).split("-").at(-1)}`;
}

/** The archive of an image that is built here, on the host. */
export function imageArchive(image: OwnImage): string {
  return join(artifactFolder({ name: "images" }), `${image}.tar`);
}

async function makeImages(folder: string, say: (line: string) => void): Promise<void> {
  await run("sh", [join(root, "node/images/pause/build.sh"), join(folder, "pause")]);
  for (const image of ownImages) {
    say(`image ${image}`);
    await run(join(folder, "mkimage"), [
      ...imageRecipe(image),
      "--file",
      `${join(folder, image)}:/${image}:0755`,
      "--name",
      imageName(image),
      "-o",
      join(folder, `${image}.tar`),
    ]);
  }
}

function imageRecipe(image: OwnImage): string[] {
  return [
    "--platform",
    `linux/${goArch()}`,
    "--user",
    image === "pause" ? "65535:65535" : "65532:65532",
    "--entrypoint",
    `/${image}`,
  ];
}

/** Go's name for this machine's architecture. */
export function goArch(): string {
  return arch() === "x64" ? "amd64" : arch();
}

function versionVariables(): Record<string, string> {
  const version = kubernetes();
  const [major, minor] = version.split(".");
  return Object.fromEntries(
    Object.entries({ gitVersion: `v${version}`, gitMajor: major!, gitMinor: minor!, gitTreeState: "clean" }).map(
      ([name, value]) => [`k8s.io/component-base/version.${name}`, value],
    ),
  );
}

/**
 * Holds the ids of artifacts where their sources are not: on a machine that they were copied to (toolchain/runner.ts).
 */
export const idsFile = "artifact-ids.json";

const ids = new Map<string, string>(
  existsSync(join(root, idsFile))
    ? Object.entries(JSON.parse(readFileSync(join(root, idsFile), "utf8")) as Record<string, string>)
    : [],
);

/** The name of an artifact's folder. */
export function artifactId(artifact: Artifact): string {
  const key = JSON.stringify(artifact);
  const id = ids.get(key) ?? `${artifact.name}-${digest(key, ...inputs(artifact))}`;
  ids.set(key, id);
  return id;
}

function* inputs(artifact: Artifact): Generator<string | Buffer> {
  yield compiler("go", ["env", "GOVERSION", "GOARCH"]);
  for (const goBuild of builds[artifact.name] as GoBuild[]) {
    yield JSON.stringify(goBuild);
    if (goBuild.cgo) yield compiler("gcc", ["-dumpfullversion", "-dumpmachine"]);
    for (const file of sources(join(root, goBuild.module))) {
      yield file;
      yield readFileSync(join(root, goBuild.module, file));
    }
  }
  for (const id of artifact.patches ?? []) yield readFileSync(patchFile(artifact.name, id));
  if (artifact.name === "images") yield JSON.stringify(ownImages.map(imageRecipe));
}

/** A compiler's own word on its version; what is built with another one is another artifact. */
function compiler(program: string, args: string[]): string {
  try {
    return execFileSync(program, args, { encoding: "utf8", cwd: root });
  } catch (cause) {
    throw new Error(
      `${program} is needed to build this project's parts and could not be run; see "What it needs" in the README`,
      { cause },
    );
  }
}

/** The files of a Go module that a build reads, in a fixed order. */
function sources(module: string): string[] {
  return readdirSync(module, { recursive: true, encoding: "utf8" })
    .filter((file) => /(^|\/)go\.(mod|sum)$|\.(go|c|h|s|sh)$/.test(file) && !file.endsWith("_test.go"))
    .sort();
}

/** Names something by everything that goes into it. */
export function digest(...parts: (string | Buffer)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest("hex").slice(0, 12);
}
