/**
 * The surroundings that Pulumi runs in: its program, its state, its passphrase and its plugins.
 * @module
 */
import { randomBytes } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { hostname } from "node:os";
import { dirname, extname, join } from "node:path";
import { LocalWorkspace, PulumiCommand, Stack } from "@pulumi/pulumi/automation/index.js";
import { gte } from "semver";
import { parse, parseDocument, stringify } from "yaml";
import { cacheFolder, homeFolder } from "../config/paths.ts";
import { parseStackConfig, type StackConfig } from "../config/schema.ts";
import { readStackConfig } from "../config/stackConfig.ts";
import { preflight } from "../steps/preflight.ts";
import { processStart } from "../steps/record.ts";
import { run, runsWell } from "../steps/run.ts";
import { build, moduleVersion } from "../toolchain/artifacts.ts";
import { compileCache } from "./compileCache.ts";

const root = join(import.meta.dirname, "..");

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
  const envVars: Record<string, string> = {
    PULUMI_SKIP_UPDATE_CHECK: "true",
    NODE_COMPILE_CACHE: compileCache,
    ...env,
  };
  if (!process.env.PULUMI_BACKEND_URL) {
    envVars.PULUMI_BACKEND_URL = `file://${join(home, "pulumi")}`;
    dropDeadLocks(home, name, say);
  }
  if (!process.env.PULUMI_CONFIG_PASSPHRASE && !process.env.PULUMI_CONFIG_PASSPHRASE_FILE)
    envVars.PULUMI_CONFIG_PASSPHRASE_FILE = passphraseFile(home);
  const workspace = await LocalWorkspace.create({
    workDir: projectFolder(home, name),
    envVars,
    pulumiCommand: command,
  });
  // Pulumi would have to try whether there is such a stack, which is a process more.
  const isNew =
    envVars.PULUMI_BACKEND_URL && !existsSync(join(home, "pulumi/.pulumi/stacks", projectName(), `${name}.json`));
  return await (isNew ? Stack.create(name, workspace) : Stack.createOrSelect(name, workspace));
}

/**
 * Removes the locks that a killed Pulumi of this machine left on a stack; one whose process lives is left for Pulumi to
 * refuse.
 */
function dropDeadLocks(home: string, stack: string, say: (line: string) => void): void {
  const folder = join(home, "pulumi/.pulumi/locks/organization", projectName(), stack);
  for (const file of existsSync(folder) ? readdirSync(folder).filter((entry) => entry.endsWith(".json")) : []) {
    const lock = JSON.parse(readFileSync(join(folder, file), "utf8")) as {
      pid: number;
      hostname: string;
      timestamp: string;
    };
    if (lock.hostname !== hostname() || isPulumi(lock.pid)) continue;
    say(`an earlier run was interrupted (process ${lock.pid}, ${lock.timestamp}); its lock is removed`);
    rmSync(join(folder, file));
  }
}

function isPulumi(pid: number): boolean {
  return processStart(pid) !== undefined && readFileSync(`/proc/${pid}/comm`, "utf8").trim() === "pulumi";
}

/**
 * Checks the options of a stack before anything is made, its surroundings included.
 * @throws InputError that lists every problem at once
 */
export function checkStackConfig(name: string): StackConfig {
  const checked = readConfig(name);
  preflight(checked);
  return checked;
}

/**
 * The options of a stack.
 * @throws InputError that lists everything that is wrong with them by themselves
 */
export function readConfig(name: string): StackConfig {
  const { config = {} } = readYaml(settingsFile(name)) as { config?: Record<string, unknown> };
  return parseStackConfig(readStackConfig(config, projectName(), name));
}

/**
 * Sets the release of k3s in a stack's options, whatever else is in their file.
 * @returns what puts the file back as it was
 */
export function setRelease(name: string, version: string): () => void {
  const file = settingsFile(name);
  const before = readFileSync(file, "utf8");
  const document = parseDocument(before);
  const path = ["config", `${projectName()}:k3s`];
  const given = document.getIn(path);
  if (typeof given === "string") document.setIn(path, document.createNode(JSON.parse(given))); // as `pulumi config set` writes it
  document.setIn([...path, "version"], version);
  writeFileSync(file, document.toString({ lineWidth: 0 }));
  return () => writeFileSync(file, before);
}

