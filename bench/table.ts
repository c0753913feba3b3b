/** The table in bench/README.md: `node bench/table.ts` writes it anew from bench/results.json. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { markdown, putTable } from "../docs/markdown.ts";
import type { Results, Run, Side, SnapshotRun } from "./results.ts";

/** The README with the table in its place. */
export function withTable(text: string, results: Results): string {
  return putTable(text, "figures", figures(results));
}

/** What is to be reached: at most this in gVisor, at most this many times the native figure. */
interface Target {
  inGvisor?: number;
  ratio?: number;
}

/** What a reader of the project's README wants to know of {@link figures}. */
export function summary(): string {
  const { date, machine, runs } = readResults();
  const row = (label: string, unit: Unit, figure: (run: Run) => number[]) => {
    const [inGvisor, natively] = (["gvisor", "native"] as const).map((side) =>
      median(runs.filter((run) => run.side === side).flatMap(figure)),
    ) as [number, number];
    return [
      label,
      ...[inGvisor, natively].map((value) => `${shown(value, unit)} ${unit}`),
      ratioOf(inGvisor, natively),
    ];
  };
  return markdown(
    [`${date.slice(0, 10)}, ${machine.cores} cores`, "gVisor", "native", "ratio"],
    [
      row("nothing → pod Running", "s", ({ stages }) => [stages["pod Running"]!]),
      row("a further pod", "s", ({ pods = [] }) => percentile(pods, 0.5)),
      row("memory with one pod", "MB", ({ memory }) => [memory.used]),
      row("`up` with nothing to do", "s", ({ unchangedUp }) => unchangedUp),
    ],
    true,
  );
}

/** What people who choose between clusters for development compare; the others' figures are minikube's own (see docs/peers.md). */
export function besidePeers(): string {
  const { date, runs, controlPlanes, snapshots } = readResults();
  const inGvisor = runs.filter(({ side }) => side === "gvisor");
  const seconds = (values: number[]) => `${shown(median(values), "s")} s`;
  const of = (mode: SnapshotRun["mode"], figure: (run: SnapshotRun) => number) =>
    seconds(snapshots.filter((run) => run.mode === mode).map(figure));
  const [newest] = controlPlanes.map(({ generation }) => generation);
  const planes = controlPlanes.filter(({ generation }) => generation === newest);
  return markdown(
    ["expected", "kind", "k3d", "minikube", `here (${date.slice(0, 10)})`],
    [
      [
        "app running, with DNS and all system pods (minikube's benchmark)",
        "33 s",
        "20 s",
        "51 s",
        `${seconds(inGvisor.map(({ up }) => up))}, with metrics-server; of it until the pod runs ` +
          seconds(inGvisor.map(({ stages }) => stages["pod Running"]!)),
      ],
      ["API server alone", "", "", "", seconds(planes.map(({ apiReady }) => apiReady))],
      ["LoadBalancer; host ports of pods", "add-on; yes", "yes", "yes", "yes ([services](compatibility.md))"],
      ["Ingress", "add-on", "yes", "add-on", "by the option `addons.ingress`"],
      ["network policies enforced", "yes", "yes", "by CNI", "yes ([conformance](../conformance/README.md))"],
      ["a pod over its memory limit is killed", "yes", "yes", "yes", "yes"],
      ["several versions of Kubernetes", "yes", "yes", "yes", "three (`kubernetes`), and k3s' releases"],
      ["several nodes", "yes", "yes", "yes", "yes, on one host and over SSH (`nodes`)"],
      ["pause, resume", "no, stop", "stop, start", "yes", "yes"],
      [
        "snapshot; restore; fork of a cluster",
        "no",
        "no (asked since 2020)",
        "no",
        `control plane: ${of("control-plane", ({ save }) => save)}; ${of("control-plane", ({ restore }) => restore)}; ` +
          `${of("control-plane", ({ fork }) => fork)}. With a node: ${of("node", ({ save }) => save)}; ` +
          `${of("node", ({ pods }) => pods!)} until its pod runs; ${of("node", ({ fork }) => fork)}`,
      ],
      ["typed code, preview by lines, drift, upgrade in place that goes back", "no", "no", "no", "yes"],
      ["no Docker, no host kernel", "no", "no", "no", "yes"],
    ],
  );
}

