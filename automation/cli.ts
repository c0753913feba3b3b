/**
 * `node automation/cli.ts up|preview|destroy|doctor [STACK] [--json]`: runs Pulumi on a stack, `dev` by default, and tells how far it is; `doctor`
 * tells what its sandbox can do. `import STACK ARCHIVE…` brings images into a stack's node that runs. Exit codes: 0 done, and for `doctor` that pods can run; 1 an error; 2 a wrong command line; 3 (`doctor`)
 * that only a control plane can run.
 */
import "./compileCache.ts";
import { existsSync } from "node:fs";
import { rm, rmdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { CommandError, type EngineEvent } from "@pulumi/pulumi/automation/index.js";
import { homeFolder, sandboxPaths } from "../config/paths.ts";
import { InputError, refuse } from "../config/problems.ts";
import { importImages } from "../steps/images.ts";
import { archiveProblem } from "../steps/preflight.ts";
import { removeDeadTrials } from "../steps/probe.ts";
import { isAlive, readRecord } from "../steps/record.ts";
import { artifactFolder, fileDigest } from "../toolchain/artifacts.ts";
import { asTable, doctor as examine } from "./doctor.ts";
import { checkStackConfig, openStack } from "./workspace.ts";

const commands = { up, preview, destroy, doctor, import: importArchives };

const { positionals, values } = parseArgs({ allowPositionals: true, strict: false, options: { json: { type: "boolean", default: false } } });
const [verb = "", stackName = "dev", ...archives] = positionals;
const started = Date.now();
const say = (line: string) => console.log(`[${elapsed(started)}] ${line}`);

// A terminal sends an interrupt to Pulumi as well, which ends its steps, notes what is done and releases its lock: that is waited for.
process.on("SIGINT", () => say("interrupted; what runs is ended first"));
const termination = new AbortController();
process.on("SIGTERM", () => termination.abort());
const { signal } = termination;

async function up(): Promise<void> {
  checkStackConfig(stackName);
  const stack = await openStack(stackName, say);
  const stages = new Stages();
  const { outputs, summary } = await stack.up({ signal, onEvent: (event) => stages.see(event), color: "never", onError: (text) => process.stderr.write(text) });
  const changes = Object.entries(summary.resourceChanges ?? {}).map(([kind, count]) => `${count} ${kind}`);
  const pod = outputs.testPod?.value as { name: string; phase: string; logs: string } | undefined;
  const kubeconfig = outputs.kubeconfigPath?.value as string;
  console.log(`\nresources   ${changes.join(", ")}\n${stages.table()}`);
  if (outputs.quirks) console.log(`quirks      ${(outputs.quirks.value as string[]).join(", ") || "none"}`);
  if (pod) console.log(`pod         ${pod.name}\nphase       ${pod.phase}\nlog         ${pod.logs.split("\n")[0]}`);
  console.log(`kubeconfig  ${kubeconfig}\nall         ${elapsed(started)}\n\nnext:\n  export KUBECONFIG=${kubeconfig}\n  kubectl get pods -A\n  make destroy${stackName === "dev" ? "" : ` STACK=${stackName}`}`);
}

async function preview(): Promise<void> {
  checkStackConfig(stackName);
  const stack = await openStack(stackName, say);
  await stack.preview({ signal, diff: true, color: process.stdout.isTTY ? "always" : "never", onOutput: (text) => process.stdout.write(text), onError: (text) => process.stderr.write(text) });
}

async function destroy(): Promise<void> {
  const stack = await openStack(stackName, say);
  const stages = new Stages();
  await removeDeadTrials(homeFolder());
  await stack.destroy({ signal, onEvent: (event) => stages.see(event), color: "never", onError: (text) => process.stderr.write(text) });
  await stack.workspace.removeStack(stackName);
  const home = homeFolder();
  await rm(join(home, "project", `Pulumi.${stackName}.yaml`), { force: true });
  // The last stack takes its surroundings along.
  if (!existsSync(join(home, "sandboxes")) && (await stack.workspace.listStacks()).length === 0) {
    for (const entry of ["project", "pulumi", "passphrase"]) await rm(join(home, entry), { recursive: true, force: true });
    await rmdir(home).catch(() => undefined); // something of the user's is in it
  }
  say(`${stackName} is gone`);
}

async function doctor(): Promise<void> {
  const report = await examine(checkStackConfig(stackName), values.json ? (line) => console.error(line) : say);
  process.stdout.write(values.json ? `${JSON.stringify(report, null, 2)}\n` : asTable(report));
  process.exitCode = report.blockers.length === 0 ? 0 : 3;
}

async function importArchives(): Promise<void> {
  const { name, sandbox } = checkStackConfig(stackName);
  const paths = sandboxPaths(name);
  const files = archives.map((path) => resolve(path));
  refuse(files.flatMap(archiveProblem));
  if (!isAlive(readRecord(paths))) throw new Error(`${name} does not run; run \`make up STACK=${stackName}\` first`);
  const ref = { name, home: homeFolder(), runsc: sandbox.runsc ?? `${artifactFolder({ name: "runsc" })}/runsc` };
  for (const path of files) {
    await importImages({ ...ref, archives: [{ path, sha256: fileDigest(path) }] });
    say(`${path} is imported`);
  }
}

/** Tells what the engine does to the stack's resources, and keeps how long each took. */
class Stages {
  readonly #begun = new Map<string, number>();
  readonly #took = new Map<string, number>();
  /** What a resource waits for, as its provider tells it. */
  readonly #status = new Map<string, string>();

  constructor() {
    setInterval(() => {
      for (const [name, begun] of this.#begun) if (!this.#took.has(name)) say([`… ${name} (${elapsed(begun)})`, this.#status.get(name)].filter(Boolean).join(" "));
    }, 10_000).unref();
  }

  see(event: EngineEvent): void {
    const metadata = (event.resourcePreEvent ?? event.resOutputsEvent)?.metadata;
    const diagnostic = event.diagnosticEvent;
    if (diagnostic?.severity === "error") console.error(diagnostic.message.trimEnd());
    if (diagnostic?.ephemeral) this.#status.set(nameOf(diagnostic.urn), diagnostic.message.trim().split("\n").at(-1)!);
    if (!metadata || metadata.op === "same" || !isWork(metadata.type)) return;
    const name = nameOf(metadata.urn);
    if (event.resourcePreEvent) {
      this.#begun.set(name, Date.now());
      return;
    }
    const begun = this.#begun.get(name) ?? Date.now();
    this.#took.set(name, Date.now() - begun);
    say(`${metadata.op} ${name} (${elapsed(begun)})`);
  }

  table(): string {
    return [...this.#took].map(([name, took]) => `stage       ${name.padEnd(22)} ${seconds(took)}`).join("\n");
  }
}

function nameOf(urn = ""): string {
  return urn.split("::").at(-1)!;
}

/** Components and the stack itself only group what is done. */
function isWork(type: string): boolean {
  return !type.startsWith("gvisor-k3s:") && !type.startsWith("pulumi:");
}

function elapsed(since: number): string {
  return seconds(Date.now() - since);
}

function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(1)} s`;
}

const unknown = Object.keys(values).filter((option) => option !== "json" || verb !== "doctor").filter((option) => values[option]);
if (!Object.hasOwn(commands, verb) || (verb === "import") !== archives.length > 0 || unknown.length > 0) {
  console.error("usage: cli.ts up|preview|destroy|doctor [STACK], and for doctor [--json]\n       cli.ts import STACK ARCHIVE…");
  process.exit(2);
}
await commands[verb as keyof typeof commands]().catch((error: unknown) => {
  // Pulumi has printed its diagnostics; its own error only repeats them.
  if (error instanceof CommandError) console.error(`${verb} failed; what is done is kept, and the next ${verb} goes on from there`);
  else console.error(error instanceof InputError || (error instanceof Error && ["doctor", "import"].includes(verb)) ? error.message : error);
  process.exitCode = 1;
});
