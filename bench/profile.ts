/**
 * `make profile`: where the time of an `up` goes. Every process that it starts is a bar in a picture, with its start, its
 * end and its CPU time, below what `up` has told of; the longest of them are a table.
 * @module
 */
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { openMachine } from "../machines/index.ts";
import { argumentsOf, statOf } from "../system/processes.ts";

const root = join(import.meta.dirname, "..");
const picture = join(root, ".state/profile.html");
const [name, home] = ["profile", mkdtempSync(join(tmpdir(), "gvisor-k3s-profile-"))];
/** Milliseconds between two looks at the processes: what lives for less is in its parent's figures only. */
const EVERY = 10;
/** The kernel's clock ticks in a second, in which it tells CPU time; see proc(5). */
const TICKS = 100;
/** Processes in the table. */
const SHOWN = 25;

/** A process that `up` has started, itself or through others. */
interface Traced {
  pid: number;
  parent: number;
  command: string;
  /** Seconds since `up` was started. */
  start: number;
  end: number;
  /** Seconds of CPU time, without its children's. */
  cpu: number;
}

const command = join(root, "automation/cli.ts");
const env = { GVISOR_K3S_HOME: home };
const traced = new Map<number, Traced>();
const told: { at: number; line: string }[] = [];
let began = 0;
const now = () => (performance.now() - began) / 1000;
try {
  const before = new Set(readdirSync("/proc"));
  began = performance.now();
  const up = execa("node", [command, "up", name], { all: true, stdin: "ignore", env });
  let running = true;
  const looking = (async () => {
    for (; running; await sleep(EVERY)) look(before);
  })();
  try {
    for await (const line of up.iterable({ from: "all" })) told.push({ at: now(), line });
    await up;
  } finally {
    running = false;
    await looking;
  }
  const whole = now();
  mkdirSync(join(root, ".state"), { recursive: true });
  writeFileSync(picture, page(whole));
  console.log(await table(whole));
  console.log(`\n${picture} has all of it as a picture`);
} finally {
  await execa("node", [command, "destroy", name], { stdin: "ignore", env });
  rmSync(home, { recursive: true, force: true });
}

/** Notes the processes that there are and were not before. */
function look(before: ReadonlySet<string>): void {
  const at = now();
  for (const entry of readdirSync("/proc")) {
    if (before.has(entry) || !/^\d+$/.test(entry)) continue;
    const pid = Number(entry);
    const stat = statOf(pid);
    if (stat === undefined) continue; // it has just ended
    const process = traced.get(pid) ?? { pid, parent: Number(stat[1]), start: at, command: "" };
    // A process is another program once it has executed that.
    const command = argumentsOf(pid).join(" ").trim() || process.command;
    traced.set(pid, { ...process, command, end: at, cpu: cpuOf(stat) });
  }
}

/** Seconds of CPU time, of what the kernel tells of a process from field 3 on. */
function cpuOf(stat: readonly string[]): number {
  return (Number(stat[11]) + Number(stat[12])) / TICKS;
}

/** What a command line is about, in a few words. */
function title({ command }: Traced): string {
  const words = command.split(" ").map((word) => word.replace(/^.*\/(?=[^/]+$)/, ""));
  return words
    .filter((word) => !word.startsWith("--"))
    .slice(0, 4)
    .join(" ")
    .slice(0, 60);
}

/** The processes, each before those that it has started, in the order of their starts. */
function tree(): { process: Traced; depth: number }[] {
  const all = [...traced.values()].sort((one, other) => one.start - other.start);
  const below = (parent: number, depth: number): { process: Traced; depth: number }[] =>
    all
      .filter((process) => process.parent === parent)
      .flatMap((process) => [{ process, depth }, ...below(process.pid, depth + 1)]);
  const roots = all.filter(({ parent }) => !traced.has(parent));
  return roots.flatMap((process) => [{ process, depth: 0 }, ...below(process.pid, 1)]);
}

async function table(whole: number): Promise<string> {
  const all = [...traced.values()];
  const cpu = all.reduce((sum, process) => sum + process.cpu, 0);
  const row = (...cells: (string | number)[]) =>
    cells.map((cell) => (typeof cell === "number" ? cell.toFixed(2).padStart(7) : cell)).join("  ");
  const longest = all.sort((one, other) => other.cpu - one.cpu).slice(0, SHOWN);
  const inside = (await inSandbox()).map(({ comm, seconds }) => row(seconds, comm));
  return [
    ...told.map(({ at, line }) => `${at.toFixed(2).padStart(7)}  ${line}`),
    `\n${whole.toFixed(1)} s, ${cpu.toFixed(1)} s of CPU time on ${cpus().length} cores, ${all.length} processes`,
    "\n  start    life     CPU  process",
    ...longest.map((process) => row(process.start, process.end - process.start, process.cpu, title(process))),
    "\n    CPU  in the sandbox, as gVisor tells it",
    ...inside,
  ].join("\n");
}

/** The CPU time of what runs in the sandbox. */
async function inSandbox(): Promise<{ comm: string; seconds: number }[]> {
  const machine = openMachine({ kind: "managed", name, home });
  const { stdout } = await machine.exec(["/bin/sh", "-c", "cat /proc/[0-9]*/stat"]);
  const processes = stdout.split("\n").flatMap((line) => {
    const [, comm, rest] = /^\d+ \((.*)\) (.*)$/.exec(line) ?? [];
    return comm ? [{ comm, seconds: cpuOf(rest!.split(" ")) }] : [];
  });
  return processes.filter(({ seconds }) => seconds > 0).sort((one, other) => other.seconds - one.seconds);
}

/** The picture: a page that needs nothing else. */
function page(whole: number): string {
  const [second, height] = [60, 16];
  const processes = tree();
  const escaped = (text: string) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
  const bars = processes.map(({ process, depth }, index) => {
    const [x, y, life] = [process.start * second, (index + 2) * height, process.end - process.start];
    const busy = Math.min(process.cpu / Math.max(life, EVERY / 1000), 1);
    const figures = `${life.toFixed(2)} s, ${process.cpu.toFixed(2)} s of CPU time`;
    return (
      `<g><title>${escaped(`${figures}\n${process.command}`)}</title>` +
      `<rect x="${x}" y="${y}" width="${Math.max(life * second, 1)}" height="${height - 2}" ` +
      `fill="hsl(${Math.round(210 - busy * 200)} 70% 70%)"/>` +
      `<text x="${x + 2}" y="${y + 11}">${escaped(`${"· ".repeat(depth)}${title(process)}`)}</text></g>`
    );
  });
  const bottom = (processes.length + 3) * height;
  const lines = told.map(
    ({ at, line }) =>
      `<g><title>${escaped(line)}</title><line x1="${at * second}" x2="${at * second}" y1="0" y2="${bottom}"/></g>`,
  );
  const seconds = Array.from({ length: Math.ceil(whole) }, (_, at) => `<text x="${at * second}" y="12">${at} s</text>`);
  return (
    `<!doctype html><meta charset="utf-8"><title>up, ${whole.toFixed(1)} s</title>` +
    "<style>text{font:11px sans-serif}line{stroke:#c66;stroke-width:1}</style>" +
    `<svg width="${(whole + 5) * second}" height="${bottom}">${[...lines, ...seconds, ...bars].join("\n")}</svg>\n`
  );
}
