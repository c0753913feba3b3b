/**
 * The surroundings that Pulumi runs in: its program, its state, its passphrase and its plugins.
 * @module
 */
import { randomBytes } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, dirname, extname, join } from "node:path";
import { LocalWorkspace, PulumiCommand, Stack, StackAlreadyExistsError } from "@pulumi/pulumi/automation/index.js";
import { gte, parse } from "semver";
import { type Document, parseDocument, stringify } from "yaml";
import { manifest, provide, takesStandins, wanted } from "../artifacts/artifacts.ts";
import { refuse } from "../config/problems.ts";
import { preflight, preflightThere } from "../steps/preflight.ts";
import { keepWhole, rewrite, writeOnce } from "../system/files.ts";
import { cacheFolder, compileCacheFolder, homeFolder } from "../system/folders.ts";
import { findProgram } from "../system/programs.ts";
import { run, runsWell } from "../system/run.ts";
import { configIn, type NamedConfig, plainConfig } from "./options.ts";
import { ownerOf, ownProject, pulumiLocks, readYaml, root, settingsFile, stacksFolder } from "./project.ts";

/**
 * Opens a stack, making it if it is new. Its state and its passphrase lie in the home folder unless Pulumi's own
 * variables (PULUMI_BACKEND_URL, PULUMI_CONFIG_PASSPHRASE or PULUMI_CONFIG_PASSPHRASE_FILE) name others.
 * @param name the stack's name; options are read from `Pulumi.NAME.yaml` in the current folder, or beside the program
 * @param say takes a line per thing that is built first
 */
export async function openStack(name: string, say: (line: string) => void): Promise<Stack> {
  const home = homeFolder();
  mkdirSync(join(home, "pulumi"), { recursive: true, mode: 0o700 });
  const { command, env } = await pulumiCommand(say);
  const { steps } = manifest(); // looked up once for all that Pulumi starts
  const envVars: Record<string, string> = {
    PULUMI_SKIP_UPDATE_CHECK: "true",
    NODE_COMPILE_CACHE: compileCacheFolder(),
    // Relative ones are relative to the command's folder, and what Pulumi starts is in others.
    GVISOR_K3S_HOME: home,
    GVISOR_K3S_CACHE: cacheFolder(),
    GVISOR_K3S_MANIFEST: process.env.GVISOR_K3S_MANIFEST!,
    ...(steps && { GVISOR_K3S_STEPS: steps }),
    ...env,
  };
  if (!process.env.PULUMI_BACKEND_URL) {
    envVars.PULUMI_BACKEND_URL = `file://${join(home, "pulumi")}`;
    dropDeadLocks(home, name, say);
    mendState(home, name, say);
    dropOldCopies(home, name);
  }
  if (!process.env.PULUMI_CONFIG_PASSPHRASE && !process.env.PULUMI_CONFIG_PASSPHRASE_FILE)
    envVars.PULUMI_CONFIG_PASSPHRASE_FILE = passphraseFile(home);
  const workspace = await LocalWorkspace.create({
    workDir: await projectFolder(home, name),
    envVars,
    pulumiCommand: command,
  });
  const stacks = localStacks(home);
  if (stacks === undefined) return await Stack.createOrSelect(name, workspace);
  // Each command names its stack: to select it is a process more.
  workspace.selectStack = async () => {};
  if (stacks.includes(name)) return await Stack.select(name, workspace);
  return await Stack.create(name, workspace).catch((error: unknown) => {
    if (error instanceof StackAlreadyExistsError) return Stack.select(name, workspace); // another run was faster
    throw error;
  });
}

/** The stacks whose state lies in the home folder; undefined where Pulumi's own variable names another place for it. */
function localStacks(home: string): string[] | undefined {
  if (process.env.PULUMI_BACKEND_URL) return undefined;
  const folder = stacksFolder(home);
  const files = existsSync(folder) ? readdirSync(folder) : [];
  return files.flatMap((file) => /^(.+)\.json(\.gz|\.zst)?$/.exec(file)?.[1] ?? []); // compressed where a variable says so
}

/** Whether a stack was the last one. */
export async function isLast(stack: Stack): Promise<boolean> {
  return (localStacks(homeFolder()) ?? (await stack.workspace.listStacks())).length === 0;
}

/**
 * Removes the locks that a killed Pulumi of this machine left on a stack; one whose process lives is left for Pulumi to
 * refuse.
 */
function dropDeadLocks(home: string, stack: string, say: (line: string) => void): void {
  for (const { file, pid, since, alive } of pulumiLocks(home, stack)) {
    if (alive) continue;
    say(`an earlier run was interrupted (process ${pid}, ${since}); its lock is removed`);
    rmSync(file);
  }
}

/**
 * Puts the newest whole copy of a stack's state in the place of one that a full disk has cut short: Pulumi renames what
 * it could not write to the end as well (gocloud.dev/blob, Bucket.WriteAll). What was made since that copy is found by
 * the steps, which look before they make anything.
 */
