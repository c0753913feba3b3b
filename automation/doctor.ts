/**
 * Tells what a sandbox can do and what it cannot, before anything is installed in it.
 * @module
 */

import { provide } from "../artifacts/artifacts.ts";
import { blockersAmong, describeRemedy, probedQuirks, type QuirkId, quirk } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import { driverFor, openMachine } from "../machines/index.ts";
import type { Machine } from "../machines/machine.ts";
import { inTrial } from "../machines/trial.ts";
import { type Answer, ask, probes, quirksIn } from "../steps/probe.ts";
import { says } from "../system/programs.ts";
import { refOf } from "./cluster.ts";

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
}

/**
 * Probes this machine if it is a gVisor sandbox itself, or the one that the options name; else the stack's sandbox if it
 * runs, or a trial one with the stack's options, of which nothing stays.
 * @param say takes a line per thing that is built first
 * @throws Error if a probe hangs, or if the sandbox does not start
 */
export async function doctor(config: StackConfig, say: (line: string) => void): Promise<Report> {
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

async function examine(probed: string, machine: Machine): Promise<Report> {
  const { stdout } = await machine.exec(["uname", "-r"]);
  return report(probed, stdout.trim(), await ask(machine, probes));
}

/** gVisor's kernel log begins with its name, in every generation. */
const isGvisor = () => says("dmesg").includes("Starting gVisor");

function report(probed: string, kernel: string, answers: readonly Answer[]): Report {
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
export function asTable({ probed, kernel, findings, blockers, recommendedMode }: Report): string {
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
            .map(({ quirk, symptom, answer }) => `  ${quirk}: "${symptom}"; the kernel's answer: ${answer}`),
        ].join("\n");
  return `probed ${probed}; kernel ${kernel}\n\n${table}\n\n${verdict}\nrecommended  mode: ${recommendedMode}\n`;
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
