/**
 * Programs of this machine, copied into the artifact cache, where sandboxes see them. Their paths are known before.
 * @module
 */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { chmod, copyFile, mkdir, symlink, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { inSandbox } from "../config/paths.ts";
import { run } from "../system/run.ts";
import { artifactsFolder, digest, fileDigest, intoPlace, manifest, provide, type Wanted } from "./artifacts.ts";
import { readElf } from "./elf.ts";
import { obtain } from "./release.ts";

/**
 * Copies a program of the user's into the cache, with the libraries that it is linked with. Its path is known before:
 * see {@link stagedPath} and {@link stagedProgram}.
 * @returns its folder
 */
export async function stage(source: string, name: string): Promise<string> {
  const folder = join(artifactsFolder(), stagedId(source, name));
  if (existsSync(folder)) return folder;
  return await intoPlace(folder, async (work) => {
    await copyFile(source, join(work, name));
    await chmod(join(work, name), 0o755);
    const libraries = librariesOf(source);
    if (libraries.length > 0) await mkdir(join(work, "lib"), { mode: 0o755 });
    for (const library of libraries) await copyFile(library, join(work, "lib", basename(library)));
  });
}

/** Where {@link stage} puts a program, as the sandbox sees it. */
export function stagedPath(source: string, name: string): string {
  return join(inSandbox.artifacts, stagedId(source, name), name);
}

/**
 * What starts a program of {@link stage} in the sandbox: its path or, where it has libraries, its loader with where they
 * are.
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

/** Puts a runtime wrapper with its rules into the cache; the folder is named by both. */
export async function stageWrapper(wrapper: Wanted, rulesFile: string, say: (line: string) => void): Promise<string> {
  const folder = join(artifactsFolder(), wrapperId(wrapper.id, rulesFile));
  if (existsSync(folder)) return folder;
  const built = await provide(wrapper, say);
  return await intoPlace(folder, async (work) => {
    await copyFile(join(built, "runc-wrapper"), join(work, "runc-wrapper"));
    await writeFile(join(work, "rules.json"), rulesFile);
  });
}

/** Where {@link stageWrapper} puts the wrapper, as the sandbox sees it. */
export function wrapperPath(wrapper: Wanted, rulesFile: string): string {
  return join(inSandbox.artifacts, wrapperId(wrapper.id, rulesFile), "runc-wrapper");
}

const wrapperId = (wrapper: string, rulesFile: string) => `runc-wrapper-${digest(wrapper, rulesFile)}`;

/**
 * The folder of what every sandbox has in its /bin: a static busybox, and a link to it for each of its programs. It is
 * a release's, or made of this machine's.
 */
export function baseFolder(): string {
  return join(artifactsFolder(), manifest().base ?? `base-${digest(fileDigest(staticBusybox()))}`);
}

/** Puts it there; see {@link baseFolder}. */
export async function stageBase(say: (line: string) => void = () => {}): Promise<string> {
  const folder = baseFolder();
  if (existsSync(folder)) return folder;
  const { base, release } = manifest();
  if (base !== undefined && release !== undefined) return await obtain(base, release, say);
  const [busybox, own] = [staticBusybox(), staticBusybox({})];
  return await intoPlace(folder, async (work) => {
    const bin = join(work, "bin");
    await mkdir(bin, { mode: 0o755 });
    await copyFile(busybox, join(bin, "busybox"));
    await chmod(join(bin, "busybox"), 0o755);
    const { stdout } = await run(own, ["--list"]);
    const applets = stdout.split("\n").filter((applet) => applet !== "" && applet !== "busybox");
    for (const applet of applets) await symlink("busybox", join(bin, applet));
  });
}

/**
 * This machine's static busybox, or, while a release is made for another kind of machine, that one's.
 * @throws Error that says what to install
 */
export function staticBusybox({ GVISOR_K3S_BUSYBOX: other }: NodeJS.ProcessEnv = process.env): string {
  const advice = "install a static one (Debian: apt-get install busybox-static)";
  const found = (other ? [other] : ["/bin/busybox", "/usr/bin/busybox"]).find((path) => existsSync(path));
  if (!found) throw new Error(`no /bin/busybox: ${advice}`);
  // A dynamic program asks for an interpreter; a static one has no such segment.
  if (readFileSync(found).includes("/ld-")) throw new Error(`${found} is not static: ${advice}`);
  return found;
}
