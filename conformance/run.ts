/**
 * `make conformance`: upstream's own conformance tests on a node of ours, as far as they fit one node. Their names,
 * results and reasons are in conformance/results.json, the table goes into conformance/README.md.
 *
 *   node conformance/run.ts [--groups services,dns | --groups all] [--procs 2] [--list]
 * @module
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { execa } from "execa";
import { artifactFolder, goArch } from "../artifacts/artifacts.ts";
import { openStack } from "../automation/workspace.ts";
import { linkAddresses } from "../config/network.ts";
import { defaultSubnet } from "../config/schema.ts";
import { markdown, putTable } from "../docs/markdown.ts";
import { hostPaths } from "../machines/paths.ts";
import { homeFolder } from "../system/folders.ts";
import { pushArchive, startRegistry, stopRegistries } from "../test/e2e/registry.ts";
import { moduleVersion } from "../toolchain/builds.ts";
import { build } from "../toolchain/make.ts";
import { groupNames, groupOf, groupsOf, usualGroups } from "./groups.ts";
import { makeImages } from "./images.ts";

/** What is not tried, and why. */
const leftOut: { match: RegExp; reason: string }[] = [
  {
    match: /should have at least two untainted nodes|Daemon set should rollback without unnecessary restarts/,
    reason: "needs two nodes",
  },
];

/** Tests that fail, and what gVisor lacks for them. */
const known: { match: RegExp; reason: string }[] = [];

/** What ginkgo reports of a test. */
interface Spec {
  ContainerHierarchyTexts?: string[] | null;
  ContainerHierarchyLabels?: (string[] | null)[] | null;
  LeafNodeType: string;
  LeafNodeText: string;
  LeafNodeLabels?: string[] | null;
  State: string;
  /** Nanoseconds. */
  RunTime: number;
  Failure?: { Message: string };
}
interface Result {
  group: string;
  name: string;
  state: "passed" | "failed" | "skipped";
  seconds?: number;
  reason?: string;
}

const began = Date.now();
const say = (line: string) => console.log(`[${((Date.now() - began) / 1000).toFixed(0)} s] ${line}`);
const { values: options } = parseArgs({
  options: {
    groups: { type: "string" },
    procs: { type: "string", default: "2" },
    list: { type: "boolean", default: false },
  },
});
const chosenGroups = groupsOf(options.groups);
const work = mkdtempSync(join(tmpdir(), "gvisor-k3s-conformance-"));
const stackName = "conform";
const registryPort = 5000;
process.env.GVISOR_K3S_HOME = join(work, "home");
await build({ name: "conformance" }, say);
await build({ name: "registry" }, say);
const programs = artifactFolder({ name: "conformance" });
const version = moduleVersion("toolchain/conformance", "k8s.io/kubernetes");

let failed = false;
try {
  const all = await conformanceTests();
  const chosen = all.filter((spec) => chosenGroups.includes(groupOf(nameOf(spec))));
  if (options.list) list(all);
  else failed = report(await inCluster(() => runTests(chosen.filter((spec) => !reasonFor(leftOut, spec)))), chosen);
} finally {
  rmSync(work, { recursive: true, force: true });
}
process.exitCode = failed ? 1 : 0;

function textOf(spec: Spec): string {
  return [...(spec.ContainerHierarchyTexts ?? []), spec.LeafNodeText].join(" ");
}

/** A test's name on one line: some have line breaks in them. */
function nameOf(spec: Spec): string {
  return textOf(spec).replace(/\s+/g, " ");
}

function labelsOf(spec: Spec): string[] {
  return [...(spec.ContainerHierarchyLabels ?? []).flatMap((labels) => labels ?? []), ...(spec.LeafNodeLabels ?? [])];
}

function reasonFor(table: { match: RegExp; reason: string }[], spec: Spec): string | undefined {
  return table.find(({ match }) => match.test(nameOf(spec)))?.reason;
}

function specsIn(file: string): Spec[] {
  return (JSON.parse(readFileSync(file, "utf8")) as { SpecReports: Spec[] }[])[0]!.SpecReports;
}

/** Every conformance test that the program knows; nothing is run. */
async function conformanceTests(): Promise<Spec[]> {
  const file = join(work, "tests.json");
  await execa(join(programs, "e2e.test"), [
    "--ginkgo.dry-run",
    "--ginkgo.label-filter=Conformance",
    `--ginkgo.json-report=${file}`,
  ]);
  return specsIn(file).filter((spec) => spec.LeafNodeType === "It" && labelsOf(spec).includes("Conformance"));
}

function list(all: Spec[]): void {
  for (const group of groupNames) {
    const specs = all.filter((spec) => groupOf(nameOf(spec)) === group);
    console.log(
      `${group}: ${specs.length} tests, ${specs.filter((spec) => !reasonFor(leftOut, spec)).length} ` +
        `tried${usualGroups.includes(group) ? ", usually" : ""}`,
    );
  }
}

/**
 * Brings up a node with the tests' images, and removes it when the tests are done. The images are in a registry too,
 * for those who always pull.
 */
