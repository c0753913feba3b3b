/**
 * What runs steps on another machine: this project's steps with the packages that they take, and Node.js with its
 * libraries, so that the machine needs neither a Node.js nor a C library of ours.
 * @module
 */
import { existsSync, globSync, readFileSync } from "node:fs";
import { cp, writeFile } from "node:fs/promises";
import { findPackageJSON } from "node:module";
import { arch } from "node:os";
import { basename, dirname, extname, join } from "node:path";
import { remotePaths } from "../config/ssh.ts";
import {
  type ArtifactName,
  artifactId,
  artifactsFolder,
  copyProgram,
  digest,
  idsFile,
  intoPlace,
} from "./artifacts.ts";
import { readElf } from "./elf.ts";

const root = join(import.meta.dirname, "..");
const extension = extname(import.meta.filename); // compiled in the npm package

/** What the steps import. */
const PACKAGES = ["execa", "semver", "smol-toml", "tar", "yaml", "zod"];

/** What the steps find by an artifact's name; its id is known where its sources are, which is here. */
const ARTIFACTS: ArtifactName[] = ["init", "containerd", "wrapper"];

/** The folder of the runner in the cache; it exists once {@link buildRunner} has made it. */
export function runnerFolder(): string {
  const packages = PACKAGES.map((name) => readFileSync(findPackageJSON(name, import.meta.url)!, "utf8"));
  return join(
    artifactsFolder(),
    `runner-${digest(process.version, arch(), script(), ids(), ...sources().flatMap((file) => [file, readFileSync(join(root, file))]), ...packages)}`,
  );
}

/** Makes the runner unless it is there. */
export async function buildRunner(): Promise<string> {
  const folder = runnerFolder();
  if (existsSync(folder)) return folder;
  return await intoPlace(folder, async (work) => {
    const program = join(work, "program");
    for (const file of sources()) await cp(join(root, file), join(program, file));
    await writeFile(join(program, "package.json"), JSON.stringify({ type: "module" }));
    await writeFile(join(program, idsFile), ids());
    await copyPackages(PACKAGES, import.meta.filename, program);
    await copyProgram(process.execPath, work, "node");
    await writeFile(join(work, "run"), script(), { mode: 0o755 });
  });
}

/** Starts the step that is its argument; see steps/main.ts. */
function script(): string {
  const loader = readElf(process.execPath)?.loader;
  const node =
    loader === undefined ? '"$here/node"' : `"$here/lib/${basename(loader)}" --library-path "$here/lib" "$here/node"`;
  return `#!/bin/sh
here=${remotePaths.runner}
export PATH=${remotePaths.programs} HOME=/root
export GVISOR_K3S_HOME=${remotePaths.home} GVISOR_K3S_CACHE=${remotePaths.cache} NODE_COMPILE_CACHE=${remotePaths.cache}/node-compile-cache
exec ${node} "$here/program/steps/main${extension}" "$@"
`;
}

function sources(): string[] {
  return ["config", "steps", "toolchain"]
    .flatMap((folder) => globSync(`${folder}/*${extension}`, { cwd: root }))
    .filter((file) => !file.endsWith(".d.ts"))
    .sort();
}

function ids(): string {
  return JSON.stringify(Object.fromEntries(ARTIFACTS.map((name) => [JSON.stringify({ name }), artifactId({ name })])));
}

/** Copies packages with what they need themselves, each to where Node.js looks for it. */
async function copyPackages(
  names: readonly string[],
  from: string,
  into: string,
  above: ReadonlyMap<string, string> = new Map(),
): Promise<void> {
  const wanted = names
    .map((name) => [name, dirname(findPackageJSON(name, from)!)] as const)
    .filter(([name, source]) => above.get(name) !== source);
  const there = new Map([...above, ...wanted]);
  for (const [name, source] of wanted) {
    const copy = join(into, "node_modules", name);
    await cp(source, copy, { recursive: true, filter: (path) => path === source || basename(path) !== "node_modules" });
    const { dependencies = {} } = JSON.parse(readFileSync(join(source, "package.json"), "utf8")) as {
      dependencies?: Record<string, string>;
    };
    await copyPackages(Object.keys(dependencies), join(source, "package.json"), copy, there);
  }
}
