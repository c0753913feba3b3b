/** The examples, as they are: each brings up its clusters, and takes them down. */
import { chmodSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as pulumi from "@pulumi/pulumi";
import { LocalWorkspace, Stack } from "@pulumi/pulumi/automation/index.js";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { artifactFolder } from "../../artifacts/artifacts.ts";
import { pulumiCommand } from "../../automation/workspace.ts";
import { inSandbox } from "../../config/paths.ts";
import { cli, entriesOf, inside, ownHome, removeHome, root } from "./harness.ts";

const home = await ownHome();
const examples = join(root, "examples");
const bin = join(home, "bin");

beforeAll(() => {
  mkdirSync(bin);
  symlinkSync(join(artifactFolder({ name: "helm" }), "helm"), join(bin, "helm"));
  writeFileSync(
    join(bin, "gvisor-k3s"),
    `#!/bin/sh\nexec ${process.execPath} ${join(root, "automation/cli.ts")} "$@"\n`,
  );
  chmodSync(join(bin, "gvisor-k3s"), 0o755);
});

afterAll(async () => {
  for (const name of ["ex-helm", "ex-rbac", "ex-one", "ex-two"])
    if (entriesOf(join(home, "sandboxes")).includes(name)) await cli("destroy", name);
  rmSync(bin, { recursive: true });
  removeHome(home);
});

/** Runs an example, and returns what it printed. */
async function example(folder: string, program: string, ...args: string[]): Promise<string> {
  const helm = {
    HELM_CACHE_HOME: join(home, "helm"),
    HELM_CONFIG_HOME: join(home, "helm"),
    HELM_DATA_HOME: join(home, "helm"),
  };
  const { exitCode, all } = await execa(program, args, {
    cwd: join(examples, folder),
    all: true,
    reject: false,
    stdin: "ignore",
    env: { PATH: `${bin}:${process.env.PATH}`, ...helm },
  });
  expect(exitCode, all).toBe(0);
  expect(entriesOf(join(home, "sandboxes"))).toEqual([]);
  return all;
}

it("a Helm chart is installed, tested, upgraded and rolled back", async () => {
  expect(await example("helm-chart", "./run.sh")).toMatch(/Phase: +Succeeded(.*\n)*the chart works$/m);
});

it("an operator's RBAC, schema and admission policy hold", async () => {
  const printed = await example("operator", "./run.sh");
  expect(printed.match(/^refused, as it should be/gm)).toHaveLength(4);
  expect(printed).toContain("the operator may do what it should, and nothing more");
});

it("a program of one's own makes what it describes, with the components of the library", async () => {
  const { command, env } = await pulumiCommand(() => {});
  const workDir = join(examples, "own-program");
  const state = join(home, "state");
  mkdirSync(state);
  const workspace = await LocalWorkspace.create({
    workDir,
    pulumiCommand: command,
    envVars: { ...env, PULUMI_BACKEND_URL: `file://${state}`, PULUMI_CONFIG_PASSPHRASE: "of a test" },
  });
  const stack = await Stack.create("test", workspace);
  try {
    const { outputs } = await stack.up();
    expect(outputs.kubeconfig!.secret).toBe(true);
    const { stdout } = await execa(join(artifactFolder({ name: "server" }), "gvisor-k3s-node"), [
      "kubectl",
      `--kubeconfig=${outputs.kubeconfigPath!.value}`,
      "get",
      "quota",
      "small",
      "--namespace=team",
      "-o=jsonpath={.spec.hard.pods}",
    ]);
    expect(stdout).toBe("10");
  } finally {
    await stack.destroy();
    rmSync(join(workDir, "Pulumi.test.yaml"), { force: true });
  }
  expect(entriesOf(join(home, "sandboxes"))).toEqual([]);
});

it("a pull request's cluster takes what all of them share from another stack, and keeps its secrets", async () => {
  const { command, env } = await pulumiCommand(() => {});
  const state = join(home, "shared-state");
  mkdirSync(state);
  const envVars = { ...env, PULUMI_BACKEND_URL: `file://${state}`, PULUMI_CONFIG_PASSPHRASE: "of a test" };
  const options = { pulumiCommand: command, envVars };
  const auth = { username: "me", password: "very-secret" };
  const program = async () => ({ registries: pulumi.secret({ configs: { "registry.example": { auth } } }) });
  await (await LocalWorkspace.createStack({ stackName: "main", projectName: "shared", program }, options)).up();
  const workDir = join(examples, "pull-request");
  const stack = await Stack.create("pr-123", await LocalWorkspace.create({ ...options, workDir }));
  try {
    await stack.setConfig("shared", { value: "organization/shared/main" });
    const { outputs } = await stack.up();
    expect(outputs.kubeconfig!.secret).toBe(true);
    expect(await inside("pr-123", "/bin/cat", inSandbox.containerdCredentials)).toContain("very-secret");
    const noted = readFileSync(join(state, ".pulumi/stacks/pull-request/pr-123.json"), "utf8");
    expect(noted).toContain("containerd-registries");
    expect(noted).not.toContain("very-secret");
  } finally {
    await stack.destroy({ remove: true });
    rmSync(join(workDir, "Pulumi.pr-123.yaml"), { force: true });
  }
  expect(entriesOf(join(home, "sandboxes"))).toEqual([]);
});

it("two clusters are made side by side, apart from each other", async () => {
  expect(await example("two-clusters", process.execPath, "run.ts")).toContain(
    "ex-one is running, ex-two is running; they are apart",
  );
});