export function mendState(home: string, stack: string, say: (line: string) => void): void {
  const state = join(stacksFolder(home), `${stack}.json`);
  if (!existsSync(state) || isWhole(state)) return;
  const [backups, name] = [
    join(home, "pulumi/.pulumi/backups", ownProject(), stack),
    new RegExp(`^${stack}\\.\\d+\\.json$`),
  ];
  const older = (existsSync(backups) ? readdirSync(backups) : []).filter((file) => name.test(file)).sort();
  const copies = [`${state}.bak`, ...older.reverse().map((file) => join(backups, file))];
  const copy = copies.find((file) => existsSync(file) && isWhole(file));
  if (copy === undefined) return; // Pulumi says what is wrong with it
  say(`Pulumi's state was cut short by a full disk; its last whole copy is taken: ${copy}`);
  renameSync(copy, state); // which takes no room
}

function isWhole(file: string): boolean {
  try {
    JSON.parse(readFileSync(file, "utf8"));
    return true;
  } catch {
    return false;
  }
}

/** How many runs of a stack Pulumi's history and its copies of the state go back. */
const KEPT_RUNS = 20;

/** Removes the oldest of the copies that Pulumi makes of a stack's state with each run, and never removes. */
export function dropOldCopies(home: string, stack: string): void {
  for (const kind of ["history", "backups"]) {
    const folder = join(home, "pulumi/.pulumi", kind, ownProject(), stack);
    const runs = new Map<string, string[]>();
    for (const file of existsSync(folder) ? readdirSync(folder) : []) {
      const time = /[-.](\d{15,})\.(checkpoint\.|history\.)?json/.exec(file)?.[1]; // in nanoseconds
      if (time !== undefined) runs.set(time, [...(runs.get(time) ?? []), file]);
    }
    const order = [...runs.keys()].sort((a, b) => a.length - b.length || a.localeCompare(b));
    for (const time of order.slice(0, -KEPT_RUNS)) {
      for (const file of runs.get(time)!) rmSync(join(folder, file), { force: true });
    }
  }
}

/**
 * Checks the options of a stack before anything is made, its surroundings included, and the machine that it is for.
 * @throws InputError that lists every problem at once
 */
export async function checkStackConfig(name: string): Promise<NamedConfig> {
  const checked = await readConfig(name);
  preflight(checked, ownerOf(name));
  await preflightThere(checked);
  return checked;
}

/**
 * The options of a stack. Those that `pulumi config set --secret` has written are read through Pulumi, which alone can
 * read them.
 * @throws InputError that lists everything that is wrong with them by themselves
 */
export async function readConfig(name: string): Promise<NamedConfig> {
  return plainConfig(name) ?? configIn(name, await decrypted(name));
}

async function decrypted(name: string): Promise<Record<string, unknown>> {
  const stack = await openStack(name, () => {});
  const all = await stack.getAllConfig();
  return Object.fromEntries(Object.entries(all).map(([option, { value }]) => [option, value]));
}

/**
 * Sets one of a stack's options, whatever else is in their file; where there is none, it comes to be in the current
 * folder.
 * @param path the option's name, and where in it the value is
 * @returns what puts the file back as it was
 */
export async function setOption(name: string, path: string[], value: string): Promise<() => Promise<void>> {
  const known = settingsFile(name);
  const before = existsSync(known) ? readFileSync(known, "utf8") : undefined;
  const file = before === undefined ? newSettingsFile(name) : known;
  const document = parseDocument(before ?? "");
  const [option, ...within] = path;
  const at = ["config", `${ownProject()}:${option}`];
  if (within.length > 0) openUp(document, at);
  document.setIn([...at, ...within], value);
  await rewrite(file, document.toString({ lineWidth: 0 }));
  return async () => await (before === undefined ? rm(file, { force: true }) : rewrite(file, before));
}

/** Where the options of a stack come to be that has no file of them. */
const newSettingsFile = (stack: string) => join(process.cwd(), `Pulumi.${stack}.yaml`);

/** Has what `pulumi config set` has written as JSON be what it stands for. */
function openUp(document: Document, at: string[]): void {
  const given = document.getIn(at);
  if (typeof given === "string") document.setIn(at, document.createNode(JSON.parse(given)));
}

/**
 * Gives a stack that has no options the options of another one, but for those that no two clusters share.
 * @returns what takes them away again
 * @throws InputError if some of them are secrets, which are encrypted for that stack alone
 */
