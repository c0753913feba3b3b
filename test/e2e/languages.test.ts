/**
 * SDKs for other languages, which Pulumi's generators make of the package's schema: a program of each, in its language's
 * Automation API, brings a control plane up and takes it down.
 */
import { copyFileSync, cpSync, mkdirSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { artifactFolder } from "../../artifacts/artifacts.ts";
import { pulumiCommand } from "../../automation/workspace.ts";
import { packageSchema } from "../../provider/schema.ts";
import { ownPackage } from "../../system/package.ts";
import { endLeft, entriesOf, ownHome, root } from "./harness.ts";

const home = await ownHome();
const schema = join(home, "schema.json");

beforeAll(() => {
  const { version } = ownPackage;
  writeFileSync(schema, JSON.stringify(packageSchema(version)));
});

// What a program has made is its own to take down: nothing of it is left but by one that failed.
afterAll(() => endLeft(home));

/** The program for a language in a folder of its own, with the SDK in a folder below. */
async function written(language: string, sdk: string): Promise<string> {
  const folder = join(home, language);
  cpSync(join(root, "examples", language), folder, { recursive: true });
  const generator = join(artifactFolder({ name: "pulumi-sdks" }), "pulumi-sdks");
  await execa(generator, [language, schema, join(folder, sdk)]);
  return folder;
}

/** Runs a program that makes a cluster of this name, and tells of it. */
async function told(name: string, program: string, args: string[], env: Record<string, string> = {}) {
  const { command, env: pulumi } = await pulumiCommand(() => {});
  const state = join(home, `state-${name}`);
  mkdirSync(state);
  // The provider is what a folder of the package has; a program finds it as it finds Pulumi's.
  const PATH = [dirname(command.command), join(root, "provider"), process.env.PATH].join(delimiter);
  const { stdout } = await execa(program, [...args, name], {
    stdin: "ignore",
    env: { ...pulumi, PATH, PULUMI_BACKEND_URL: `file://${state}`, PULUMI_CONFIG_PASSPHRASE: "of a test", ...env },
  });
  expect(entriesOf(join(home, "sandboxes"))).toEqual([]);
  return JSON.parse(stdout) as object;
}

const complete = {
  address: expect.stringMatching(/^10\./),
  secret: true,
  kubeconfig: expect.stringContaining("current-context"),
};

it("Go", async () => {
  const folder = await written("go", "sdk/go");
  copyFileSync(join(folder, "sdk.mod"), join(folder, "sdk/go.mod"));
  const program = join(folder, "languages");
  // With the flags of the builds, what those have compiled of Pulumi is used again.
  await execa("go", ["build", "-o", program, "."], { cwd: folder, env: { GOFLAGS: "-trimpath", CGO_ENABLED: "0" } });
  expect(await told("lang-go", program, [])).toEqual(complete);
});

it("Java", async () => {
  const folder = await written("java", ".");
  const goals = ["compile", "dependency:copy-dependencies", "-DincludeScope=runtime"];
  await execa("mvn", ["--quiet", "--batch-mode", ...goals], { cwd: folder });
  const classes = `${join(folder, "target/classes")}:${join(folder, "target/dependency")}/*`;
  expect(await told("lang-java", "java", ["-cp", classes, "Main"])).toEqual(complete);
});

it("Python", async () => {
  const folder = await written("python", "sdk");
  const python = join(folder, "venv/bin/python");
  await execa("python3", ["-m", "venv", join(folder, "venv")]);
  const pip = (...args: string[]) => execa(python, ["-m", "pip", "install", "--quiet", ...args]);
  await pip("--requirement", join(folder, "requirements.txt"));
  await pip("--no-deps", "--no-build-isolation", join(folder, "sdk"));
  expect(await told("lang-python", python, [join(folder, "main.py")])).toEqual({ ...complete, pod: "Running" });
});
