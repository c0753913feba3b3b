/** The life of a sandbox, on real parts, in one order: each test goes on where the one before it stopped. */
import { once } from "node:events";
import { readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import { get } from "node:https";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { artifactFolder, goArch, imageName, pathInSandbox } from "../../artifacts/artifacts.ts";
import { isAlive } from "../../system/processes.ts";
import { waitFor } from "../../system/wait.ts";
import {
  changes,
  cli,
  endAll,
  identity,
  inside,
  kill,
  killProcess,
  killSandbox,
  kubectl,
  limits,
  open,
  ownHome,
  pathsOf,
  root,
  services,
  stateFiles,
  supervised,
  traces,
} from "./harness.ts";

const home = await ownHome();
const [first, second] = ["e2e-a", "e2e-b"];
/** The options of the first sandbox, once both of these were changed. */
const altered = { containerd: { snapshotter: "native" as const }, sandbox: { memory: "3Gi" } };
let before: ReturnType<typeof traces>;

beforeAll(() => {
  before = { ...traces(home, first, second), files: [] };
});

afterAll(async () => {
  // A test that failed left these behind.
  await endAll(home, first, second);
});

/** Starts a pod, of the test image by default, and returns its address. */
async function startPod(pod: string, image = imageName("testpod")): Promise<string> {
  await kubectl(first, "run", pod, `--image=${image}`, "--image-pull-policy=Never", "--restart=Never");
  await kubectl(first, "wait", `pod/${pod}`, "--for=condition=Ready", "--timeout=60s");
  return await kubectl(first, "get", "pod", pod, "-o=jsonpath={.status.podIP}");
}

describe("up", () => {
  it("ends with a Running pod, and says what a user wants to know", async () => {
    const { exitCode, all } = await cli("up", first);
    expect(exitCode, all).toBe(0);
    expect(all).toMatch(/^pod +testpod$/m);
    expect(all).toMatch(/^phase +Running$/m);
    expect(all).toMatch(/^log +gvisor-k3s test pod testpod is running on kernel \S*gvisor/m);
    expect(all).toContain(`kubeconfig  ${pathsOf(first).kubeconfig}`);
    for (const stage of ["sandbox-process", "containerd-apply", "node-server", "network-apply", "testpod-pod"])
      expect(all.match(new RegExp(`^\\[.* s\\] create ${stage} \\(\\d+\\.\\d s\\)$`, "gm"))).toHaveLength(1);
  });

  it("keeps keys to their owner", async () => {
    const { kubeconfig, state } = pathsOf(first);
    expect(statSync(kubeconfig).mode & 0o777).toBe(0o600);
    expect(statSync(state).mode & 0o777).toBe(0o700);
    const key = /client-key-data: (\S+)/.exec(readFileSync(kubeconfig, "utf8"))![1]!;
    const secrets = [key, Buffer.from(key, "base64").toString().split("\n")[1]!];
    expect(
      stateFiles(home).filter((file) => secrets.some((secret) => readFileSync(file, "utf8").includes(secret))),
    ).toEqual([]);
  });

  it("holds the sandbox to its memory limit", () => {
    expect(limits(first).memory).toBe(4 * 2 ** 30);
  });

  it("a second time changes nothing", async () => {
    const stack = await open(first);
    const { changed } = await changes((options) => stack.up(options));
    expect(changed).toEqual({});
  });
});

describe("the pod", () => {
  it("has logs and takes commands", async () => {
    const { testPod } = await (await open(first)).outputs();
    expect(await kubectl(first, "logs", "testpod")).toBe((testPod!.value as { logs: string }).logs);
    expect(await kubectl(first, "exec", "testpod", "--", "/testpod", "get", "http://127.0.0.1:8080/healthz")).toBe(
      "ok",
    );
  });

  it("reaches other pods, and the API server", async () => {
    const address = await startPod("peer");
    expect(await kubectl(first, "exec", "testpod", "--", "/testpod", "get", `http://${address}:8080/`)).toBe(
      `peer ${address}`,
    );
    const server = /server: (\S+)/.exec(readFileSync(pathsOf(first).kubeconfig, "utf8"))![1]!;
    expect(
      JSON.parse(await kubectl(first, "exec", "testpod", "--", "/testpod", "get", `${server}/version`)),
    ).toHaveProperty("gitVersion");
  });

  it("is reached from the node", async () => {
    const address = await kubectl(first, "get", "pod", "peer", "-o=jsonpath={.status.podIP}");
    expect(await inside(first, pathInSandbox({ name: "images" }, "testpod"), "get", `http://${address}:8080/`)).toBe(
      `peer ${address}`,
    );
  });
});

describe("the API server", () => {
  it("refuses who has no credentials", async () => {
    const { address } = await (await open(first)).outputs();
    // The question is not who answers, but what.
    const request = get(`https://${address!.value}:6443/api/v1/secrets`, { rejectUnauthorized: false, agent: false });
    const [response] = (await once(request, "response")) as [IncomingMessage];
    response.resume();
    expect(response.statusCode).toBe(401);
  });
});

describe("a change of the configuration", () => {
  it("previews the changed lines and is one restart of containerd, which pods survive", async () => {
    const stack = await open(first, { containerd: { snapshotter: "native" } });
    const preview = await changes((options) => stack.preview(options));
    expect(preview.changed).toEqual({ update: ["containerd-apply"] });
    const lines = preview.output.split("\n").map((line) => line.trim());
    expect(lines.filter((line) => /^[-+] .*snapshotter = /.test(line)).sort()).toEqual(
      ["overlayfs", "native"]
        .flatMap((value) => Array(2).fill(`${value === "native" ? "+" : "-"} snapshotter = "${value}"`))
        .sort(),
    );
    const [pod, started] = [await identity(first, "testpod"), (await services(first)).containerd!.pid];
    expect((await changes((options) => stack.up(options))).changed).toEqual({ update: ["containerd-apply"] });
    expect((await services(first)).containerd!.pid).not.toBe(started);
    expect(await identity(first, "testpod")).toBe(pod);
  });
});

describe("a change of the sandbox's limits", () => {
  it("is a write to its cgroup, and restarts nothing", async () => {
    const [pod, { sandbox }] = [await identity(first, "testpod"), supervised(first)];
    const stack = await open(first, altered);
    expect((await changes((options) => stack.preview(options))).changed).toEqual({ update: ["sandbox-process"] });
    expect((await changes((options) => stack.up(options))).changed).toEqual({ update: ["sandbox-process"] });
    expect(limits(first).memory).toBe(3 * 2 ** 30);
    expect(supervised(first).sandbox).toEqual(sandbox);
    expect(await identity(first, "testpod")).toBe(pod);
    expect((await changes((options) => stack.up(options))).changed).toEqual({});
  });
});

describe("a change that the sandbox has to be started for", () => {
  it("is one restart of the sandbox, with all that is in it", async () => {
    const uid = (await identity(first, "testpod")).split(" ").at(0);
    const stack = await open(first, { ...altered, egress: { enabled: false } });
    const { changed } = await changes((options) => stack.up(options));
    expect(Object.keys(changed)).toEqual(["update"]);
    expect(supervised(first).egress).toBeNull();
    await kubectl(first, "wait", "pod/testpod", "--for=condition=Ready", "--timeout=60s");
    expect((await identity(first, "testpod")).split(" ").at(0)).toBe(uid);
    expect((await changes((options) => stack.up(options))).changed).toEqual({});
    await (await open(first, altered)).up();
  });
});

describe("an archive of the user's", () => {
  it("is imported, compressed as it is, and its image runs", async () => {
    const [tools, archive, image] = [
      artifactFolder({ name: "images" }),
      join(home, "extra.tar"),
      "example.test/extra:1",
    ];
    await execa(join(tools, "mkimage"), [
      "--platform",
      `linux/${goArch()}`,
      "--file",
      `${join(tools, "testpod")}:/testpod:0755`,
      "--entrypoint",
      "/testpod",
      "--name",
      image,
      "-o",
      archive,
    ]);
    writeFileSync(`${archive}.gz`, gzipSync(readFileSync(archive)));
    const stack = await open(first, { ...altered, images: [`${archive}.gz`] });
    expect((await changes((options) => stack.up(options))).changed).toEqual({ update: ["images-import"] });
    rmSync(archive);
    await startPod("extra", image);
  });

  it("is imported by command, and what is none is told before anything is done", async () => {
    const image = "example.test/by-command:1";
    const [tools, archive] = [artifactFolder({ name: "images" }), join(home, "by-command.tar")];
    await execa(join(tools, "mkimage"), [
      "--platform",
      `linux/${goArch()}`,
      "--file",
      `${join(tools, "testpod")}:/testpod:0755`,
      "--entrypoint",
      "/testpod",
      "--name",
      image,
      "-o",
      archive,
    ]);
    const refused = await cli("images", "import", "-c", first, archive, "/nowhere.tar");
    expect(refused.exitCode).toBe(1);
    expect(refused.all).toContain('images = "/nowhere.tar": there is no such file');
    const { exitCode, all } = await cli("images", "import", "-c", first, archive);
    expect(exitCode, all).toBe(0);
    rmSync(archive);
    await startPod("by-command", image);
  });
});

describe("a rule of the runtime", () => {
  /** The masked paths of a pod's container as its runtime saw them. */
  const maskedPaths = async (pod: string): Promise<string[]> => {
    const id = (
      await kubectl(first, "get", "pod", pod, "-o=jsonpath={.status.containerStatuses[0].containerID}")
    ).replace("containerd://", "");
    return JSON.parse(
      await inside(first, "/bin/cat", `/run/containerd/io.containerd.runtime.v2.task/k8s.io/${id}/config.json`),
    ).linux.maskedPaths;
  };

  it("brings in the wrapper, holds for pods that start from now on, and leaves the others alone", async () => {
    const stack = await open(first, {
      ...altered,
      images: [join(home, "extra.tar.gz")],
      runtime: { rules: [{ dropMaskedPath: "/proc/kcore" }] },
    });
    const pod = await identity(first, "testpod");
    expect((await changes((options) => stack.up(options))).changed).toEqual({
      update: ["runtime-check", "containerd-apply"],
    });
    await startPod("ruled");
    expect(await maskedPaths("ruled")).not.toContain("/proc/kcore");
    expect(await maskedPaths("testpod")).toContain("/proc/kcore");
    expect(await identity(first, "testpod")).toBe(pod);
  });
});

describe("what dies", () => {
  it("containerd comes back by itself, and pods live on", async () => {
    const pod = await identity(first, "testpod");
    await kill(first, "containerd");
    await startPod("after-containerd");
    expect(await identity(first, "testpod")).toBe(pod);
  });

  it("the node's server comes back by itself, and pods live on", async () => {
    const pod = await identity(first, "testpod");
    await kill(first, "server");
    await waitFor(
      "the API server answers",
      60,
      async () => (await kubectl(first, "get", "--raw=/readyz").catch(() => undefined)) === "ok" || undefined,
    );
    await startPod("after-server");
    expect(await identity(first, "testpod")).toBe(pod);
  });

  it("the sandbox is started again by its supervisor, with its cluster and its pods", async () => {
    const { sandbox } = supervised(first);
    const [uid, container] = (await identity(first, "testpod")).split(" ");
    await killProcess(sandbox!);
    await waitFor(
      "the sandbox runs again",
      60,
      () => (supervised(first).sandbox?.starts ?? 0) > sandbox!.starts || undefined,
    );
    // Until the kubelet has looked, the API tells what was before.
    await waitFor("the pod runs anew", 120, async () => {
      const [, now] = (await identity(first, "testpod").catch(() => "")).split(" ");
      return (now !== undefined && now !== container) || undefined;
    });
    await kubectl(first, "wait", "pod/testpod", "--for=condition=Ready", "--timeout=60s");
    expect((await identity(first, "testpod")).split(" ").at(0)).toBe(uid);
    expect(await kubectl(first, "exec", "testpod", "--", "/testpod", "get", "http://127.0.0.1:8080/healthz")).toBe(
      "ok",
    );
    const stack = await open(first);
    expect((await changes((options) => stack.preview(options))).changed.update ?? []).not.toContain("node-server");
  });

  it("the sandbox comes back with the next up, with its cluster and its pods", async () => {
    const kubeconfig = readFileSync(pathsOf(first).kubeconfig, "utf8");
    const uid = (await identity(first, "testpod")).split(" ").at(0);
    await killSandbox(first);
    const stack = await open(first);
    const preview = await changes((options) => stack.preview(options));
    expect(preview.changed.update).toContain("sandbox-process");
    expect(Object.keys(preview.changed)).toEqual(["update"]); // nothing is made anew or lost
    await stack.up();
    expect(readFileSync(pathsOf(first).kubeconfig, "utf8")).toBe(kubeconfig);
    await kubectl(first, "wait", "pod/testpod", "--for=condition=Ready", "--timeout=60s");
    expect((await identity(first, "testpod")).split(" ").at(0)).toBe(uid);
    expect(await kubectl(first, "exec", "testpod", "--", "/testpod", "get", "http://127.0.0.1:8080/healthz")).toBe(
      "ok",
    );
    rmSync(join(home, "extra.tar.gz"));
  });
});

describe("a second sandbox", () => {
  /**
   * Starts `up` in a process group of its own, as a terminal does, and sends the group a signal once a condition holds.
   */
  async function interruptedUp(
    signal: "SIGINT" | "SIGKILL",
    what: string,
    condition: () => Promise<true | undefined> | true | undefined,
  ) {
    const run = execa("node", [join(root, "automation/cli.ts"), "up", second], {
      all: true,
      reject: false,
      detached: true,
    });
    await waitFor(what, 120, condition);
    process.kill(-run.pid!, signal);
    return await run;
  }

  it("is made beside the first by an up that was killed, killed once more, and then run", async () => {
    await interruptedUp(
      "SIGKILL",
      "containerd is being started",
      () => fileExists(join(pathsOf(second).written, "containerd.json")) || undefined,
    );
    await waitFor("the steps of the killed run end", 60, () =>
      traces(home).processes.some((line) => line.includes("steps/main.ts")) ? undefined : true,
    );
    const podIsThere = async () =>
      (await kubectl(second, "get", "pod", "testpod", "-o=name").catch(() => undefined)) ? true : undefined;
    await interruptedUp("SIGKILL", "the pod is made", podIsThere);
    const { exitCode, all } = await cli("up", second);
    expect(exitCode, all).toBe(0);
    expect(all).toMatch(/^phase +Running$/m);
    expect(await kubectl(second, "get", "nodes", "-o=name")).toBe(`node/${second}`);
    expect(await kubectl(first, "get", "nodes", "-o=name")).toBe(`node/${first}`);
  });

  it("an interrupt lets go of the stack, and says so", async () => {
    await killSandbox(second);
    const { exitCode, all } = await interruptedUp(
      "SIGINT",
      "the sandbox is started again",
      () => (fileExists(pathsOf(second).supervisor) && isAlive(supervised(second).sandbox)) || undefined,
    );
    expect(exitCode).toBe(1);
    expect(all).toContain("interrupted; what runs is ended first");
    expect(all).toContain("up failed; what is done is kept, and the next up goes on from there");
    const again = await cli("up", second);
    expect(again.exitCode, again.all).toBe(0);
    expect(again.all).not.toContain("its lock is removed");
  });
});

describe("destroy", () => {
  it("of a dead sandbox leaves the other one alone", async () => {
    await killSandbox(second);
    const { exitCode, all } = await cli("destroy", second);
    expect(exitCode, all).toBe(0);
    expect(traces(home).processes.filter((line) => line.includes(second))).toEqual([]);
    expect(await kubectl(first, "get", "--raw=/readyz")).toBe("ok");
  });

  it("leaves nothing", async () => {
    const { exitCode, all } = await cli("destroy", first);
    expect(exitCode, all).toBe(0);
    expect(traces(home, first, second)).toEqual(before);
  });
});

function fileExists(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined;
}