async function inCluster<T>(use: () => Promise<T>): Promise<T> {
  const folder = join(work, "images");
  mkdirSync(folder);
  const images = await makeImages(folder, say);
  const registry = `${linkAddresses(defaultSubnet(stackName)).host}:${registryPort}`;
  const stack = await openStack(stackName, say);
  await stack.setAllConfig({
    images: { value: JSON.stringify([...images.values()]) },
    pod: { value: JSON.stringify({ enabled: false }) },
    sandbox: { value: JSON.stringify({ hostPorts: [registryPort] }) },
    registries: { value: JSON.stringify({ mirrors: { "registry.k8s.io": { endpoint: [`http://${registry}`] } } }) },
  });
  try {
    say("up");
    await stack.up();
    say(`the registry, at ${registry}`);
    await startRegistry(join(work, "registry"), registry); // its address is there only once the sandbox is
    for (const [name, archive] of images) {
      const [repository, tag] = name.replace("registry.k8s.io/", "").split(":") as [string, string];
      await pushArchive(work, registry, repository, archive, tag);
    }
    return await use();
  } finally {
    say("destroy");
    await stopRegistries();
    await stack.destroy();
  }
}

/**
 * Runs exactly these tests, several at a time, and those that must be alone at the end. What fails is in the report.
 */
async function runTests(specs: Spec[]): Promise<Spec[]> {
  say(`${specs.length} tests`);
  const kubectl = join(work, "kubectl");
  writeFileSync(
    kubectl,
    `#!/bin/sh\nexec ${join(artifactFolder({ name: "server" }), "gvisor-k3s-node")} kubectl "$@"\n`,
    { mode: 0o755 },
  );
  const focus = `(?:${specs.map((spec) => textOf(spec).replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|")})$`;
  const ginkgo = [
    "run",
    `--procs=${options.procs}`,
    "--label-filter=Conformance",
    `--focus=${focus}`,
    "--timeout=12h",
    "--no-color",
    "--silence-skips",
    "--json-report=ginkgo.json",
    `--output-dir=${work}`,
  ];
  const framework = [
    `--kubeconfig=${hostPaths(stackName, homeFolder()).kubeconfig}`,
    `--kubectl-path=${kubectl}`,
    "--provider=skeleton",
    "--num-nodes=1",
    "--dns-domain=cluster.local",
    `--node-os-arch=${goArch()}`,
    "--node-schedulable-timeout=1m",
    "--system-pods-startup-timeout=2m",
    "--disable-log-dump",
    "--dump-logs-on-failure=false",
  ];
  await execa(join(programs, "ginkgo"), [...ginkgo, join(programs, "e2e.test"), "--", ...framework], {
    cwd: work,
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
    reject: false,
    buffer: false,
  });
  return specsIn(join(work, "ginkgo.json"));
}

/**
 * Prints the results and, of a run of the usual groups or of all, keeps them; returns whether anything failed that is
 * not known to.
 */
function report(ran: Spec[], chosen: Spec[]): boolean {
  const results = chosen.map(resultOf(ran));
  const table = tableOf(results);
  console.log(`\n${table}`);
  if (options.groups === undefined || options.groups === "all") {
    const readme = join(import.meta.dirname, "README.md");
    const about = {
      date: new Date().toISOString().slice(0, 10),
      minutes: Math.round((Date.now() - began) / 60_000),
      kubernetes: version,
      gvisor: moduleVersion("toolchain/runsc", "gvisor.dev/gvisor"),
    };
    writeFileSync(join(import.meta.dirname, "results.json"), `${JSON.stringify({ ...about, results }, null, 2)}\n`);
    writeFileSync(
      readme,
      putTable(
        readFileSync(readme, "utf8"),
        "results",
        `${about.date}, ${about.minutes} minutes; Kubernetes ${about.kubernetes}, gVisor ${about.gvisor}.\n\n${table}`,
      ),
    );
  }
  return results.some(({ state }, index) => state === "failed" && !reasonFor(known, chosen[index]!));
}

function resultOf(ran: Spec[]): (spec: Spec) => Result {
  const byName = new Map(ran.map((spec) => [nameOf(spec), spec]));
  const before = ran.find((spec) => spec.LeafNodeType.includes("BeforeSuite") && spec.Failure);
  const firstLine = (text?: string) =>
    text
      ?.split("\n")
      .map((line) => line.trim())
      .find((line) => line !== "")
      ?.slice(0, 300);
  return (spec) => {
    const [own, common] = [byName.get(nameOf(spec)), { group: groupOf(nameOf(spec)), name: nameOf(spec) }];
    const notTried = reasonFor(leftOut, spec);
    if (notTried !== undefined) return { ...common, state: "skipped", reason: notTried };
    const seconds = Math.round((own?.RunTime ?? 0) / 1e8) / 10;
    if (own?.State === "passed") return { ...common, state: "passed", seconds };
    if (own?.State === "skipped" && own.Failure)
      return { ...common, state: "skipped", reason: firstLine(own.Failure.Message)! };
    const reason =
      reasonFor(known, spec) ??
      firstLine(own?.Failure?.Message) ??
      `did not run: ${firstLine(before?.Failure?.Message) ?? "the run ended early"}`;
    return { ...common, state: "failed", seconds, reason };
  };
}

function tableOf(results: Result[]): string {
  const states = ["passed", "failed", "skipped"] as const;
  const row = (title: string, of: Result[]) => [
    title,
    ...states.map((state) => String(of.filter((one) => one.state === state).length)),
  ];
  const rows = groupNames
    .map((group) =>
      row(
        group,
        results.filter((one) => one.group === group),
      ),
    )
    .filter(([, ...counts]) => counts.some((count) => count !== "0"));
  const reasons = (["failed", "skipped"] as const).flatMap((state) => {
    const of = results.filter((one) => one.state === state);
    return of.length > 0 ? ["", `${state}:`, "", ...of.map(({ name, reason }) => `- ${name}: ${reason}`)] : [];
  });
  return [markdown(["Group", ...states], [...rows, row("**all**", results)], true), ...reasons].join("\n");
}
