/**
 * Upgrades between two versions of Kubernetes: the newest, and the one before it. test/versions has the other ones.
 */
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { artifactFolder, manifest, serverOf } from "../../artifacts/artifacts.ts";
import { newestKubernetes, olderKubernetes } from "../../config/kubernetes.ts";
import { lastReady } from "../../servers/ready.ts";
import { cli, endAll, inside, kubectl, ownHome, root, shellImage, writeOptions } from "./harness.ts";
import { makeWorkload } from "./workload.ts";

const home = await ownHome();
const name = "e2e-vers";
const image = "e2e.local/shell:1";
const archive = join(home, "shell.tar");
const file = join(root, `Pulumi.${name}.yaml`);
const older = olderKubernetes.at(-1)!;
const versionOf = (minor: typeof older | typeof newestKubernetes) => `v${manifest().kubernetes[minor]}`;
/** A switch of the kubelet's that the older one has, on, and the newest has not: it ends when it is given that. */
const gone = "feature-gates=SidecarContainers=true";
const configure = (options: object) => writeOptions(root, name, { images: [archive], ...options });
let expectAll: () => Promise<void>;

async function printed(...args: string[]): Promise<string> {
  const { exitCode, all } = await cli(...args);
  expect(exitCode, all).toBe(0);
  return String(all);
}

const nodeVersion = () => kubectl(name, "get", "node", name, "-o=jsonpath={.status.nodeInfo.kubeletVersion}");
const apiVersion = async () => JSON.parse(await kubectl(name, "get", "--raw", "/version")).gitVersion as string;

beforeAll(async () => {
  await shellImage(image, archive);
  configure({ kubernetes: older, node: { kubeletArgs: [gone] } });
});

afterAll(async () => {
  await endAll(home, name);
  if (!process.env.KEEP) rmSync(file, { force: true });
});

it("an older version is one option: its API server, its node and its kubectl", async () => {
  expect(await printed("up", name)).toMatch(/^phase +Running$/m);
  expect([await apiVersion(), await nodeVersion()]).toEqual([versionOf(older), versionOf(older)]);
  const client = JSON.parse(await printed("kubectl", "-c", name, "version", "--client", "--output=json"));
  expect(client.clientVersion.gitVersion).toBe(versionOf(older));
  const proxy = await inside(
    name,
    "/bin/sh",
    "-c",
    "for exe in /proc/[0-9]*/exe; do readlink $exe; done | grep service-proxy",
  );
  expect(proxy).toContain(`/${serverOf(older)}-`);
  expectAll = await makeWorkload(name, image);
});

it("a preview says what another version does", async () => {
  configure({ kubernetes: newestKubernetes, node: { kubeletArgs: [gone] } });
  const said = await printed("preview", name);
  expect(said).toContain(
    `takes the node's server from ${versionOf(older)} to ${versionOf(newestKubernetes)}; running pods and all data live on`,
  );
  expect(said).not.toMatch(/replace|delete|is lost/);
  configure({ kubernetes: older, node: { kubeletArgs: [gone] } });
});

it("a version that does not become ready makes way for the one of before, with its data and pods", async () => {
  const before = readFileSync(file, "utf8");
  const { exitCode, all } = await cli("upgrade", name, "--to", newestKubernetes);
  expect(exitCode, all).toBe(1);
  expect(all).toMatch(/unrecognized feature gate: SidecarContainers/);
  expect(all).toContain(`the server of before, ${versionOf(older)}, runs again, as it was`);
  expect(readFileSync(file, "utf8")).toBe(before);
  expect(lastReady({ name, home })!.version).toBe(versionOf(older));
  expect(await inside(name, "/bin/ls", "/var/lib/rancher/k3s/server")).not.toContain("db.before");
  await expectAll();
  expect([await apiVersion(), await nodeVersion()]).toEqual([versionOf(older), versionOf(older)]);
  await kubectl(name, "run", "later", `--image=${image}`, "--image-pull-policy=Never");
  await kubectl(name, "wait", "pod/later", "--for=condition=Ready", "--timeout=60s");
  await kubectl(name, "delete", "pod/later", "--grace-period=1");
});

it("without what the newest has not it is taken to it, and the pods, their data and all objects live on", async () => {
  configure({ kubernetes: older });
  const said = await printed("upgrade", name, "--to", newestKubernetes);
  expect(said).toContain(`${name} runs ${versionOf(newestKubernetes)}; it ran ${versionOf(older)}`);
  expect(readFileSync(file, "utf8")).toContain(`gvisor-k3s:kubernetes: "${newestKubernetes}"`);
  expect([await apiVersion(), await nodeVersion()]).toEqual([versionOf(newestKubernetes), versionOf(newestKubernetes)]);
  await expectAll();
  expect(await printed("preview", name)).toContain("nothing changes");
  expect(await printed("status", name)).toContain("all is well");
});

it("back is no way, and nothing is touched", async () => {
  configure({ kubernetes: older });
  const { exitCode, all } = await cli("up", name);
  expect(exitCode).toBe(1);
  expect(all).toMatch(
    new RegExp(
      `kubernetes = "${older}": that is ${versionOf(older)} here; the cluster runs .* a downgrade is not possible`,
    ),
  );
  await expectAll();
  expect(await printed("versions")).toMatch(
    new RegExp(`^${newestKubernetes} +${versionOf(newestKubernetes)} .*ready$`, "m"),
  );
  expect(artifactFolder({ name: serverOf(older) })).not.toBe(artifactFolder({ name: "server" }));
});
