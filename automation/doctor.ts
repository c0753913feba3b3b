/**
 * Tells what a sandbox can do and what it cannot, before anything is installed in it.
 * @module
 */

import { provide } from "../artifacts/artifacts.ts";
import { blockersAmong, describeRemedy, probedQuirks, type QuirkId, quirk } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import { driverFor, openMachine, refOf } from "../machines/index.ts";
import type { Machine } from "../machines/machine.ts";
import { inTrial } from "../machines/trial.ts";
import { type Answer, ask, probes, quirksIn } from "../steps/probe.ts";
import { says } from "../system/programs.ts";
import { oneLine } from "../system/run.ts";
import { secretsOf, statesFolder, statesInClear } from "./secrets.ts";

/** One row of the report. */
export interface Finding {
  quirk: QuirkId;
  found: boolean;
  /** What does not work with it, unless there is a remedy. */
  neededBy: string;
  remedy: string;
  whoCanChangeIt: string;
  /** What people see of it. */
  symptom: string;
  /** The kernel's own answer; "" if the quirk was not found. */
  answer: string;
}

/** What `doctor` prints with `--json`. */
export interface Report {
  /** What was probed. */
  probed: string;
  /** What `uname -r` tells there. */
  kernel: string;
  findings: Finding[];
  /** What stands in the way of pods. */
  blockers: QuirkId[];
  /** What the option `mode` should be. */
  recommendedMode: StackConfig["mode"];
  /** Files of the stack's state that have secrets in clear: an earlier release has written them. */
  secretsInClear: string[];
}

/** What is found of a sandbox alone. */
type Probed = Omit<Report, "secretsInClear">;

/**
 * Probes this machine if it is a gVisor sandbox itself, or the one that the options name; else the stack's sandbox if it
 * runs, or a trial one with the stack's options, of which nothing stays.
 * @param say takes a line per thing that is built first
 * @param stack whose state is looked at; default: the one that is called as the cluster is
 * @throws Error if a probe hangs, or if the sandbox does not start
 */
export async function doctor(
  config: StackConfig,
  say: (line: string) => void,
  stack: string = config.name,
): Promise<Report> {
  const folder = statesFolder();
  const secretsInClear = folder === undefined ? [] : statesInClear(folder, stack, secretsOf(config));
  return { ...(await probed(config, say)), secretsInClear };
}

async function probed(config: StackConfig, say: (line: string) => void): Promise<Probed> {
  const asked = config.target === "managed" && isGvisor() ? { ...config, target: "inside" as const } : config;
  const ref = refOf(asked);
  const driver = driverFor(ref);
  const machine = openMachine(ref);
  const { state } = await machine.observe();
  if (state === "running") return await examine(machine.title, machine);
  const spec = driver.specOf(asked);
  for (const artifact of driver.takesOf(spec)) await provide(artifact, say);
  return await inTrial(ref, spec, (trial) => examine(driver.trialOf ? trialOf(config) : machine.title, trial));
}

const trialOf = ({ name }: StackConfig) => `a trial sandbox with the options of ${name}, of which nothing is left`;

async function examine(probed: string, machine: Machine): Promise<Probed> {
  const { stdout } = await machine.exec(["uname", "-r"]);
  return report(probed, stdout.trim(), await ask(machine, probes));
}

/** gVisor's kernel log begins with its name, in every generation. */
const isGvisor = () => says("dmesg").includes("Starting gVisor");

function report(probed: string, kernel: string, answers: readonly Answer[]): Probed {
  const found = quirksIn(answers);
  const blockers = blockersAmong(found);
  const findings = probedQuirks.map((id): Finding => {
    const { needs, symptom } = quirk(id);
    const { remedy, by } = describeRemedy(quirk(id).remedy);
    return {
      quirk: id,
      found: found.includes(id),
      neededBy: needs,
      remedy,
      whoCanChangeIt: by,
      symptom,
      answer: answers.find((answer) => answer.id === id)?.reason ?? "",
    };
  });
  return { probed, kernel, findings, blockers, recommendedMode: blockers.length === 0 ? "node" : "control-plane" };
}

/** The report as a table for people. */
export function asTable(report: Report): string {
  const { probed, kernel, findings, blockers, recommendedMode, secretsInClear } = report;
  const rows = findings.map(({ quirk, found, neededBy, remedy, whoCanChangeIt }) => [
    quirk,
    found ? "yes" : "no",
    neededBy,
    ...(found ? [remedy, whoCanChangeIt] : ["", ""]),
  ]);
  const table = columns([["quirk", "found", "needed by", "remedy", "who can change it"], ...rows]);
  const verdict =
    blockers.length === 0
      ? "a node can run here"
      : [
          "no pod can run here:",
          ...findings
            .filter(({ quirk }) => blockers.includes(quirk))
            .map(
              ({ quirk, symptom, answer }) => `  ${quirk}: "${symptom}"; the kernel's answer: ${oneLine(answer ?? "")}`,
            ),
        ].join("\n");
  const head = `probed ${probed}; kernel ${oneLine(kernel)}`;
  const advice = `recommended  mode: ${recommendedMode}\n${inClear(secretsInClear)}`;
  return `${head}\n\n${table}\n\n${verdict}\n${advice}`;
}

function inClear(files: readonly string[]): string {
  if (files.length === 0) return "";
  const advice =
    "an earlier gvisor-k3s has written them. `gvisor-k3s up` writes the state with its secrets encrypted; delete what of " +
    "these files doctor names after that, and replace the passwords and tokens that others may have read there";
  return `\n! secrets are in clear in the stack's state: ${advice}\n${files.map((file) => `  ${file}\n`).join("")}`;
}

function columns(rows: string[][]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
