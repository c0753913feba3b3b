/**
 * Tells what a sandbox can do and what it cannot, before anything is installed in it.
 * @module
 */
import { execFileSync } from "node:child_process";
import { basename, join } from "node:path";
import { homeFolder, sandboxPaths } from "../config/paths.ts";
import { blockersAmong, describeRemedy, probedQuirks, type QuirkId, quirk } from "../config/quirks.ts";
import type { StackConfig } from "../config/schema.ts";
import { remotePaths, type SshTarget, sshTarget } from "../config/ssh.ts";
import { observe } from "../steps/observe.ts";
import { type Answer, ask, inTrialSandbox, probes, quirksIn } from "../steps/probe.ts";
import { isAlive, readRecord } from "../steps/record.ts";
import { run } from "../steps/run.ts";
import { execIn, type SandboxRef } from "../steps/sandbox.ts";
import { removeCopies, upload } from "../steps/upload.ts";
import { artifactFolder, build, pathInSandbox } from "../toolchain/artifacts.ts";

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
 * Probes this machine if it is a gVisor sandbox itself; else the stack's sandbox if it runs, or a trial one with the
 * stack's options, of which nothing stays.
 * @param say takes a line per thing that is built first
 * @throws Error if a probe hangs, or if the sandbox does not start
 */
export async function doctor(config: StackConfig, say: (line: string) => void): Promise<Report> {
  const init = await build({ name: "init" }, say);
  const ssh = sshTarget(config);
  if (ssh) return await examineThere(config.name, ssh, init, say);
  if (isGvisor()) return await examineHere();
  const { runsc = join(artifactFolder({ name: "runsc" }), "runsc"), platform, network } = config.sandbox;
  const ref = { name: config.name, home: homeFolder(), runsc };
  if (isAlive(readRecord(sandboxPaths(ref.name, ref.home)))) return await examine(`the sandbox ${ref.name}`, ref);
  if (config.sandbox.runsc === undefined) await build({ name: "runsc" }, say);
  return await inTrialSandbox({ ...ref, platform, network }, (trial) =>
    examine(`a trial sandbox with the options of ${config.name}, of which nothing is left`, trial),
  );
}

async function examine(
  probed: string,
  ref: SandboxRef,
  init = pathInSandbox({ name: "init" }, "sandbox-init"),
): Promise<Report> {
  const { stdout } = await execIn(ref, ["/bin/uname", "-r"]);
  return report(
    probed,
    stdout.trim(),
    await ask(probes, (input) => execIn(ref, [init, "probe"], { input, timeout: 30_000 })),
  );
}

/** Probes another machine, with a sandbox-init that is taken away again unless a cluster is there. */
async function examineThere(name: string, ssh: SshTarget, init: string, say: (line: string) => void): Promise<Report> {
  const to = { name, home: homeFolder(), ssh };
  const { record } = observe({ ...to, home: remotePaths.home });
  await upload(to, [init], say);
  try {
    return await examine(
      `the machine ${ssh.host}`,
      { name, home: remotePaths.home, ssh },
      join(remotePaths.artifacts, basename(init), "sandbox-init"),
    );
  } finally {
    if (record === undefined) await removeCopies(ssh);
  }
}

/** Probes the machine that this runs on. */
async function examineHere(): Promise<Report> {
  const init = join(artifactFolder({ name: "init" }), "sandbox-init");
  const { stdout } = await run("uname", ["-r"]);
  return report(
    "this machine, which is a gVisor sandbox",
    stdout.trim(),
    await ask(probes, (input) => run(init, ["probe"], { input, timeout: 30_000 })),
  );
}

/** gVisor's kernel log begins with its name, in every generation. */
function isGvisor(): boolean {
  try {
    return execFileSync("dmesg", { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).includes("Starting gVisor");
  } catch {
    return false; // not allowed, or no such program
  }
}

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
