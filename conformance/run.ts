/**
 * `make conformance`: upstream's own conformance tests on a node of ours, as far as they fit one node. Of a run of all,
 * names, results and reasons are kept in conformance/results.json (of k3s and of an older Kubernetes, in results-*.json),
 * and the table in conformance/README.md; of one of the network policies these. Of all on two nodes there is, too, what the
 * CNCF's programme takes.
 *
 *   node conformance/run.ts [--groups services,dns | --groups all] [--procs 4] [--nodes 2]
 *     [--k3s FILE | --kubernetes 1.36] [--list]
 * @module
 */
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { execa } from "execa";
import { artifactFolder, goArch } from "../artifacts/artifacts.ts";
import { openStack } from "../automation/workspace.ts";
import { linkAddresses } from "../config/network.ts";
import { joiningNodes } from "../config/nodes.ts";
import { parseStackConfig } from "../config/schema.ts";
import { withTable } from "../docs/tables.ts";
import { hostPaths } from "../machines/paths.ts";
import { homeFolder } from "../system/folders.ts";
import { pushArchive, startRegistry, stopRegistries } from "../test/e2e/registry.ts";
import { moduleVersion, root } from "../toolchain/builds.ts";
import { build } from "../toolchain/make.ts";
import { type Reports, writeSubmission } from "./cncf.ts";
import { groupNames, groupOf, groupsOf, labels, NETWORK_POLICIES, usualGroups } from "./groups.ts";
import { kubernetesSources, makeImages } from "./images.ts";
import { keep, type Result, type Run, serverName, tableOf } from "./results.ts";
import { reasonOf, releasesOf } from "./skipped.ts";

/** What ginkgo reports of a test. */
interface Spec {
  ContainerHierarchyTexts?: string[] | null;
  LeafNodeType: string;
  LeafNodeText: string;
  State: string;
  /** Nanoseconds. */
  RunTime: number;
  Failure?: { Message: string };
}
const began = Date.now();
const say = (line: string) => console.log(`[${((Date.now() - began) / 1000).toFixed(0)} s] ${line}`);
const { values: options } = parseArgs({
  options: {
    groups: { type: "string" },
    procs: { type: "string", default: "4" },
    nodes: { type: "string", default: "1" },
    k3s: { type: "string" },
    kubernetes: { type: "string" },
    list: { type: "boolean", default: false },
  },
});
const chosenGroups = groupsOf(options.groups);
const nodes = Number(options.nodes);
if (!(nodes >= 1 && nodes <= 20)) throw new Error(`--nodes ${options.nodes}: 1 to 20 is allowed`);
const work = mkdtempSync(join(tmpdir(), "gvisor-k3s-conformance-"));
const stackName = "conform";
const registryPort = 5000;
const reports: Reports = { log: join(work, "e2e.log"), junit: join(work, "junit_01.xml") };
process.env.GVISOR_K3S_HOME = join(work, "home");
await build({ name: "conformance" }, say);
await build({ name: "registry" }, say);
const programs = artifactFolder({ name: "conformance" });
const releases = releasesOf(
  readFileSync(join(await kubernetesSources(), "test/conformance/testdata/conformance.yaml"), "utf8"),
);
const kubeconfig = hostPaths(stackName, homeFolder()).kubeconfig;
const kubectl = join(work, "kubectl");
const node = join(artifactFolder({ name: "server" }), "gvisor-k3s-node");
writeFileSync(kubectl, `#!/bin/sh\nexec ${node} kubectl "$@"\n`, { mode: 0o755 });

const interruption = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.once(signal, () => interruption.abort(new Error(`ended by ${signal}`)));

try {
  const all = await conformanceTests();
  const chosen = all.filter((spec) => chosenGroups.includes(groupOf(nameOf(spec))));
  if (options.list) list(all);
  else if (report(await inCluster((tried) => runTests(chosen.filter(tried))), chosen)) process.exitCode = 1;
} finally {
  rmSync(work, { recursive: true, force: true });
}

function textOf(spec: Spec): string {
  return [...(spec.ContainerHierarchyTexts ?? []), spec.LeafNodeText].join(" ");
}

/** A test's name on one line: some have line breaks in them. */
function nameOf(spec: Spec): string {
  return textOf(spec).replace(/\s+/g, " ");
}

function specsIn(file: string): Spec[] {
  return (JSON.parse(readFileSync(file, "utf8")) as { SpecReports: Spec[] }[])[0]!.SpecReports;
}

/** Every test of the groups that the program knows; nothing is run. */
async function conformanceTests(): Promise<Spec[]> {
  const file = join(work, "tests.json");
  await execa(join(programs, "e2e.test"), [
    "--ginkgo.dry-run",
    `--ginkgo.label-filter=${labels}`,
    `--ginkgo.json-report=${file}`,
  ]);
  return specsIn(file).filter((spec) => spec.LeafNodeType === "It" && spec.State !== "skipped");
}

function list(all: Spec[]): void {
  for (const group of groupNames) {
    const specs = all.filter((spec) => groupOf(nameOf(spec)) === group);
    console.log(
      `${group}: ${specs.length} tests, ${specs.filter((spec) => !reasonOf(nameOf(spec), releases)).length} ` +
        `tried${usualGroups.includes(group) ? ", usually" : ""}`,
    );
  }
}

/**
 * Brings up a node with the tests' images, and removes it when the tests are done. The images are in a registry too,
 * for those who always pull.
 * @param use is told which tests a server of that version has to pass
 */