/** A stack's options: in the folder that the command runs in, or beside the program. */
function settingsFile(name: string): string {
  return (
    [process.cwd(), root].map((folder) => join(folder, `Pulumi.${name}.yaml`)).find((file) => existsSync(file)) ??
    join(root, `Pulumi.${name}.yaml`)
  );
}

function projectName(): string {
  return String(readYaml(join(root, "Pulumi.yaml")).name);
}

function readYaml(file: string): Record<string, unknown> {
  return existsSync(file) ? ((parse(readFileSync(file, "utf8")) as Record<string, unknown> | null) ?? {}) : {};
}

/**
 * The project as Pulumi sees it: its program is this checkout; its settings lie in the home folder, because Pulumi
 * writes the stack's salt into them.
 */
function projectFolder(home: string, stack: string): string {
  const folder = join(home, "project");
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const settings = `Pulumi.${stack}.yaml`;
  const { encryptionsalt } = readYaml(join(folder, settings));
  writeFileSync(
    join(folder, "Pulumi.yaml"),
    stringify({ ...readYaml(join(root, "Pulumi.yaml")), main: join(root, `index${extname(import.meta.filename)}`) }),
  );
  writeFileSync(
    join(folder, settings),
    stringify({ ...readYaml(settingsFile(stack)), ...(encryptionsalt ? { encryptionsalt } : {}) }),
    { mode: 0o600 },
  );
  return folder;
}

/** A passphrase is made once for a home; without it the secrets in its stacks' state cannot be read. */
function passphraseFile(home: string): string {
  const file = join(home, "passphrase");
  if (!existsSync(file)) writeFileSync(file, randomBytes(24).toString("base64url"), { mode: 0o600, flag: "wx" });
  return file;
}

/**
 * The user's own Pulumi, with its language host, where it is new enough; else the one that is built here, with the
 * project's own small plugins.
 */
export async function pulumiCommand(
  say: (line: string) => void,
): Promise<{ command: PulumiCommand; env: Record<string, string> }> {
  const pinned = moduleVersion("toolchain/pulumi", "github.com/pulumi/pulumi/pkg/v3");
  const [pulumi, host] = await Promise.all(
    ["pulumi", "pulumi-language-nodejs"].map((program) => runsWell("which", [program])),
  );
  const version =
    pulumi &&
    host &&
    (await runsWell("pulumi", ["version"], { env: { PULUMI_SKIP_UPDATE_CHECK: "true" } }))?.trim().replace(/^v/, "");
  if (version && gte(version, pinned)) return { command: await PulumiCommand.get(), env: {} };

  const [cli, plugins] = [await build({ name: "pulumi" }, say), await build({ name: "plugins" }, say)];
  // Pulumi looks for language hosts beside its own program, and for plugins in its home, which is a private one: the
  // stand-ins must never hide the real ones. Named by what was built, so that a rebuilt plugin is never shadowed by an
  // older one.
  const folder = join(cacheFolder(), "pulumi", `${cli.split("-").at(-1)}-${plugins.split("-").at(-1)}`);
  const env = { PULUMI_HOME: join(folder, "home"), PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION: "true" };
  const program = join(folder, "bin/pulumi");
  const ready = join(folder, "ready");
  if (!existsSync(ready)) {
    mkdirSync(dirname(program), { recursive: true });
    copyFileSync(join(cli, "pulumi"), program);
    copyFileSync(join(plugins, "pulumi-language-nodejs"), join(folder, "bin/pulumi-language-nodejs"));
    for (const name of ["command", "kubernetes"]) {
      const { version } = JSON.parse(
        readFileSync(createRequire(import.meta.url).resolve(`@pulumi/${name}/package.json`), "utf8"),
      ) as { version: string };
      await run(
        program,
        [
          "plugin",
          "install",
          "resource",
          name,
          version,
          "--reinstall",
          "--file",
          join(plugins, `pulumi-resource-${name}`),
        ],
        { env: { ...env, PULUMI_SKIP_UPDATE_CHECK: "true" } },
      );
    }
    writeFileSync(ready, "");
  }
  return { command: await PulumiCommand.get({ root: folder }), env };
}
