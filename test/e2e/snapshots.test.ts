/** Snapshots, and clusters that are paused: each group goes on where the test before it stopped. */
import { existsSync, openSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { imageName } from "../../artifacts/artifacts.ts";
import type { Snapshot } from "../../machines/snapshots.ts";
import { isAlive } from "../../system/processes.ts";
import { waitFor } from "../../system/wait.ts";
import {
  cli,
  endAll,
  entriesOf,
  inside,
  killedWhen,
  kubectl,
  kubectlProcess,
  optionsFile,
  ownHome,
  pathsOf,
  printed,
  refused,
  setOptions,
  supervised,
  traces,
} from "./harness.ts";

const home = await ownHome();
const [plane, node] = ["e2e-snap-c", "e2e-snap-n"];

afterAll(async () => {
  await endAll(home, plane, node);
  if (!process.env.KEEP) for (const name of [plane, node]) rmSync(optionsFile(name), { force: true });
});

const configMaps = async (name: string) =>
  (await kubectl(name, "get", "configmaps", "-o=jsonpath={.items[*].metadata.name}")).split(" ");
const note = (name: string, what: string) => kubectl(name, "create", "configmap", what);
const snapshots = (name: string) => entriesOf(pathsOf(name).snapshots);
const memoryOf = (name: string, snapshot: string) => join(pathsOf(name).snapshots, snapshot, "memory/pages.img");

/** What has a sandbox go on whose save was killed. */
const isGuard = (pid: number) => /\0thaw\0/.test(readFileSync(`/proc/${pid}/cmdline`, "utf8"));

describe("a control plane", () => {
  beforeAll(async () => {
    setOptions(plane, { mode: "control-plane" });
    await printed("up", plane);
    await note(plane, "of-the-first");
  });

  it("is kept with its memory, and runs on", async () => {
    const { sandbox } = supervised(plane);
    const saved = JSON.parse(await printed("snapshot", "save", plane, "first", "--json")) as Snapshot;
    expect(saved).toMatchObject({ name: "first", cluster: plane, kind: "memory" });
    expect(supervised(plane).sandbox).toEqual(sandbox);
    await note(plane, "of-later");
    const folder = join(pathsOf(plane).snapshots, "first");
    for (const part of [pathsOf(plane).snapshots, folder, join(folder, "memory")])
      expect(statSync(part).mode & 0o777).toBe(0o700);
    const files = Object.entries(saved.files);
    expect(files.map(([file]) => file)).toEqual(expect.arrayContaining(["disk", "memory/pages.img"]));
    for (const [file, { size }] of [...files, ["manifest.json", { size: 0 }] as const]) {
      const is = statSync(join(folder, file));
      expect(is.mode & 0o777, file).toBe(0o600);
      if (size > 0) expect(is.size, file).toBe(size);
    }
    expect(await printed("snapshot", "list", plane)).toMatch(/^first +\S+ +memory +\d+ MiB$/m);
    expect(await printed("snapshot", "show", plane)).toContain("it can be restored");
    expect(await refused("snapshot", "save", plane, "first")).toContain("has a snapshot first");
  });

  it("goes back to it as often as one likes, and Pulumi has nothing to do", async () => {
    for (const time of ["once", "twice"]) {
      const { sandbox } = supervised(plane);
      await printed("snapshot", "restore", plane, "first");
      expect(supervised(plane).sandbox!.pid, time).not.toBe(sandbox!.pid);
      const names = await configMaps(plane);
      expect(names).toContain("of-the-first");
      expect(names).not.toContain("of-later");
      await note(plane, "of-later");
    }
    expect(await printed("preview", plane)).toBe("nothing changes");
    expect(await printed("status", plane)).toContain("all is well");
    expect(await inside(plane, "hostname")).toBe(plane);
    expect(entriesOf(pathsOf(plane).bundle).sort()).toEqual(["config.json", "rootfs"]);
  });

  it("is started by its supervisor when it dies after that", async () => {
    const { sandbox } = supervised(plane);
    process.kill(sandbox!.pid, "SIGKILL");
    await waitFor("it runs again", 60, () => {
      const now = supervised(plane).sandbox;
      return (now !== null && now.pid !== sandbox!.pid && isAlive(now)) || undefined;
    });
    await waitFor("its API server answers", 60, async () => {
      const { exitCode } = await kubectlProcess(plane, ["get", "--raw=/readyz"], { reject: false });
      return exitCode === 0 || undefined;
    });
    expect(await configMaps(plane)).toContain("of-later");
  });

  it("is not taken to what does not fit, which is named", async () => {
    const file = join(pathsOf(plane).snapshots, "first/manifest.json");
    const manifest = JSON.parse(readFileSync(file, "utf8")) as Snapshot;
    for (const [change, words] of [
      [{ server: "/opt/gvisor-k3s/server-0/gvisor-k3s-node", kubernetes: "v1.30.0" }, /has Kubernetes v1\.30\.0 .* v1/],
      [{ runsc: "/opt/runsc" }, /is of another gVisor: \/opt\/runsc/],
      [{ cpu: [...manifest.cpu, "warp"] }, /needs a processor with warp/],
      [{ cluster: "other" }, /is of the cluster other/],
      [{ revision: "0" }, /was started otherwise/],
      [{ version: 2 }, /is of a newer gvisor-k3s/],
    ] as const) {
      writeFileSync(file, JSON.stringify({ ...manifest, ...change }));
      const { sandbox } = supervised(plane);
      expect(await refused("snapshot", "restore", plane, "first")).toMatch(words);
      expect((await cli("snapshot", "show", plane, "first")).exitCode).toBe(3);
      expect(supervised(plane).sandbox).toEqual(sandbox);
    }
    writeFileSync(file, JSON.stringify(manifest));
    setOptions(plane, { mode: "control-plane", sandbox: { memory: "3Gi" }, node: { apiServerArgs: ["v=1"] } });
    expect(await refused("snapshot", "restore", plane, "first")).toMatch(/^ {2}- node: it was another one/m);
    setOptions(plane, { mode: "control-plane", sandbox: { memory: "3Gi" } });
    expect(await printed("snapshot", "show", plane)).toContain("it can be restored");
    setOptions(plane, { mode: "control-plane" });
    expect(await refused("snapshot", "restore", plane, "none")).toContain("has no snapshot none");
    expect(await refused("snapshot", "restore", plane, "../first")).toContain("SNAPSHOT");
  });

  it("is not taken to what is damaged, in memory or on disk", async () => {
    await printed("snapshot", "save", plane, "damaged");
    const { sandbox } = supervised(plane);
    for (const file of [memoryOf(plane, "damaged"), join(pathsOf(plane).snapshots, "damaged/disk")]) {
      const before = readFileSync(file);
      const fd = openSync(file, "r+");
      writeSync(fd, Buffer.from([before[before.length >> 1]! ^ 1]), 0, 1, before.length >> 1);
      expect(await refused("snapshot", "restore", plane, "damaged")).toMatch(/is damaged|cut short|making|invalid/);
      writeFileSync(file, before);
    }
    expect(supervised(plane).sandbox).toEqual(sandbox);
    expect(await configMaps(plane)).toContain("of-later");
    expect(entriesOf(pathsOf(plane).bundle).sort()).toEqual(["config.json", "rootfs"]);
    await printed("snapshot", "delete", plane, "damaged");
    expect(snapshots(plane)).toEqual(["first"]);
  });

  it("lives on where a disk is full, or gVisor refuses", async () => {
    const folder = pathsOf(plane).snapshots;
    await execa("mount", ["-t", "tmpfs", "-o", "size=64m", "none", folder]);
    try {
      expect(await refused("snapshot", "save", plane, "full")).toMatch(/no space: .* MiB free/);
      expect(entriesOf(folder)).toEqual([]);
    } finally {
      await execa("umount", [folder]);
    }
    await inside(plane, "sh", "-c", unsavable);
    const { sandbox } = supervised(plane);
    expect(await refused("snapshot", "save", plane, "refused")).toMatch(/gVisor does not save .*dead dentry/);
    expect(snapshots(plane)).toEqual(["first"]);
    expect(supervised(plane).sandbox).toEqual(sandbox);
    await note(plane, "after-the-refusal");
  });

  it("lives on where a save is killed, of which nothing is left", async () => {
    await printed("snapshot", "restore", plane, "first");
    const half = join(pathsOf(plane).snapshots, ".new-killed/memory");
    const { sandbox } = supervised(plane);
    await killedWhen(
      () => existsSync(half),
      ["snapshot", "save", plane, "killed"],
      (pid) => !isGuard(pid),
    );
    await waitFor("it goes on", 60, async () => {
      const { exitCode } = await kubectlProcess(plane, ["get", "--raw=/readyz"], { reject: false, timeout: 5000 });
      return exitCode === 0 || undefined;
    });
    await note(plane, "after-the-kill");
    expect(await printed("snapshot", "list", plane)).not.toContain("killed");
    // Where what watches over it is killed as well, the next command has it go on.
    await killedWhen(() => existsSync(half), ["snapshot", "save", plane, "killed"]);
    await printed("snapshot", "save", plane, "killed");
    expect(await configMaps(plane)).toContain("after-the-kill");
    expect(supervised(plane).sandbox).toEqual(sandbox);
    expect(snapshots(plane).sort()).toEqual(["first", "killed"]);
  });

  it("has what it had where a restore is killed, and goes there the next time", async () => {
    const { replaced } = pathsOf(plane);
    await note(plane, "of-now");
    await killedWhen(() => existsSync(replaced), ["snapshot", "restore", plane, "first"]);
    await printed("up", plane);
    expect(existsSync(replaced)).toBe(false);
    await killedWhen(() => existsSync(replaced), ["snapshot", "restore", plane, "first"]);
    await printed("snapshot", "restore", plane, "first");
    expect(existsSync(replaced)).toBe(false);
    expect(await configMaps(plane)).not.toContain("of-now");
    expect(await printed("preview", plane)).toBe("nothing changes");
  });

  it("takes nothing while it is paused, and goes on", async () => {
    await note(plane, "before-the-pause");
    await printed("pause", plane);
    expect({ ...traces(home, plane), files: [] }).toMatchObject({ processes: [], mounts: [], links: [], cgroups: [] });
    expect(await printed("list")).toMatch(/^e2e-snap-c +paused/m);
    expect(JSON.parse(await printed("status", plane, "--json"))).toMatchObject({ state: "paused", problems: [] });
    expect(await refused("pause", plane)).toContain("is paused already");
    expect(await refused("snapshot", "save", plane)).toContain("gvisor-k3s resume");
    expect(await printed("resume", plane)).toContain("goes on");
    expect(await configMaps(plane)).toContain("before-the-pause");
    expect(existsSync(pathsOf(plane).paused)).toBe(false);
    expect(await printed("preview", plane)).toBe("nothing changes");
    expect(await refused("resume", plane)).toContain("runs already");
  });

  it("starts with what is on its disk where the memory is damaged, or `up` comes first", async () => {
    await printed("pause", plane);
    writeFileSync(join(pathsOf(plane).paused, "memory/pages.img"), "no memory");
    expect(await printed("resume", plane)).toContain("start again");
    expect(await configMaps(plane)).toContain("before-the-pause");
    await printed("pause", plane);
    await printed("up", plane);
    expect(await configMaps(plane)).toContain("before-the-pause");
    expect(existsSync(pathsOf(plane).paused)).toBe(false);
  });

  it("takes its snapshots along", async () => {
    await printed("destroy", plane);
    expect(existsSync(pathsOf(plane).state)).toBe(false);
  });
});

/** Has a FIFO open that has no name any more, which gVisor does not save. */
const unsavable = `
  mkfifo /root/fifo
  (exec 3<>/root/fifo; rm /root/fifo; exec sleep 1000) </dev/null >/dev/null 2>&1 &
  while [ -e /root/fifo ]; do sleep 0.1; done
`;

describe("a node with pods", () => {
  const image = imageName("testpod");
  const claim = { name: "data", accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Mi" } } };
  /** Writes into its volume what it is told. */
  const data = async () => await inside(node, "sh", "-c", "cat /var/lib/rancher/k3s/storage/*/noted");

  beforeAll(async () => {
    setOptions(node, { addons: { coredns: { enabled: false }, metricsServer: { enabled: false } } });
    await printed("up", node);
    const { name, ...spec } = claim;
    const volume = { name, persistentVolumeClaim: { claimName: name } };
    const container = { name: "main", image, imagePullPolicy: "Never", volumeMounts: [{ name, mountPath: "/data" }] };
    const objects = [
      { apiVersion: "v1", kind: "PersistentVolumeClaim", metadata: { name }, spec },
      {
        apiVersion: "v1",
        kind: "Pod",
        metadata: { name: "kept" },
        spec: { containers: [container], volumes: [volume] },
      },
    ];
    const list = { apiVersion: "v1", kind: "List", items: objects };
    await kubectlProcess(node, ["apply", "-f", "-"], { input: JSON.stringify(list) });
    await ready("kept");
    await inside(node, "sh", "-c", "echo then > $(echo /var/lib/rancher/k3s/storage/*)/noted");
  });

  const ready = (pod: string) => kubectl(node, "wait", `pod/${pod}`, "--for=condition=Ready", "--timeout=120s");
  const tasks = async () => (await inside(node, "ctr", "-n", "k8s.io", "tasks", "ls", "-q")).trim().split("\n").sort();
  const uid = (pod: string) => kubectl(node, "get", "pod", pod, "-o=jsonpath={.metadata.uid}");

  it("goes back to the same pods, and to their data", async () => {
    const before = await uid("kept");
    const containers = await tasks();
    const saved = JSON.parse(await printed("snapshot", "save", node, "--json")) as Snapshot;
    expect(saved.kind).toBe("files");
    expect(await tasks()).toEqual(containers); // nothing was restarted
    await inside(node, "sh", "-c", "echo now > $(echo /var/lib/rancher/k3s/storage/*)/noted");
    await kubectl(node, "delete", "pod", "kept", "--grace-period=1");
    await kubectl(node, "run", "later", `--image=${image}`, "--image-pull-policy=Never");

    await printed("snapshot", "restore", node);
    await ready("kept");
    expect(await uid("kept")).toBe(before);
    expect(await data()).toBe("then");
    const pods = await kubectl(node, "get", "pods", "-o=jsonpath={.items[*].metadata.name}");
    expect(pods.split(" ").sort()).toEqual(["kept", "testpod"]);
    expect(await printed("preview", node)).toBe("nothing changes");
    await reachable("testpod");
  });

  it("has them again after a pause", async () => {
    const before = await uid("kept");
    await printed("pause", node);
    const left = traces(home, node);
    expect(left).toMatchObject({ links: [], namespaces: [], cgroups: [] });
    expect(left.processes.filter((process) => process.includes(pathsOf(node).state))).toEqual([]);
    await printed("resume", node);
    await waitFor("its pods run again", 120, async () => {
      return (await tasks()).length >= 4 || undefined; // each has its pause container
    });
    await ready("kept");
    expect(await uid("kept")).toBe(before);
    expect(await data()).toBe("then");
    await reachable("testpod");
    expect(await printed("preview", node)).toBe("nothing changes");
  });

  /** A pod's network works. */
  async function reachable(pod: string): Promise<void> {
    await waitFor(`${pod} answers`, 60, async () => {
      const address = await kubectl(node, "get", "pod", pod, "-o=jsonpath={.status.podIP}");
      const answer = await inside(node, "wget", "-q", "-O-", `http://${address}:8080/healthz`).catch(() => undefined);
      return answer !== undefined || undefined;
    });
  }
});
