/** The npm package, as one who has nothing else takes it: installed into an empty folder, and used from there. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { sandboxPaths } from "../../config/paths.ts";
import { ownHome, removeHome, root } from "./harness.ts";

const home = await ownHome();
const name = "e2e-npm";
const folder = join(home, "user");
const inFolder = (program: string, ...args: string[]) => execa(program, args, { cwd: folder, all: true, reject: false, stdin: "ignore" });
const gvisorK3s = (...args: string[]) => inFolder(join(folder, "node_modules/.bin/gvisor-k3s"), ...args);

beforeAll(async () => {
  mkdirSync(folder);
  await execa("node", [join(root, "toolchain/package.ts")]);
  const { stdout } = await execa("npm", ["pack", join(root, "dist"), "--silent", "--pack-destination", home]);
  writeFileSync(join(folder, "package.json"), JSON.stringify({ name: "user", private: true, type: "module" }));
  const installed = await inFolder("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", join(home, stdout.trim().split("\n").at(-1)!));
  expect(installed.exitCode, installed.all).toBe(0);
}, 300_000);

afterAll(async () => {
  if (process.env.KEEP) return;
  await gvisorK3s("destroy", name);
  rmSync(join(root, "dist"), { recursive: true, force: true });
  removeHome(home);
});

it("has the types of its components and functions", async () => {
  writeFileSync(join(folder, "program.ts"), 'import { parseStackConfig, Sandbox, type Status, status } from "gvisor-k3s";\nconst config = parseStackConfig({ name: "ci", sandbox: { memory: "2Gi" } });\nexport const sandbox = new Sandbox("sandbox", { ...config, egress: false });\nexport const found: Promise<Status> = status(config);\n');
  const tsc = async () => await inFolder(process.execPath, join(root, "node_modules/typescript/bin/tsc"), "--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "program.ts");
  const { exitCode, all } = await tsc();
  expect(exitCode, all).toBe(0);
  writeFileSync(join(folder, "program.ts"), `${readFileSync(join(folder, "program.ts"), "utf8")}new Sandbox("sandbox", { name: 1 });\n`);
  expect((await tsc()).exitCode).not.toBe(0);
});

it("brings a cluster up by its command, with the options of the folder that it runs in", async () => {
  writeFileSync(join(folder, `Pulumi.${name}.yaml`), "config:\n  gvisor-k3s:mode: control-plane\n  gvisor-k3s:sandbox: { memory: 1Gi }\n");
  const { exitCode, all } = await gvisorK3s("up", name);
  expect(exitCode, all).toBe(0);
  expect(all).toContain(`kubeconfig  ${sandboxPaths(name).kubeconfig}`);
  expect((await gvisorK3s("kubectl", "-c", name, "get", "--raw=/readyz")).stdout).toBe("ok");
  const { stdout } = await gvisorK3s("status", name, "--json");
  expect(JSON.parse(stdout)).toMatchObject({ mode: "control-plane", problems: [], sandbox: { memoryLimit: 2 ** 30 } });
  expect((await gvisorK3s("preview", name)).all).toContain("nothing changes");
});

it("leaves nothing", async () => {
  const { exitCode, all } = await gvisorK3s("destroy", name);
  expect(exitCode, all).toBe(0);
  expect((await gvisorK3s("list")).stdout).toContain("there is no cluster");
});