function ratioOf(inGvisor: number, natively: number): string {
  return (inGvisor / natively).toFixed(2);
}

/** What the bench has measured last. */
export function readResults(): Results {
  return JSON.parse(readFileSync(join(import.meta.dirname, "results.json"), "utf8")) as Results;
}

function figures({ date, seconds, machine, versions, method, runs, controlPlanes, snapshots, gogc }: Results): string {
  const of = (side: Side, figure: (run: Run) => number[]) => runs.filter((run) => run.side === side).flatMap(figure);
  const row = (label: string, unit: Unit, figure: (run: Run) => number[], target: Target = {}) => {
    const [inGvisor, natively] = [of("gvisor", figure), of("native", figure)];
    const ratio = median(inGvisor) / median(natively);
    const reached = [
      ...(target.inGvisor
        ? [`≤ ${shown(target.inGvisor, unit)} ${unit}: ${verdict(median(inGvisor), target.inGvisor)}`]
        : []),
      ...(target.ratio ? [`ratio ≤ ${target.ratio}: ${verdict(ratio, target.ratio)}`] : []),
    ];
    return [
      label,
      spread(inGvisor, unit),
      spread(natively, unit),
      ratioOf(median(inGvisor), median(natively)),
      reached.join("; "),
    ];
  };
  const stageRows = Object.keys(runs[0]!.stages).map((stage) =>
    row(
      `empty → ${stage}`,
      "s",
      ({ stages }) => [stages[stage]!],
      stage === "pod Running" ? { inGvisor: 9, ratio: 1.3 } : {},
    ),
  );
  const podRows = Array.from({ length: method.pods / 10 }, (_, ten) =>
    row(`pods ${ten * 10 + 1} to ${ten * 10 + 10}: p50`, "s", ({ pods = [] }) =>
      percentile(pods.slice(ten * 10, ten * 10 + 10), 0.5),
    ),
  );
  const rows = [
    ...stageRows,
    row("of it: server starts → API ready", "s", ({ stages }) => [stages["API ready"]! - stages["server starts"]!]),
    row("the whole `up`", "s", ({ up }) => [up], { inGvisor: 13 }),
    row("the node's CPU time until its end", "s", ({ cpuSeconds }) => [cpuSeconds], { inGvisor: 12 }),
    row("CPUs in use when idle", "CPU", ({ idleCpu }) => [idleCpu], { inGvisor: 0.05 }),
    row("memory with one pod", "MB", ({ memory }) => [memory.used], { inGvisor: 300e6 }),
    row("the same with the file cache", "MB", ({ memory }) => [memory.usage]),
    row(`memory with ${method.pods} pods more`, "MB", ({ memoryWithPods }) =>
      memoryWithPods ? [memoryWithPods.used] : [],
    ),
    row(`pod start, p50 of ${method.pods}`, "s", ({ pods = [] }) => percentile(pods, 0.5), { inGvisor: 0.8 }),
    row(`pod start, p95 of ${method.pods}`, "s", ({ pods = [] }) => percentile(pods, 0.95)),
    ...podRows,
    row("`up` with nothing to do", "s", ({ unchangedUp }) => unchangedUp, { inGvisor: 2 }),
    row("`preview`", "s", ({ preview }) => preview, { inGvisor: 1.8 }),
  ];
  const generations = [...new Set(controlPlanes.map(({ generation }) => generation))];
  const controlPlaneRows = generations.map((generation) => {
    const same = controlPlanes.filter((run) => run.generation === generation);
    const [apiReady, memory] = [same.map((run) => run.apiReady), same.map((run) => run.memory.used)];
    return [
      generation,
      spread(apiReady, "s"),
      spread(
        same.map(({ ready }) => ready),
        "s",
      ),
      spread(memory, "MB"),
      `API ≤ 4 s: ${verdict(median(apiReady), 4)}; memory ≤ 180 MB: ${verdict(median(memory), 180e6)}`,
    ];
  });
  const gogcRows = [...new Set(gogc.map(({ gogc }) => gogc))].map((value) => {
    const same = gogc.filter((run) => run.gogc === value);
    return [
      String(value),
      spread(
        same.map(({ memory }) => memory.used),
        "MB",
      ),
      spread(
        same.map(({ cpuSeconds }) => cpuSeconds),
        "s",
      ),
      spread(
        same.map(({ ready }) => ready),
        "s",
      ),
    ];
  });
  return [
    `${date.slice(0, 10)}, ${Math.round(seconds / 60)} minutes on ${machine.cpu}, ${machine.cores} ` +
      `cores, ${machine.memoryGiB} GiB; ${machine.system}, Linux ${machine.kernel}; its load before ` +
      `was ${machine.load.toFixed(1)}.`,
    `${Object.entries(versions)
      .map(([name, version]) => `${name} ${version}`)
      .join(", ")}.`,
    `Median, and (least–most) of ${of("gvisor", () => [1]).length} bring-ups on each side; pods in ` +
      `${of("gvisor", ({ pods }) => (pods ? [1] : [])).length} of them.`,
    "",
    markdown(["", "gVisor", "native", "ratio", "to reach"], rows, true),
    "",
    `A control plane alone (\`mode: control-plane\`), in ` +
      `${controlPlanes.length / generations.length} bring-ups on each generation of gVisor:`,
    "",
    markdown(
      ["gVisor", "empty → API ready", "empty → default service account", "memory", "to reach"],
      controlPlaneRows,
      true,
    ),
    "",
    "Snapshots and forks; each command as a whole, a restore until the API answers:",
    "",
    markdown(["", "control plane", "node with one pod"], snapshotRows(snapshots), true),
    "",
    "The server with another GOGC, in gVisor, after a restart; CPU time from the restart to the reading:",
    "",
    markdown(["GOGC", "memory", "CPU time", "restart → node Ready"], gogcRows, true),
  ].join("\n");
}

