/** Machines on which there is Node.js and nothing else: the packages are installed by npm, and used. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ownPackage } from "../../system/package.ts";
import { type BareMachine, startBareMachine } from "./bareMachine.ts";
import { entriesOf, ownHome, removeHome, traces } from "./harness.ts";
import { startNpmRegistry } from "./npmRegistry.ts";
import { makeRelease } from "./release.ts";

const home = await ownHome();
const name = "e2e-bare";
let machine: BareMachine;
let registry: Awaited<ReturnType<typeof startNpmRegistry>>;
let before: ReturnType<typeof traces>;
/** What is set on a machine of somebody who set little. */
let usual: Record<string, string>;

/** A folder with a blank in its name, in which the packages are. */
const folder = "/srv/of mine";
const gvisorK3s = (args: string[], env: Record<string, string> = {}) =>
  machine.run([join(folder, "node_modules/.bin/gvisor-k3s"), ...args], { ...usual, ...env });

beforeAll(async () => {
  before = traces(home, name);
  registry = await startNpmRegistry(await makeRelease(home));
  machine = await startBareMachine(join(home, "machine"));
  usual = { npm_config_registry: registry.url, npm_config_update_notifier: "false" };
}, 600_000);

afterAll(async () => {
  if (process.env.KEEP) return;
  await gvisorK3s(["destroy", name]);
  await machine.remove();
  registry.close();
  removeHome(home);
});

it("has none of the programs that building or networking would take", async () => {
  const programs = "go gcc cc busybox ip tar mount umount which curl apt-get dpkg pulumi".split(" ");
  const { all } = await machine.run(["sh", "-c", 'for name; do command -v "$name"; done; true', "sh", ...programs]);
  expect(all).toBe("");
});

it("is told what to do where npm has brought no artifacts", async () => {
  const install = ["npm", "install", "--prefix", folder, "--omit=optional", "--no-fund", "--no-audit", "gvisor-k3s"];
  const installed = await machine.run(install, usual);
  expect(installed.exitCode, String(installed.all)).toBe(0);
  const { exitCode, all } = await gvisorK3s(["up", name]);
  expect(exitCode).toBe(1);
  const packages = ["gvisor-k3s", "gvisor-k3s-pulumi"].map((name) => `${name}-linux-${process.arch}`);
  expect(all).toContain(`the npm package ${packages[0]} ${ownPackage.version}: it is not installed`);
  expect(all).toContain("GVISOR_K3S_ARTIFACTS: it is not set");
  expect(all).toContain("a build from source: there is no Go compiler");
  expect(all).toContain(
    `install ${packages.map((name) => `${name}@${ownPackage.version}`).join(" ")} (npm leaves it out`,
  );
});

describe("with the packages", () => {
  beforeAll(async () => {
    const packages = ["gvisor-k3s", "gvisor-k3s-standins"];
    const install = [
      "npm",
      "install",
      "--prefix",
      folder,
      "--include=optional",
      "--no-fund",
      "--no-audit",
      ...packages,
    ];
    const installed = await machine.run(install, usual);
    expect(installed.exitCode, String(installed.all)).toBe(0);
  });

  it.each<[string, string[], Record<string, string>, RegExp]>([
    [
      "no root",
      ["/usr/sbin/chroot", "--userspec=1000:1000", "/"],
      {},
      /^ +- user = 1000: root is needed to make network/m,
    ],
    [
      "a cache on a disk of 600 MB",
      [],
      { GVISOR_K3S_CACHE: "/mnt/small/cache" },
      /^no space: \/mnt\/small\/cache.* free, and what a machine takes needs .* MB; make room, or set GVISOR_K3S_CACHE to a folder on another disk$/m,
    ],
    [
      "a home that is read-only",
      [],
      { HOME: "/mnt/read-only" },
      /^the cache \/mnt\/read-only\/.* cannot be written \(EROFS.*\); set GVISOR_K3S_CACHE to a folder that can$/m,
    ],
  ])("is told in a clear line: %s", async (_, before, env, line) => {
    const program = join(folder, "node_modules/.bin/gvisor-k3s");
    const { exitCode, all } = await machine.run([...before, program, "up", name], { ...usual, ...env });
    expect(exitCode).toBe(1);
    expect(all).toMatch(line);
    expect(String(all).trim().split("\n").length).toBeLessThanOrEqual(3);
    expect(entriesOf(join(machine.root, "mnt/small/cache/artifacts"))).toEqual([]);
  });

  it("brings a pod to Running, with a blank in its path, umask 077, another language and no home", async () => {
    const script = 'umask 077; unset HOME; exec "$@"';
    const up = [join(folder, "node_modules/.bin/gvisor-k3s"), "up", name];
    const env = { ...usual, LANG: "tr_TR.UTF-8", LC_ALL: "tr_TR.UTF-8" };
    const { exitCode, all } = await machine.run(["sh", "-c", script, "sh", ...up], env);
    expect(exitCode, String(all)).toBe(0);
    expect(all).toMatch(/phase {7}Running/);
  });

  it("changes nothing the second time, and has kubectl", async () => {
    const cache = { GVISOR_K3S_CACHE: "/root/.cache/gvisor-k3s" };
    expect((await gvisorK3s(["preview", name], cache)).all).toContain("nothing changes");
    const pods = await gvisorK3s(["kubectl", "-c", name, "get", "pod", "testpod", "--no-headers"], cache);
    expect(pods.all).toMatch(/^testpod +1\/1 +Running/);
  });

  it("leaves nothing but the cache", async () => {
    const { exitCode, all } = await gvisorK3s(["destroy", name], { GVISOR_K3S_CACHE: "/root/.cache/gvisor-k3s" });
    expect(exitCode, String(all)).toBe(0);
    expect(readdirSync(join(machine.root, "var/lib"))).not.toContain("gvisor-k3s");
    const { links, namespaces, cgroups } = traces(home, name);
    expect({ links, namespaces, cgroups }).toEqual({
      links: before.links,
      namespaces: before.namespaces,
      cgroups: before.cgroups,
    });
  });
});
