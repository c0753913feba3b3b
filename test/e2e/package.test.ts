/** The npm package, as one who has nothing else takes it: installed into an empty folder, and used from there. */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LocalWorkspace, Stack } from "@pulumi/pulumi/automation/index.js";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { parse } from "yaml";
import { artifactFolder } from "../../artifacts/artifacts.ts";
import { pulumiCommand } from "../../automation/workspace.ts";
import { entriesOf, ownHome, pathsOf, removeHome, root } from "./harness.ts";
import { startNpmRegistry } from "./npmRegistry.ts";
import { makeRelease } from "./release.ts";

const home = await ownHome();
const name = "e2e-npm";
const folder = join(home, "user");
const bin = join(home, "bin");
let registry: Awaited<ReturnType<typeof startNpmRegistry>>;
const inFolder = (program: string, ...args: string[]) =>
  execa(program, args, { cwd: folder, all: true, reject: false, stdin: "ignore" });
const gvisorK3s = (...args: string[]) => inFolder(join(folder, "node_modules/.bin/gvisor-k3s"), ...args);

beforeAll(async () => {
  mkdirSync(folder);
  registry = await startNpmRegistry(await makeRelease(home));
  writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "user", private: true, type: "module" }));
  const quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", `--registry=${registry.url}`];
  const installed = await inFolder("npm", "install", ...quiet, "gvisor-k3s", "gvisor-k3s-standins");
  expect(installed.exitCode, installed.all).toBe(0);
}, 600_000);

afterAll(async () => {
  if (process.env.KEEP) return;
  for (const cluster of [name, "ci"]) await gvisorK3s("destroy", cluster);
  registry.close();
  removeHome(home);
});

it("is what is published: for each kind of machine its own packages, the stand-ins apart, with sums of all", async () => {
  const release = join(home, "release");
  const file = (path: string) => readFileSync(join(release, path), "utf8");
  const installed = entriesOf(join(folder, "node_modules")).filter((entry) => entry.startsWith("gvisor-k3s"));
  const kind = `linux-${process.arch}`;
  expect(installed.toSorted()).toEqual(
    ["", `-${kind}`, `-pulumi-${kind}`, "-standins", `-standins-${kind}`].map((suffix) => `gvisor-k3s${suffix}`),
  );
  const own = JSON.parse(readFileSync(join(folder, "node_modules/gvisor-k3s/package.json"), "utf8"));
  expect(Object.keys(own.optionalDependencies)).toEqual([`gvisor-k3s-${kind}`, `gvisor-k3s-pulumi-${kind}`]);
  const sums = await execa("sha256sum", ["--check", "--quiet", "--strict", "SHA256SUMS"], { cwd: release });
  expect(sums.exitCode).toBe(0);
  const listed = file("SHA256SUMS")
    .split("\n")
    .map((line) => line.slice(66));
  expect(listed.filter((name) => name !== "").toSorted()).toEqual(
    entriesOf(release)
      .filter((name) => name !== "SHA256SUMS")
      .toSorted(),
  );
  for (const brings of ["ingress", `ingress-${kind}`])
    expect(listed).toContainEqual(expect.stringMatching(new RegExp(`^gvisor-k3s-${brings}-[\\d.]+\\.tgz$`)));
  const bill = JSON.parse(file(`gvisor-k3s-${kind}.cdx.json`)) as {
    components: { purl?: string; licenses?: object[] }[];
  };
  const contained = bill.components.flatMap(({ purl = "" }) => purl);
  for (const part of [
    "golang/k8s.io/kubernetes@v",
    "golang/gvisor.dev/gvisor@v",
    "golang/std@",
    "deb/debian/busybox",
  ]) {
    expect(contained).toContainEqual(expect.stringContaining(`pkg:${part}`));
  }
  const licences = readFileSync(join(folder, `node_modules/gvisor-k3s-${kind}/LICENSES.txt`), "utf8");
  expect(licences).not.toContain("(no licence file)");
  expect(licences).toContain("GNU GENERAL PUBLIC LICENSE");
});

