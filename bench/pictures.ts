/**
 * The pictures in bench/README.md, drawn from what the bench has measured: `node bench/pictures.ts` draws them anew.
 * @module
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as Plot from "@observablehq/plot";
import { parseHTML } from "linkedom";
import { history } from "./history.ts";
import { median, percentile, readResults } from "./table.ts";

const folder = join(import.meta.dirname, "pictures");

/** The pictures by their files' names. */
export function pictures(): Record<string, string> {
  return { "bring-up.svg": bringUp(), "history.svg": past(), "growth.svg": growth() };
}

/** Draws all of them. */
export function writePictures(): void {
  for (const [file, picture] of Object.entries(pictures())) writeFileSync(join(folder, file), picture);
}

/** When a bring-up was how far, on both sides. */
function bringUp(): string {
  const { runs } = readResults();
  const points = (["gvisor", "native"] as const).flatMap((side) => {
    const same = runs.filter((run) => run.side === side);
    const of = (seconds: number[], stage: string) => ({ side, stage, seconds: median(seconds) });
    return [
      ...Object.keys(same[0]!.stages).map((stage) =>
        of(
          same.map(({ stages }) => stages[stage]!),
          stage,
        ),
      ),
      of(
        same.map(({ up }) => up),
        "the whole up",
      ),
    ];
  });
  const stages = [...new Set(points.map(({ stage }) => stage))];
  return drawn({
    height: 280,
    marginLeft: 150,
    marginRight: 60,
    x: { label: "seconds since the start of up", grid: true, zero: true },
    y: { label: null, domain: stages },
    color: { legend: false, domain: ["gvisor", "native"], range: ["#d1495b", "#30638e"] },
    marks: [
      Plot.line(points, { x: "seconds", y: "stage", stroke: "side" }),
      Plot.dot(points, { x: "seconds", y: "stage", fill: "side", r: 4 }),
      Plot.text(
        points.filter(({ stage }) => stage === "the whole up"),
        { x: "seconds", y: "stage", text: "side", fill: "side", dx: 8, textAnchor: "start" },
      ),
    ],
  });
}

/** The runs of the bench, one after another: each figure as a share of its highest. */
function past(): string {
  const all = history();
  const figures = {
    "pod Running": all.map(({ podRunning }) => podRunning),
    "whole up": all.map(({ up }) => up),
    "CPU time": all.map(({ cpuSeconds }) => cpuSeconds),
    "further pod": all.map(({ podStart }) => podStart),
    memory: all.map(({ memory }) => memory),
    "idle CPU": all.map(({ idleCpu }) => idleCpu),
  };
  const points = Object.entries(figures).flatMap(([figure, values]) =>
    values.map((value, i) => ({
      figure,
      run: `${i + 1}: ${all[i]!.date.slice(5, 10)}`,
      share: value / Math.max(...values),
    })),
  );
  return drawn({
    height: 420,
    marginLeft: 80,
    x: { label: "run of the bench", domain: points.slice(0, all.length).map(({ run }) => run) },
    y: { label: "share of the highest", domain: [0, 1], ticks: [0, 1], grid: true },
    fy: { label: null },
    facet: { data: points, y: "figure", marginRight: 90 },
    marks: [
      Plot.line(points, { x: "run", y: "share", stroke: "#30638e" }),
      Plot.dot(points, { x: "run", y: "share", fill: "#30638e", r: 3 }),
    ],
  });
}

/** A node with more and more pods. */
function growth(): string {
  type Step = { pods: number; starts: number[]; memory: number; idleCpu: number };
  const text = readFileSync(join(import.meta.dirname, "growth.json"), "utf8");
  const { steps } = JSON.parse(text) as { steps: Step[] };
  const points = steps.flatMap(({ pods, starts, memory }) => [
    { pods, figure: "pod start, seconds (p50)", value: percentile(starts, 0.5)[0]! },
    { pods, figure: "memory, GB", value: memory / 1e9 },
  ]);
  return drawn({
    height: 260,
    x: { label: "pods, each with a Service", grid: true },
    y: { label: null, zero: true, grid: true },
    color: { range: ["#d1495b", "#30638e"] },
    marks: [
      Plot.line(points, { x: "pods", y: "value", stroke: "figure" }),
      Plot.dot(points, { x: "pods", y: "value", fill: "figure", r: 4 }),
      Plot.text(
        points.filter(({ pods }) => pods === steps.at(-1)!.pods),
        { x: "pods", y: "value", text: "figure", fill: "figure", dy: -10, textAnchor: "end" },
      ),
    ],
  });
}

function drawn(options: Plot.PlotOptions): string {
  const { document } = parseHTML("<html></html>");
  const svg = Plot.plot({
    document: document as unknown as NonNullable<Plot.PlotOptions["document"]>,
    width: 720,
    ...options,
  });
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  svg.setAttribute("style", "background: white; color: black; padding: 8px");
  return `${svg.outerHTML}\n`;
}

if (import.meta.main) writePictures();
