/** The examples, as they are: each brings up its clusters, and takes them down. */
import { chmodSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as pulumi from "@pulumi/pulumi";
import { type EngineEvent, LocalWorkspace, Stack } from "@pulumi/pulumi/automation/index.js";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { artifactFolder, imageName } from "../../artifacts/artifacts.ts";
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

it("what runs in a cluster is made in its program, once that is there, and removed before it", async () => {
  const { command, env } = await pulumiCommand(() => {});
  const workDir = join(examples, "workloads");
  const state = join(home, "workloads-state");
  mkdirSync(state);
  const envVars = { ...env, PULUMI_BACKEND_URL: `file://${state}`, PULUMI_CONFIG_PASSPHRASE: "of a test" };
  const stack = await Stack.create("test", await LocalWorkspace.create({ workDir, pulumiCommand: command, envVars }));
  const removed: string[] = [];
  try {
    await stack.setAllConfig({ image: { value: imageName("testpod") }, port: { value: "8080" } });
    const { outputs } = await stack.up();
    expect(outputs.replicas!.value).toBe(2);
    const asked = ["kubectl", `--kubeconfig=${outputs.kubeconfigPath!.value}`, "get", "service/web", "--namespace=web"];
    const kubectl = join(artifactFolder({ name: "server" }), "gvisor-k3s-node");
    const { stdout } = await execa(kubectl, [...asked, "-o=jsonpath={.spec.clusterIP}"]);
    expect(stdout).toBe(outputs.address!.value);
    expect((await stack.preview()).changeSummary).toEqual({ same: expect.any(Number) });
  } finally {
    const onEvent = ({ resOutputsEvent: event }: EngineEvent) => {
      if (event?.metadata.op === "delete") removed.push(event.metadata.type);
    };
    await stack.destroy({ onEvent });
    rmSync(join(workDir, "Pulumi.test.yaml"), { force: true });
  }
  // All that is in it goes before anything of the cluster.
  const last = removed.findLastIndex((type) => type.startsWith("kubernetes:"));
  expect(removed.filter((type) => type.startsWith("kubernetes:"))).toHaveLength(4);
  expect(removed.findIndex((type) => type.startsWith("command:"))).toBeGreaterThan(last);
  expect(entriesOf(join(home, "sandboxes"))).toEqual([]);
});

it("two clusters are made side by side, apart from each other", async () => {
  expect(await example("two-clusters", process.execPath, "run.ts")).toContain(
    "ex-one is running, ex-two is running; they are apart",
  );
});