const tsc = (folder: string, ...options: string[]) =>
  execa(
    process.execPath,
    [
      join(root, "node_modules/typescript/bin/tsc"),
      ...["--noEmit", "--strict", "--target", "es2022", "--skipLibCheck", "false"],
      ...["--typeRoots", join(root, "node_modules/@types"), "--types", "node"],
      ...options,
      "program.ts",
    ],
    { cwd: folder, all: true, reject: false },
  );

/** A folder with a program in it, whose modules are of a kind. */
function program(type: "module" | "commonjs", text: string): string {
  const own = join(folder, type);
  mkdirSync(own, { recursive: true });
  writeFileSync(join(own, "package.json"), JSON.stringify({ type }));
  writeFileSync(join(own, "program.ts"), text);
  return own;
}

const text = `import { Cluster, parseStackConfig, Sandbox, type Status, status } from "gvisor-k3s";
const config = parseStackConfig({ name: "ci", sandbox: { memory: "2Gi" } });
export const sandbox = new Sandbox("sandbox", { config });
export const found: Promise<Status> = status(config);
export const { kubeconfig } = new Cluster("ci");
`;

it.each<["module" | "commonjs", ...string[]]>([
  // That of Pulumi's own template.
  ["commonjs", "--module", "commonjs", "--moduleResolution", "node10", "--ignoreDeprecations", "6.0"],
  ["commonjs", "--module", "node16"],
  ["module", "--module", "node16"],
  ["commonjs", "--module", "nodenext"],
  ["module", "--module", "nodenext"],
  ["module", "--module", "esnext", "--moduleResolution", "bundler"],
  ["commonjs", "--module", "preserve", "--moduleResolution", "bundler"],
])("has the types of its components and functions: %s %s %s %s %s", async (type, ...options) => {
  const { exitCode, all } = await tsc(program(type, text), ...options);
  expect(exitCode, all).toBe(0);
});

it.each(["module", "commonjs"] as const)("tells a program of the kind %s what is wrong in it", async (type) => {
  const wrong = `${text}new Sandbox("sandbox", { config: 1 });\n`;
  const { exitCode, all } = await tsc(program(type, wrong), "--module", "nodenext");
  expect(exitCode).not.toBe(0);
  expect(all).toContain("program.ts(6,26): error TS2322: Type 'number' is not assignable to type");
});

it("is one library, however it is loaded", async () => {
  const both =
    'const { Cluster } = require("gvisor-k3s"); ' +
    'import("gvisor-k3s").then((library) => console.log(typeof Cluster, library.Cluster === Cluster))';
  expect((await inFolder(process.execPath, "--input-type=commonjs", "--eval", both)).all).toBe("function true");
});

it("tells an older Node.js what it needs, in one line", async () => {
  const older = join(folder, "older.cjs"); // what it tells of itself
  const version = '{ value: "v20.19.4" }); Object.defineProperty(process.versions, "node", { value: "20.19.4" });';
  writeFileSync(older, `Object.defineProperty(process, "version", ${version}\n`);
  const bin = join(folder, "node_modules/.bin/gvisor-k3s");
  const { exitCode, all } = await inFolder(process.execPath, "--require", older, bin, "status");
  expect(exitCode).toBe(1);
  expect(all).toBe(`gvisor-k3s needs Node.js 24 or newer, and ${process.execPath} is v20.19.4`);
});

it("brings a cluster up by its command, with the options of the folder that it runs in", async () => {
  writeFileSync(
    join(folder, `Pulumi.${name}.yaml`),
    "config:\n  gvisor-k3s:mode: control-plane\n  gvisor-k3s:sandbox: { memory: 1Gi }\n",
  );
  const { exitCode, all } = await gvisorK3s("up", name);
  expect(exitCode, all).toBe(0);
  expect(all).toContain(`kubeconfig  ${pathsOf(name).kubeconfig}`);
  expect((await gvisorK3s("kubectl", "-c", name, "get", "--raw=/readyz")).stdout).toBe("ok");
  const { stdout } = await gvisorK3s("status", name, "--json");
  expect(JSON.parse(stdout)).toMatchObject({ mode: "control-plane", problems: [], sandbox: { memoryLimit: 2 ** 30 } });
  expect((await gvisorK3s("preview", name)).all).toContain("nothing changes");
});

