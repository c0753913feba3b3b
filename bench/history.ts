/** One line for each run of the bench, so that a step back is seen: bench/history.json. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Results, Run } from "./results.ts";
import { median, percentile } from "./table.ts";

const file = join(import.meta.dirname, "history.json");

/** The medians of a run, in gVisor, with addons as they were by default. */
export interface Past {
  /** ISO 8601. */
  date: string;
  /** The rest of the machine's load before it. */
  load: number;
  /** Seconds from nothing until the pod ran, and of the whole `up`. */
  podRunning: number;
  up: number;
  /** Seconds of CPU time of the node until the end of `up`. */
  cpuSeconds: number;
  /** Seconds of a further pod, half of them. */
  podStart: number;
  /** Bytes with one pod. */
  memory: number;
  /** CPUs in use when idle. */
  idleCpu: number;
}

/** What is kept of a run. */
export function pastOf({ date, machine, runs }: Pick<Results, "date" | "machine" | "runs">): Past {
  const inGvisor = runs.filter(({ side }) => side === "gvisor");
  const middle = (figure: (run: Run) => number[]) => Number(median(inGvisor.flatMap(figure)).toPrecision(4));
  return {
    date,
    load: Number(machine.load.toFixed(1)),
    podRunning: middle(({ stages }) => [stages["pod Running"]!]),
    up: middle(({ up }) => [up]),
    cpuSeconds: middle(({ cpuSeconds }) => [cpuSeconds]),
    podStart: middle(({ pods = [] }) => percentile(pods, 0.5)),
    memory: middle(({ memory }) => [memory.used]),
    idleCpu: middle(({ idleCpu }) => [idleCpu]),
  };
}

/** All runs that are kept, the oldest first. */
export const history = (): Past[] => JSON.parse(readFileSync(file, "utf8")) as Past[];

/** Keeps a run. */
export function remember(results: Results): void {
  const lines = [...history(), pastOf(results)].map((past) => JSON.stringify(past));
  writeFileSync(file, `[\n${lines.join(",\n")}\n]\n`);
}