export async function copyOptions(
  name: string,
  fresh: string,
  say: (line: string) => void,
): Promise<() => Promise<void>> {
  const known = settingsFile(name);
  if (existsSync(settingsFile(fresh)) || !existsSync(known)) return async () => {};
  const text = readFileSync(known, "utf8");
  if (/^\s*(-\s+)?secure:/m.test(text)) {
    const message = `some options of ${name} are secrets, which only its own file can have; write Pulumi.${fresh}.yaml`;
    refuse([{ option: "NEW", value: fresh, message }]);
  }
  const document = parseDocument(text);
  const option = (key: string) => ["config", `${ownProject()}:${key}`];
  document.delete("encryptionsalt");
  for (const key of ["name", "ports", "from"]) document.deleteIn(option(key));
  openUp(document, option("sandbox"));
  if (document.hasIn(option("sandbox"))) document.deleteIn([...option("sandbox"), "subnet"]);
  const file = newSettingsFile(fresh);
  await rewrite(file, document.toString({ lineWidth: 0 }));
  say(`${file} has the options of ${name}`);
  return async () => await rm(file, { force: true });
}

/**
 * The project as Pulumi sees it: its program is this checkout; its settings lie in the home folder, because Pulumi
 * writes the stack's salt into them.
 */
async function projectFolder(home: string, stack: string): Promise<string> {
  const folder = join(home, "project");
  const settings = join(folder, `Pulumi.${stack}.yaml`);
  const { encryptionsalt: salt } = readYaml(settings);
  const own = readYaml(settingsFile(stack));
  // What is encrypted in the user's file is so with that file's salt.
  const salted = { ...(salt ? { encryptionsalt: salt } : {}), ...own };
  const project = { ...readYaml(join(root, "Pulumi.yaml")), main: join(root, `index${extname(import.meta.filename)}`) };
  await keepWhole(join(folder, "Pulumi.yaml"), stringify(project));
  await keepWhole(settings, stringify(salted));
  return folder;
}

/** A passphrase is made once for a home; without it the secrets in its stacks' state cannot be read. */
function passphraseFile(home: string): string {
  const file = join(home, "passphrase");
  if (!existsSync(file)) writeOnce(file, randomBytes(24).toString("base64url"));
  return file;
}

/**
 * The user's own Pulumi, with its language host, where it is new enough; else that of this project. The plugins are
 * this project's stand-ins or Pulumi's own, which it then brings itself; see `takesStandins`.
 */
export async function pulumiCommand(
  say: (line: string) => void,
): Promise<{ command: PulumiCommand; env: Record<string, string> }> {
  const there = ["pulumi", "pulumi-language-nodejs"].every((program) => findProgram(program) !== undefined);
  const own = there ? await runsWell("pulumi", ["version"], { env: NO_UPDATE_CHECK }) : undefined;
  const version = own?.trim().replace(/^v/, "");
  if (version && gte(version, manifest().versions.pulumi)) return { command: await PulumiCommand.get(), env: {} };

  const cli = await provide(wanted({ name: "pulumi" }), say);
  const host = await provide(wanted({ name: "language-host" }), say);
  const standins = takesStandins() ? await provide(wanted({ name: "standins" }), say) : undefined;
  // Pulumi looks for language hosts beside its own program, and for plugins in its home, which is a private one: the
  // stand-ins must never hide the real ones. Named by what was built, so that a rebuilt plugin is never shadowed by an
  // older one.
  const ids = [cli, host, standins ?? "-own"].map((path) => path.split("-").at(-1));
  const folder = join(cacheFolder(), "pulumi", ids.join("-"));
  const env = {
    PULUMI_HOME: join(folder, "home"),
    ...(standins === undefined ? {} : { PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION: "true" }),
  };
  const program = join(folder, "bin/pulumi");
  const ready = join(folder, "ready");
  if (!existsSync(ready)) {
    mkdirSync(dirname(program), { recursive: true });
    for (const file of [join(cli, "pulumi"), join(host, "pulumi-language-nodejs")]) linkOrCopy(file, dirname(program));
    for (const name of standins === undefined ? [] : ["command", "kubernetes"]) {
      const file = join(standins!, `pulumi-resource-${name}`);
      const args = ["plugin", "install", "resource", name, packageVersion(name), "--reinstall", "--file", file];
      await run(program, args, { env: { ...env, ...NO_UPDATE_CHECK } });
    }
    writeFileSync(ready, "");
  }
  // PulumiCommand.get() runs it, to ask for its version.
  const command = Reflect.construct(PulumiCommand, [program, parse(manifest().versions.pulumi)]) as PulumiCommand;
  return { command, env };
}

/** The same file in another folder: Pulumi alone has 100 MB. */
function linkOrCopy(file: string, folder: string): void {
  const target = join(folder, basename(file));
  rmSync(target, { force: true });
  try {
    linkSync(file, target);
  } catch {
    copyFileSync(file, target);
  }
}

const NO_UPDATE_CHECK = { PULUMI_SKIP_UPDATE_CHECK: "true" };

/** The version of one of Pulumi's packages that is installed here. */
function packageVersion(name: string): string {
  const file = createRequire(import.meta.url).resolve(`@pulumi/${name}/package.json`);
  return (JSON.parse(readFileSync(file, "utf8")) as { version: string }).version;
}