it("is a component of a program in YAML", async () => {
  cpSync(join(root, "examples/yaml/Pulumi.yaml"), join(folder, "Pulumi.yaml"));
  const { command, env } = await pulumiCommand(() => {});
  const state = join(home, "state");
  mkdirSync(state);
  const PATH = `${artifactFolder({ name: "pulumi-yaml" })}:${process.env.PATH}`;
  const stackOf = async () =>
    await Stack.createOrSelect(
      "test",
      await LocalWorkspace.create({
        workDir: folder,
        pulumiCommand: command,
        envVars: { ...env, PATH, PULUMI_BACKEND_URL: `file://${state}`, PULUMI_CONFIG_PASSPHRASE: "of a test" },
      }),
    );
  const stack = await stackOf();
  try {
    const { outputs } = await stack.up();
    expect(outputs.kubeconfig).toMatchObject({ secret: true, value: expect.stringContaining("current-context") });
    expect(
      await inFolder(
        join(artifactFolder({ name: "server" }), "gvisor-k3s-node"),
        "kubectl",
        `--kubeconfig=${outputs.kubeconfigPath!.value}`,
        "get",
        "--raw=/readyz",
      ),
    ).toMatchObject({ stdout: "ok" });
    expect((await stack.preview()).changeSummary).toEqual({ same: expect.any(Number) });
    const program = readFileSync(join(folder, "Pulumi.yaml"), "utf8");
    const refused = async (right: string, wrong: string) => {
      writeFileSync(join(folder, "Pulumi.yaml"), program.replace(right, wrong));
      return await (await stackOf()).preview().catch((error: Error) => error.message);
    };
    expect(await refused("mode: control-plane", "mode: control-plain")).toContain(
      'mode = "control-plain": allowed: node, control-plane, external',
    );
    // Pulumi's own words, by the types of the package's schema.
    expect(await refused("memory: 1Gi", "memori: 1Gi")).toMatch(
      /sandbox: Cannot assign '{memori: string}'(.|\n)*Existing properties are: .*memory/,
    );
  } finally {
    await stack.destroy();
  }
  expect(entriesOf(join(home, "sandboxes"))).toEqual([name]);
});

/**
 * Runs the steps of a job as GitHub's runner does: each in a shell that ends at the first error, and after a failure
 * only what says so.
 */
async function runJob(file: string): Promise<{ failed: string[]; printed: string }> {
  const { jobs } = parse(readFileSync(file, "utf8")) as {
    jobs: Record<string, { steps: { run?: string; name?: string; if?: string }[] }>;
  };
  let failed: string[] = [];
  let printed = "";
  for (const { run, if: condition = "success()" } of Object.values(jobs).flatMap(({ steps }) => steps)) {
    const due = { "success()": failed.length === 0, "failure()": failed.length > 0, "always()": true }[condition];
    if (due === undefined) throw new Error(`${file}: a condition that this does not know: ${condition}`);
    if (run === undefined || !due) continue; // an action sets the machine up, which is done here
    const { exitCode, all } = await execa("bash", ["-e", "-o", "pipefail", "-c", run], {
      cwd: folder,
      all: true,
      reject: false,
      stdin: "ignore",
      env: { PATH: `${bin}:${process.env.PATH}`, npm_config_registry: registry.url },
    });
    if (exitCode !== 0) failed = [...failed, run];
    printed += `${all}\n`;
  }
  return { failed, printed };
}

it("is what a job for GitHub calls, step by step", async () => {
  mkdirSync(bin);
  writeFileSync(join(bin, "sudo"), '#!/bin/sh\nexec "$@"\n', { mode: 0o755 }); // the tests are root already
  mkdirSync(join(folder, "deploy"));
  writeFileSync(join(folder, "deploy/app.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: app}\n");
  const { failed, printed } = await runJob(join(root, "examples/github-actions.yaml"));
  expect(failed, printed).toEqual([]);
  expect(printed).toMatch(/phase {7}Running/);
  expect(printed).toContain("configmap/app created (server dry run)");
  expect(printed).toContain("ci is gone");
});

it("leaves nothing", async () => {
  const { exitCode, all } = await gvisorK3s("destroy", name);
  expect(exitCode, all).toBe(0);
  expect((await gvisorK3s("list")).stdout).toContain("there is no cluster");
});
