/**
 * What the conformance tests made of a node, kept in a file for each server, and the table of all of them.
 * @module
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { olderKubernetes } from "../config/kubernetes.ts";
import { markdown } from "../docs/markdown.ts";
import { groupNames } from "./groups.ts";

/** What became of a test. */
export interface Result {
  group: string;
  name: string;
  state: "passed" | "failed" | "skipped";
  seconds?: number;
  reason?: string;
}

/** A run of the tests. */
export interface Run {
  /** What the node's server is: one of {@link SERVERS}. */
  server: string;
  date: string;
  /** Of the whole run, with the images and the node. */
  minutes: number;
  /** How many tests ran at a time. */
  procs: number;
  /** The server's version. */
  kubernetes: string;
  gvisor: string;
  /** The runs of the groups that were run apart from the others since, by their names. */
  apart?: Record<string, Omit<Run, "results" | "apart">>;
  results: Result[];
}

/** What is built in, of the newest Kubernetes, on one node and on two, and of each that is older, and k3s, on one and two. */
const SERVERS = [
  "embedded",
  "embedded, 2 nodes",
  ...olderKubernetes.map((minor) => `embedded ${minor}`),
  "k3s",
  "k3s, 2 nodes",
];

/** What a node's server is called here. */
export function serverName({ k3s, kubernetes, nodes }: { k3s?: string; kubernetes?: string; nodes: number }): string {
  const server = k3s !== undefined ? "k3s" : kubernetes === undefined ? "embedded" : `embedded ${kubernetes}`;
  return nodes === 1 ? server : `${server}, ${nodes} nodes`;
}

function fileOf(server: string): string {
  const which = server.replace(/^embedded,? ?/, "").replaceAll(/,? /g, "-");
  return join(import.meta.dirname, which === "" ? "results.json" : `results-${which}.json`);
}

/** Keeps a run in place of the last one of that server, or of one group in place of what the last one has of that. */
export function keep(run: Run, groups: string): void {
  const file = fileOf(run.server);
  let kept = run;
  if (groups !== "all" && existsSync(file)) {
    const before = JSON.parse(readFileSync(file, "utf8")) as Run;
    const { results, ...about } = run;
    const others = before.results.filter(({ group }) => group !== groups);
    kept = { ...before, apart: { ...before.apart, [groups]: about }, results: [...results, ...others] };
  }
  writeFileSync(file, `${JSON.stringify(kept, null, 2)}\n`);
}

/** The runs that are kept. */
export function keptRuns(): Run[] {
  return SERVERS.map(fileOf)
    .filter((file) => existsSync(file))
    .map((file) => JSON.parse(readFileSync(file, "utf8")) as Run);
}

/** As many tests are named that did not pass for the same reason; of more the number is told. */
const MOST = 5;

const states = ["passed", "failed", "skipped"] as const;

/** How long the tests took that ran when no other one did. */
function minutesAlone({ results }: Run): number {
  const alone = results.filter(({ name }) => name.includes("[Serial]"));
  return Math.round(alone.reduce((sum, { seconds = 0 }) => sum + seconds, 0) / 60);
}

/** The tests of each group counted by what became of them, and the reasons of those that did not pass. */
export function tableOf(runs: readonly Run[]): string {
  const count = (run: Run, of: (result: Result) => boolean) =>
    states.map((state) => run.results.filter((result) => result.state === state && of(result)).length).join(" / ");
  const row = (name: string, of: (result: Result) => boolean) => [name, ...runs.map((run) => count(run, of))];
  const groups = groupNames.filter((group) => runs.some(({ results }) => results.some((one) => one.group === group)));
  const rows = groups.map((group) => row(group, (result) => result.group === group));
  const about = (run: Omit<Run, "results">) => `${run.date}, ${run.minutes} minutes, ${run.procs} tests at a time`;
  const parts = (run: Omit<Run, "results">) => `Kubernetes ${run.kubernetes}, gVisor ${run.gvisor}`;
  const titles = runs.flatMap((run) => [
    `- ${run.server}: ${about(run)} and those that must be alone in ${minutesAlone(run)} of them; ${parts(run)}`,
    ...Object.entries(run.apart ?? {}).map(([group, one]) => `- ${one.server}, ${group}: ${about(one)}; ${parts(one)}`),
  ]);
  const reasons = runs.flatMap(({ server, results }) =>
    (["failed", "skipped"] as const).flatMap((state) => {
      const of = results.filter((one) => one.state === state);
      const lines = Object.entries(Object.groupBy(of, ({ reason = "" }) => reason)).flatMap(([reason, same = []]) =>
        same.length > MOST ? [`- ${same.length} tests: ${reason}`] : same.map(({ name }) => `- ${name}: ${reason}`),
      );
      return lines.length > 0 ? ["", `${server}, ${state}:`, "", ...lines] : [];
    }),
  );
  const head = ["Group: passed / failed / skipped", ...runs.map(({ server }) => server)];
  const table = markdown(head, [...rows, row("**all**", () => true)], true);
  return [...titles, "", table, ...reasons].join("\n");
}