function snapshotRows(runs: SnapshotRun[]): string[][] {
  const row = (label: string, unit: Unit, figure: (run: SnapshotRun) => number | undefined, targets: number[] = []) => [
    label,
    ...(["control-plane", "node"] as const).map((mode, i) => {
      const values = runs.filter((run) => run.mode === mode).flatMap((run) => figure(run) ?? []);
      if (values.length === 0) return "";
      const target = targets[i];
      const reached = target ? `; ≤ ${shown(target, unit)} ${unit}: ${verdict(median(values), target)}` : "";
      return `${spread(values, unit)}${reached}`;
    }),
  ];
  return [
    row("`snapshot save`", "s", ({ save }) => save, [0.5, 3]),
    row("of it: nothing runs", "s", ({ frozen }) => frozen),
    row("what is kept", "MB", ({ size }) => size),
    row("`snapshot restore`", "s", ({ restore }) => restore, [1]),
    row("restore → the pod runs again", "s", ({ pods }) => pods, [0, 5]),
    row("`fork`", "s", ({ fork }) => fork),
  ];
}

function verdict(value: number, limit: number): string {
  return value <= limit ? "yes" : "**no**";
}

type Unit = "s" | "MB" | "CPU";

function shown(value: number, unit: Unit): string {
  return { s: () => value.toFixed(value < 2 ? 2 : 1), MB: () => (value / 1e6).toFixed(0), CPU: () => value.toFixed(2) }[
    unit
  ]();
}

function spread(values: number[], unit: Unit): string {
  const middle = `${shown(median(values), unit)} ${unit}`;
  return values.length < 2
    ? middle
    : `${middle} (${shown(Math.min(...values), unit)}–${shown(Math.max(...values), unit)})`;
}

/** The middle of a list, or of its two middle ones. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)]! + sorted[Math.ceil((sorted.length - 1) / 2)]!) / 2;
}

/** A percentile by the nearest rank, as a list of one; none of nothing. */
export function percentile(values: number[], share: number): number[] {
  return values.length === 0 ? [] : [values.toSorted((a, b) => a - b)[Math.ceil(values.length * share) - 1]!];
}

if (import.meta.main) {
  const readme = join(import.meta.dirname, "README.md");
  writeFileSync(readme, withTable(readFileSync(readme, "utf8"), readResults()));
}
