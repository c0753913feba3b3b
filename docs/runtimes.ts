/**
 * Runs every OCI runtime on every generation of gVisor and writes what came of it into docs/runtimes.md: `node
 * docs/runtimes.ts`, or `make runtimes`. It takes a minute, once everything is built.
 */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Artifact, pathInSandbox, provide, wanted } from "../artifacts/artifacts.ts";
import { stage, stagedProgram, wrapperPath } from "../artifacts/stage.ts";
import { crunRules } from "../components/crun.ts";
import { facadePlan } from "../config/facade.ts";
import type { OciRule } from "../config/ociRules.ts";
import { crunOptionsFor, facadeFor, patchesFor, type QuirkId, rulesFor } from "../config/quirks.ts";
import { CRUN, parseStackConfig } from "../config/schema.ts";
import type { Machine } from "../machines/machine.ts";
import { managed } from "../machines/managed.ts";
import { inTrial } from "../machines/trial.ts";
import { applyFacade } from "../steps/facade.ts";
import { ask, probes, quirksIn } from "../steps/probe.ts";
import { checkExec, checkRuntime } from "../steps/runtime.ts";
import { CommandError, run } from "../system/run.ts";
import { generations } from "../test/generations.ts";
import { moduleVersion } from "../toolchain/builds.ts";
import { markdown, putTable } from "./markdown.ts";

/** A runtime with what it takes on a sandbox with these quirks. */
interface Candidate {
  name: string;
  /** Makes it available; what starts it in the sandbox. */
  command: (found: QuirkId[]) => Promise<string[]>;
  rules?: readonly OciRule[];
}

const say = (line: string) => console.log(line);

async function builtRunc(patches: string[]): Promise<string[]> {
  const runc: Artifact = { name: "runc", ...(patches.length > 0 ? { patches: patches.toSorted() } : {}) };
  await provide(wanted(runc), say);
  return [pathInSandbox(runc, "runc")];
}

async function candidates(): Promise<Candidate[]> {
  const version = moduleVersion("toolchain/runc", "github.com/opencontainers/runc");
  const { stdout } = await run(CRUN, ["--version"]);
  return [
    { name: `runc ${version}, as it is`, command: () => builtRunc([]) },
    {
      name: `runc ${version}, with the patches that the probes ask for`,
      command: (found) => builtRunc(patchesFor(found)),
    },
    {
      name: `crun ${/version (\S+)/.exec(stdout)![1]}, Debian's`,
      rules: crunRules,
      command: async (found) => {
        await stage(CRUN, "crun");
        return [...stagedProgram(CRUN, "crun"), ...crunOptionsFor(found)];
      },
    },
  ];
}

/** "works", or the first thing that the runtime complains of. */
async function outcome(act: () => Promise<void>): Promise<string> {
  return await act().then(
    () => "works",
    (error: unknown) => `\`${firstError(error)}\``,
  );
}

function firstError(error: unknown): string {
  const text = error instanceof CommandError ? error.output : String(error);
  const lines = text.split("\n").filter((candidate) => !candidate.includes("level=warning"));
  const line = lines.find((candidate) => candidate !== "") ?? text;
  const logged = /msg="((?:[^"\\]|\\.)*)"/.exec(line)?.[1]?.replaceAll("\\", "");
  return (logged ?? line).replaceAll("`", "'").trim();
}

async function tryAll(sandbox: Machine, all: Candidate[]): Promise<{ found: QuirkId[]; outcomes: string[][] }> {
  const machine = sandbox.ref;
  const context = (content = "") => ({ machine: sandbox, content, incarnation: 1, repairs: 0, say });
  const found = quirksIn(await ask(sandbox, probes));
  const plan = { ...facadePlan(machine.name, facadeFor(found)), settings: [] };
  await applyFacade.run({ machine, plan }, context());
  const wrapper = wanted({ name: "wrapper" });
  const outcomes: string[][] = [];
  for (const { name, command, rules: own = [] } of all) {
    const starts = await command(found);
    const rules = [...own, ...rulesFor(found)];
    const rulesFile = rules.length > 0 || starts.length > 1 ? JSON.stringify({ runtime: starts, rules }) : "";
    const runtime = rulesFile ? wrapperPath(wrapper, rulesFile) : starts[0]!;
    const runs = await outcome(() => checkRuntime.run({ machine, runtime, wrapper }, context(rulesFile)));
    const execs = runs === "works" ? await outcome(() => checkExec(sandbox, runtime)) : "";
    say(`  ${name}: run ${runs}${execs && `, exec ${execs}`}`);
    outcomes.push([name, runs, execs]);
  }
  return { found, outcomes };
}

const home = await mkdtemp(join(tmpdir(), "gvisor-k3s-runtimes-"));
const rows: string[][] = [];
const lacks: string[][] = [];
try {
  const all = await candidates();
  for (const { name, runsc, sandbox } of generations) {
    say(`gVisor ${name}`);
    const config = parseStackConfig({ name: "trial", sandbox: { ...sandbox, runsc: await runsc(say) } });
    const ref = managed.refOf(config, home);
    const { found, outcomes } = await inTrial(ref, managed.specOf(config), (trial) => tryAll(trial, all));
    rows.push(...outcomes.map(([runtime, runs, execs]) => [name, runtime!, runs!, execs!]));
    lacks.push([name, found.join(", ")]);
  }
} finally {
  await rm(home, { recursive: true, force: true });
}
const file = join(import.meta.dirname, "runtimes.md");
const text = putTable(
  await readFile(file, "utf8"),
  "outcomes",
  markdown(["gVisor", "OCI runtime", "runs a container", "runs a second process in it"], rows),
);
await writeFile(file, putTable(text, "lacks", markdown(["gVisor", "quirks that the probes find"], lacks)));