async function inCluster(
  use: (tried: (spec: Spec) => boolean) => Promise<Spec[]>,
): Promise<{ ran: Spec[]; kubernetes: string }> {
  const folder = join(work, "images");
  mkdirSync(folder);
  const images = await makeImages(folder, say);
  // Each node reaches the host at its own link.
  const cluster = parseStackConfig({ name: stackName, nodes: [{ name: "n", count: nodes - 1 }] });
  const machines = [cluster, ...joiningNodes(cluster).map(({ config }) => config)];
  const addresses = machines.map(({ sandbox }) => `${linkAddresses(sandbox.subnet).host}:${registryPort}`);
  const endpoint = addresses.map((address) => `http://${address}`);
  const stack = await openStack(stackName, say);
  await stack.setAllConfig({
    images: { value: JSON.stringify([...images.values()]) },
    pod: { value: JSON.stringify({ enabled: false }) },
    sandbox: { value: JSON.stringify({ hostPorts: [registryPort] }) },
    ...(options.k3s && {
      distribution: { value: "k3s" },
      k3s: { value: JSON.stringify({ path: resolve(options.k3s) }) },
    }),
    ...(options.kubernetes && { kubernetes: { value: options.kubernetes } }),
    ...(nodes > 1 && { nodes: { value: JSON.stringify(cluster.nodes) } }),
    registries: { value: JSON.stringify({ mirrors: { "registry.k8s.io": { endpoint } } }) },
  });
  try {
    say("up");
    await stack.up();
    for (const registry of addresses) {
      say(`the registry, at ${registry}`);
      await startRegistry(join(work, "registry"), registry); // its address is there only once the sandbox is
    }
    for (const [name, archive] of images) {
      const [repository, tag] = name.replace("registry.k8s.io/", "").split(":") as [string, string];
      await pushArchive(work, addresses[0]!, repository, archive, tag);
    }
    const { stdout } = await execa(kubectl, ["--kubeconfig", kubeconfig, "get", "--raw", "/version"]);
    const kubernetes = (JSON.parse(stdout) as { gitVersion: string }).gitVersion.replace("v", "");
    return { ran: await use((spec) => !reasonOf(nameOf(spec), releases, kubernetes, nodes)), kubernetes };
  } finally {
    say("destroy");
    await stopRegistries();
    await stack.destroy();
  }
}

/**
 * Runs exactly these tests, several at a time, and those that must be alone at the end. What each said is in
 * .state/conformance.json.
 */
async function runTests(specs: Spec[]): Promise<Spec[]> {
  say(`${specs.length} tests`);
  const focus = `(?:${specs.map((spec) => textOf(spec).replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|")})$`;
  const ginkgo = [
    "run",
    `--procs=${options.procs}`,
    `--label-filter=${labels}`,
    `--focus=${focus}`,
    "--timeout=12h",
    "--no-color",
    "--silence-skips",
    "--json-report=ginkgo.json",
    `--output-dir=${work}`,
  ];
  const framework = [
    `--kubeconfig=${kubeconfig}`,
    `--kubectl-path=${kubectl}`,
    "--provider=skeleton",
    `--num-nodes=${nodes}`,
    "--dns-domain=cluster.local",
    `--node-os-arch=${goArch()}`,
    "--node-schedulable-timeout=1m",
    "--system-pods-startup-timeout=2m",
    `--report-dir=${work}`,
    "--disable-log-dump",
    "--dump-logs-on-failure=false",
  ];
  await execa(join(programs, "ginkgo"), [...ginkgo, join(programs, "e2e.test"), "--", ...framework], {
    cwd: work,
    stdin: "ignore",
    stdout: ["inherit", { file: reports.log }],
    stderr: "inherit",
    reject: false,
    buffer: false,
    cancelSignal: interruption.signal,
  });
  interruption.signal.throwIfAborted();
  mkdirSync(join(root, ".state"), { recursive: true });
  copyFileSync(join(work, "ginkgo.json"), join(root, ".state/conformance.json"));
  return specsIn(join(work, "ginkgo.json"));
}

/**
 * Prints the results and, of a run of all, keeps them; returns whether anything failed.
 */
function report({ ran, kubernetes }: { ran: Spec[]; kubernetes: string }, chosen: Spec[]): boolean {
  const results = chosen.map(resultOf(ran, kubernetes));
  const run: Run = {
    server: serverName({ ...options, nodes }),
    date: new Date().toISOString().slice(0, 10),
    minutes: Math.round((Date.now() - began) / 60_000),
    procs: Number(options.procs),
    kubernetes,
    gvisor: moduleVersion("toolchain/runsc", "gvisor.dev/gvisor"),
    results,
  };
  console.log(`\n${tableOf([run])}`);
  if (options.groups === "all" || options.groups === NETWORK_POLICIES) {
    keep(run, options.groups);
    writeFileSync(join(import.meta.dirname, "README.md"), withTable("conformance/README.md"));
  }
  // The programme takes all of its tests, of which two need a second node.
  if (options.groups === "all" && nodes > 1) say(`the CNCF's files are in ${writeSubmission(run, nodes, reports)}`);
  return results.some(({ state }) => state === "failed");
}

function resultOf(ran: Spec[], kubernetes: string): (spec: Spec) => Result {
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
    const notTried = reasonOf(nameOf(spec), releases, kubernetes, nodes);
    if (notTried !== undefined) return { ...common, state: "skipped", reason: notTried };
    const seconds = Math.round((own?.RunTime ?? 0) / 1e8) / 10;
    if (own?.State === "passed") return { ...common, state: "passed", seconds };
    if (own?.State === "skipped" && own.Failure)
      return { ...common, state: "skipped", reason: firstLine(own.Failure.Message)! };
    const reason =
      firstLine(own?.Failure?.Message) ??
      `did not run: ${firstLine(before?.Failure?.Message) ?? "the run ended early"}`;
    return { ...common, state: "failed", seconds, reason };
  };
}
