/** What grows on the disk, what tells of it, and what makes room again. */
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { artifactFolder, goArch, imageName } from "../../artifacts/artifacts.ts";
import type { Status } from "../../automation/status.ts";
import { waitFor } from "../../system/wait.ts";
import {
  endAll,
  inside,
  kill,
  kubectl,
  kubectlProcess,
  machineOf,
  ownHome,
  printed,
  root,
  shellImage,
} from "./harness.ts";

const home = await ownHome();
const name = "e2e-disk";
const options = join(root, `Pulumi.${name}.yaml`);
const shell = { image: "example.test/shell:1", archive: join(home, "shell.tar") };

beforeAll(async () => {
  await shellImage(shell.image, shell.archive);
  const off = { enabled: false };
  const config = {
    "gvisor-k3s:addons": { coredns: off, metricsServer: off },
    "gvisor-k3s:images": [shell.archive],
    // The disk is always so full, and an image is old at once.
    "gvisor-k3s:node": { pruneImagesAt: 1, kubeletArgs: ["minimum-image-ttl-duration=0s"] },
  };
  writeFileSync(options, JSON.stringify({ config }));
  await printed("up", name);
});

afterAll(async () => {
  await endAll(home, name);
  if (!process.env.KEEP) rmSync(options, { force: true });
});

/** Bytes in an image that no other image has. */
const LAYER = 4 * 2 ** 20;

/** Makes an archive of an image that is like no other. */
async function archiveOf(image: string): Promise<string> {
  const archive = join(home, `${image.replaceAll(/\W/g, "-")}.tar`);
  const platform = ["--platform", `linux/${goArch()}`];
  await execa("sh", ["-c", `head -c ${LAYER} /dev/urandom > ${archive}.layer`]);
  const own = ["--file", `${archive}.layer:/layer:0644`];
  const mkimage = join(artifactFolder({ name: "images" }), "mkimage");
  await execa(mkimage, [...platform, "--name", image, ...own, "--cmd", "/layer", "-o", archive]);
  return archive;
}

/** Brings an image in as a pull does: nobody has pinned it. */
async function pulled(image: string): Promise<void> {
  const inputFile = await archiveOf(image);
  await machineOf(name).exec(["ctr", "-n", "k8s.io", "images", "import", "-"], { inputFile });
  expect(await images()).toContain(image);
}

const images = async () => (await inside(name, "ctr", "-n", "k8s.io", "images", "ls", "-q")).trim().split("\n");

it("status tells what is on it", async () => {
  const { disk, problems } = JSON.parse(await printed("status", name, "--json")) as Status;
  expect(problems).toEqual([]);
  const { root: all, images: ofImages, logs, database, hostLogs, size, free, whole } = disk!;
  expect(whole).toBe(true);
  for (const part of [ofImages, logs, database, hostLogs, free]) expect(part).toBeGreaterThan(0);
  expect(all).toBeGreaterThan(ofImages + logs + database);
  expect(all).toBeLessThan(size - free);
  // An archive is stored as it came, and unpacked beside.
  const before = ofImages;
  const more = join(home, "more");
  await execa("sh", ["-c", `head -c ${16 * 2 ** 20} /dev/urandom > ${more}`]);
  await machineOf(name).exec(["sh", "-c", "cat > /var/lib/containerd/more"], { inputFile: more });
  const { disk: after } = JSON.parse(await printed("status", name, "--json")) as Status;
  expect(after!.images - before).toBeGreaterThanOrEqual(16 * 2 ** 20);
  await inside(name, "rm", "/var/lib/containerd/more");
  expect(await printed("status", name)).toMatch(/^disk +\d+ MiB: images \d+ MiB, logs .*; free \d+ MiB$/m);
});

describe("images that no container uses", () => {
  it("are removed by a command, but for imported ones and the node's own", async () => {
    const imported = "example.test/imported:1";
    await printed("images", "import", "-c", name, await archiveOf(imported));
    await pulled("example.test/pulled:1");
    const old = "gvisor-k3s.local/testpod:of-an-earlier-release";
    await pulled(old);
    const { images: removed, freed } = JSON.parse(await printed("images", "prune", "-c", name, "--json"));
    expect(removed.map(({ names }: { names: string[] }) => names[0]).sort()).toEqual(["example.test/pulled:1", old]);
    expect(freed).toBeGreaterThan(4 * LAYER); // two images, as they came and unpacked
    const own = [imageName("pause"), imageName("testpod")];
    expect(await images()).toEqual(expect.arrayContaining([imported, shell.image, ...own]));
    expect(await printed("images", "prune", "-c", name)).toMatch(/^0 images removed; 0 MiB are free again$/m);
    const all = await printed("images", "prune", "-c", name, "--imported");
    expect(all.split("\n").slice(0, -1).sort()).toEqual([imported, shell.image]);
    expect(await images()).toEqual(expect.arrayContaining(own));
    expect(await images()).not.toContain(imported);
    await printed("images", "import", "-c", name, shell.archive);
  });

  it("are removed by the kubelet when the disk is full, but for the same", async () => {
    await pulled("example.test/forgotten:1");
    // It looks every five minutes, and finds new images and room for them at once: what of these comes first is chance,
    // and an image that is found a moment later is spared. One that is there when it starts is not.
    await kill(name, "server");
    const look = "grep -E 'image_gc|Image garbage' /var/log/gvisor-k3s/server.log; date";
    await waitFor(
      "the kubelet removes it",
      330,
      async () => ((await images()).includes("example.test/forgotten:1") ? undefined : true),
      () => inside(name, "sh", "-c", look),
    );
    expect(await images()).toEqual(expect.arrayContaining([shell.image, imageName("pause"), imageName("testpod")]));
  }, 400_000);
});

it("a container's log begins anew when it is long", async () => {
  const command = ["sh", "-c", "busybox yes 'a line of a log' | busybox head -c 15000000; exec sleep infinity"];
  const container = { name: "main", image: shell.image, imagePullPolicy: "Never", command };
  const pod = { apiVersion: "v1", kind: "Pod", metadata: { name: "talker" }, spec: { containers: [container] } };
  await kubectlProcess(name, ["apply", "-f", "-"], { input: JSON.stringify(pod) });
  const uid = await kubectl(name, "get", "pod", "talker", "-o=jsonpath={.metadata.uid}");
  const folder = `/var/log/pods/default_talker_${uid}/main`;
  const sizes = async () => {
    const { stdout } = await machineOf(name).exec(["sh", "-c", 'cd "$1" && wc -c *', "sh", folder]);
    return stdout;
  };
  await waitFor(
    "the kubelet keeps the old one beside",
    90,
    async () => /0\.log\.\d/.test(await sizes().catch(() => "")) || undefined,
    sizes,
  );
  const current = /(\d+) 0\.log\n/.exec(await sizes());
  expect(Number(current![1])).toBeLessThan(10 * 2 ** 20);
  expect(existsSync(folder)).toBe(false); // it is the sandbox's
  await kubectl(name, "delete", "pod", "talker", "--now");
});
