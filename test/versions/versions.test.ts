/** Every version of Kubernetes: a cluster of the oldest, with a pod, which is taken through all the others. */
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { manifest } from "../../artifacts/artifacts.ts";
import { kubernetesMinors, newestKubernetes } from "../../config/kubernetes.ts";
import { cli, endAll, kubectl, ownHome, root, shellImage, writeOptions } from "../e2e/harness.ts";
import { makeWorkload } from "../e2e/workload.ts";

const home = await ownHome();
const name = "vers-all";
const image = "e2e.local/shell:1";
const archive = join(home, "shell.tar");
const file = join(root, `Pulumi.${name}.yaml`);
const [oldest, next] = kubernetesMinors;
const versionOf = (minor: (typeof kubernetesMinors)[number]) => `v${manifest().kubernetes[minor]}`;
const runs = async () => [
  JSON.parse(await kubectl(name, "get", "--raw", "/version")).gitVersion as string,
  await kubectl(name, "get", "node", name, "-o=jsonpath={.status.nodeInfo.kubeletVersion}"),
];
let expectAll: () => Promise<void>;

async function printed(...args: string[]): Promise<string> {
  const { exitCode, all } = await cli(...args);
  expect(exitCode, all).toBe(0);
  return String(all);
}

beforeAll(async () => {
  await shellImage(image, archive);
  writeOptions(root, name, { images: [archive], kubernetes: oldest });
});

afterAll(async () => {
  await endAll(home, name);
  if (!process.env.KEEP) rmSync(file, { force: true });
});

it("the oldest brings a pod to Running", async () => {
  await printed("up", name);
  expect(await runs()).toEqual([versionOf(oldest), versionOf(oldest)]);
  expectAll = await makeWorkload(name, image);
  await kubectl(name, "top", "node"); // which asks metrics-server, and that the kubelet's cAdvisor
});

it("it is too far from the newest for one step, which is told with the way", async () => {
  writeOptions(root, name, { images: [archive], kubernetes: newestKubernetes });
  const { exitCode, all } = await cli("up", name);
  expect(exitCode).toBe(1);
  expect(all).toContain(`take ${next} first, or run \`gvisor-k3s upgrade NAME --to ${newestKubernetes}\``);
  writeOptions(root, name, { images: [archive], kubernetes: oldest });
});

it("an upgrade goes there one minor version at a time, with its pods, their data and all objects", async () => {
  const all = await printed("upgrade", name, "--to", newestKubernetes);
  for (const [index, minor] of kubernetesMinors.slice(1).entries())
    expect(all).toContain(`${index + 1} of ${kubernetesMinors.length - 1}: Kubernetes ${minor}`);
  expect(all).toContain(`${name} runs ${versionOf(newestKubernetes)}; it ran ${versionOf(oldest)}`);
  expect(readFileSync(file, "utf8")).toContain(`gvisor-k3s:kubernetes: "${newestKubernetes}"`);
  expect(await runs()).toEqual([versionOf(newestKubernetes), versionOf(newestKubernetes)]);
  await expectAll();
});

it.each(kubernetesMinors.slice(1))("%s makes a cluster of its own with a pod as well", async (minor) => {
  await printed("destroy", name);
  writeOptions(root, name, { kubernetes: minor });
  expect(await printed("up", name)).toMatch(/^phase +Running$/m);
  expect(await runs()).toEqual([versionOf(minor), versionOf(minor)]);
});
