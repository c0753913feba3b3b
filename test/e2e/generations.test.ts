/** Other gVisors than the pinned one: what they lack is found, and a node runs as far as they can carry one. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { artifactFolder, goArch, imageName } from "../../artifacts/artifacts.ts";
import type { QuirkId } from "../../config/quirks.ts";
import { CRUN, type StackConfigInput } from "../../config/schema.ts";
import { waitFor } from "../../system/wait.ts";
import { build } from "../../toolchain/make.ts";
import { generations } from "../generations.ts";
import {
  changes,
  cli,
  endAll,
  inside,
  kubectl,
  kubectlProcess,
  open,
  ownHome,
  pathsOf,
  root,
  traces,
} from "./harness.ts";

const home = await ownHome();
const shell = "example.test/shell:1";
const archive = join(home, "shell.tar");
let before: ReturnType<typeof traces>;

beforeAll(async () => {
  before = { ...traces(home, ...names), files: [] };
  const tools = await build({ name: "images" });
  const programs = ["busybox", "sh", "tar", "cat", "sleep"].flatMap((program) => [
    "--file",
    `/bin/busybox:/bin/${program}:0755`,
  ]);
  await execa(join(tools, "mkimage"), [
    "--platform",
    `linux/${goArch()}`,
    ...programs,
    "--entrypoint",
    "/bin/sleep",
    "--name",
    shell,
    "-o",
    archive,
  ]);
});

afterAll(async () => {
  await endAll(home, ...names);
});

const stackOf = (generation: string) => `e2e-${generation.replace("-", "")}`;
const names = generations.map(({ name }) => stackOf(name));

/** The options of a stack on a generation; the runsc that is built is the default, and so not named. */
async function optionsOn(generation: string, more: Omit<StackConfigInput, "name"> = {}) {
  const { runsc, sandbox } = generations.find(({ name }) => name === generation)!;
  const path = await runsc(() => {});
  if (path.startsWith(artifactFolder({ name: "runsc" }))) return { images: [archive], ...more };
  return { images: [archive], ...more, sandbox: { ...sandbox, ...more.sandbox, runsc: path } };
}

async function startShell(stack: string, pod: string): Promise<void> {
  await kubectl(stack, "run", pod, `--image=${shell}`, "--image-pull-policy=Never", "--restart=Never", "--", "100000");
  await kubectl(stack, "wait", `pod/${pod}`, "--for=condition=Ready", "--timeout=60s");
}

/** Runs a command in a pod as a user does, and returns how it ended. */
const execIn = (stack: string, pod: string, ...command: string[]) =>
  kubectlProcess(stack, ["exec", pod, "--", ...command], { reject: false });

const everywhere: QuirkId[] = [
  "no-cgroup-mounts",
  "kernel-tunables",
  "dev-kmsg",
  "no-freezer",
  "old-kernel-cri",
  "no-netfilter",
  "no-pod-sysctls",
  "no-user-namespaces",
];

describe.each<[string, QuirkId[], string[]]>([
  ["2026-09", everywhere, []],
  [
    "2025-02",
    [...everywhere, "no-setuid", "procfs-root-inode", "tmpfs-nr-blocks", "setns-exec", "overlay-upper"],
    ["procfs-root-inode", "setns-exec", "tmpfs-nr-blocks"],
  ],
])("gVisor %s", (generation, lacks, patches) => {
  const name = stackOf(generation);

  it("carries a pod; what it lacks is an output, and runc has the patches for that and no more", async () => {
    const stack = await open(name, await optionsOn(generation));
    const { outputs } = await stack.up();
    expect(outputs.testPod!.value).toMatchObject({
      phase: "Running",
      logs: expect.stringContaining("gvisor-k3s test pod testpod is running"),
    });
    expect((outputs.quirks!.value as string[]).toSorted()).toEqual(lacks.toSorted());
    const runc = artifactFolder({ name: "runc", ...(patches.length > 0 ? { patches } : {}) })
      .split("/")
      .at(-1);
    const config = await inside(name, "/bin/cat", "/etc/containerd/config.toml");
    const [, wrapper] = /BinaryName = "(\/opt\/gvisor-k3s\/runc-wrapper-[0-9a-f]+)\/runc-wrapper"/.exec(config)!;
    const { runtime } = JSON.parse(await inside(name, "/bin/cat", `${wrapper}/rules.json`)) as { runtime: string[] };
    expect(runtime).toEqual([`/opt/gvisor-k3s/${runc}/runc`]);
  });

  it("changes nothing the second time, nor when what was found is named", async () => {
    const options = await optionsOn(generation);
    expect((await changes((run) => open(name, options).then((stack) => stack.up(run)))).changed).toEqual({});
    const named = await open(name, { ...options, quirks: lacks });
    expect((await changes((run) => named.preview(run))).changed).toEqual({ delete: ["quirks-ask"] });
  });

  it("has logs, and takes commands with their exit codes", async () => {
    await startShell(name, "shell");
    expect(await kubectl(name, "logs", "testpod")).toContain("testpod is running");
    expect((await execIn(name, "shell", "sh", "-c", "echo out; exit 7")).exitCode).toBe(7);
    expect((await execIn(name, "shell", "cat", "/etc/hostname")).stdout).toBe("shell");
    const typed = await kubectlProcess(name, ["exec", "-i", "shell", "--", "cat"], { input: "typed in" });
    expect(typed.stdout).toBe("typed in");
    // It is in the container, and nowhere else in the sandbox.
    expect((await execIn(name, "shell", "busybox", "ls", "/")).stdout).not.toContain("opt");
    expect((await execIn(name, "shell", "cat", "/proc/1/root/etc/rancher/k3s/k3s.yaml")).exitCode).toBe(1);
  });

  it("copies files in and out", async () => {
    const [sent, received] = [join(home, "sent"), join(home, "received")];
    writeFileSync(sent, Buffer.from(Array.from({ length: 300_000 }, (_, index) => index % 251)));
    await kubectl(name, "cp", sent, "shell:/copied");
    await kubectl(name, "cp", "shell:/copied", received);
    expect(readFileSync(received).equals(readFileSync(sent))).toBe(true);
  });

  it("forwards a port", async () => {
    const forward = kubectlProcess(name, ["port-forward", "testpod", ":8080"], { reject: false });
    const line = await new Promise<string>((resolve) =>
      forward.stdout!.once("data", (data: Buffer) => resolve(String(data))),
    );
    const response = await fetch(`http://127.0.0.1:${/127\.0\.0\.1:(\d+)/.exec(line)![1]}/healthz`);
    expect(await response.text()).toBe("ok\n");
    forward.kill();
    await forward;
  });
});

it(
  "a preview of another gVisor shows the lines of the configuration that it changes, and leaves " +
    "everything as it is",
  async () => {
    const [name, running] = [stackOf("2026-09"), traces(home)];
    const older = await generations.find((generation) => generation.name === "2025-02")!.runsc(() => {});
    const stack = await open(name, { images: [archive], sandbox: { runsc: older } });
    const { output } = await changes((run) => stack.preview(run));
    const lines = output.split("\n").map((line) => line.trim());
    expect(lines).toEqual(expect.arrayContaining(['- snapshotter = "overlayfs"', '+ snapshotter = "native"']));
    expect(lines.filter((line) => /^[-+] BinaryName = "\/opt\/gvisor-k3s\/runc-/.test(line))).toHaveLength(2);
    for (const patch of ["procfs-root-inode", "setns-exec", "tmpfs-nr-blocks"])
      expect(output).toMatch(new RegExp(`\\+ +\\[\\d\\]: "${patch}"`));
    expect(traces(home)).toEqual(running);
  },
);

describe("crun", () => {
  const name = stackOf("2026-09");

  it("takes the place of runc by one restart of containerd; its pods run, have logs and take commands", async () => {
    const stack = await open(name, await optionsOn("2026-09", { runtime: { name: "crun" } }));
    expect((await changes((run) => stack.up(run))).changed).toEqual({
      create: ["crun", "crun-build"],
      delete: ["runc-build", "runc"],
      update: ["runtime-check", "containerd-apply"],
    });
    await startShell(name, "by-crun");
    expect((await execIn(name, "by-crun", "sh", "-c", "exit 7")).exitCode).toBe(7);
    await kubectl(name, "run", "talks", `--image=${imageName("testpod")}`, "--image-pull-policy=Never");
    await kubectl(name, "wait", "pod/talks", "--for=condition=Ready", "--timeout=60s");
    expect(await kubectl(name, "logs", "talks")).toContain("talks is running");
    await kubectl(name, "delete", "pod", "by-crun", "talks", "--now");
    expect((await execIn(name, "shell", "sh", "-c", "exit 7")).exitCode).toBe(7);
  });

  it("is refused by the check, in its own words, where it cannot run", async () => {
    const stack = await open(stackOf("2025-02"), await optionsOn("2025-02", { runtime: { name: "crun", path: CRUN } }));
    await expect(stack.up()).rejects.toThrow(/error opening file .\/proc\/self\/setgroups.: No such file or directory/);
  });
});

it("gVisor 2022-12 is told to carry no pods, with each reason and what to do", async () => {
  const stack = await open(stackOf("2022-12"), await optionsOn("2022-12"));
  await expect(stack.up()).rejects.toThrow(
    /this sandbox cannot run pods:[\s\S]*rshared: the kubelet cannot run here[\s\S]*no-veth: [\s\S]*no-subreaper: [\s\S]*set mode: control-plane/,
  );
});

describe("mode: control-plane", () => {
  it.each(generations.map(({ name }) => name))(
    "works in full on gVisor %s, which may have been a node before",
    async (generation) => {
      const stack = await open(stackOf(generation), await optionsOn(generation, { mode: "control-plane" }));
      const { outputs } = await stack.up();
      expect(outputs.testPod).toBeUndefined();
      await useControlPlane(stackOf(generation));
      expect((await changes((run) => stack.up(run))).changed).toEqual({});
    },
  );

  it("can be left for a node, which is another cluster", async () => {
    const name = stackOf("2026-09");
    const kubeconfig = readFileSync(pathsOf(name).kubeconfig, "utf8");
    const stack = await open(name, await optionsOn("2026-09"));
    const { outputs } = await stack.up();
    expect(outputs.testPod!.value).toMatchObject({ phase: "Running" });
    expect(outputs.kubeconfig!.value).not.toBe(kubeconfig);
    expect(await kubectl(name, "get", "deployments", "-o=name")).toBe("");
    expect((await changes((run) => stack.up(run))).changed).toEqual({});
  });
});

/** What a control plane is for: RBAC, custom resources, admission, server-side dry runs, controllers. */
async function useControlPlane(name: string): Promise<void> {
  const apply = (manifest: object, ...flags: string[]) =>
    kubectlProcess(name, ["apply", "--server-side", "-f", "-", ...flags], { input: JSON.stringify(manifest) });
  const crd = {
    apiVersion: "apiextensions.k8s.io/v1",
    kind: "CustomResourceDefinition",
    metadata: { name: "things.example.test" },
    spec: {
      group: "example.test",
      scope: "Namespaced",
      names: { plural: "things", singular: "thing", kind: "Thing" },
      versions: [
        {
          name: "v1",
          served: true,
          storage: true,
          schema: {
            openAPIV3Schema: {
              type: "object",
              properties: { spec: { type: "object", properties: { size: { type: "integer", maximum: 3 } } } },
            },
          },
        },
      ],
    },
  };
  await apply(crd);
  await kubectl(name, "wait", "--for=condition=Established", "crd/things.example.test", "--timeout=30s");
  const thing = (size: number) => ({
    apiVersion: "example.test/v1",
    kind: "Thing",
    metadata: { name: "a", namespace: "default" },
    spec: { size },
  });
  await apply(thing(3));
  await expect(apply(thing(4))).rejects.toThrow("should be less than or equal to 3");
  // A dry run passes admission and leaves nothing.
  const deployment = (replicas: number) => ({
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "web", namespace: "default" },
    spec: {
      replicas,
      selector: { matchLabels: { app: "web" } },
      template: {
        metadata: { labels: { app: "web" } },
        spec: { containers: [{ name: "main", image: "example.test/web:1" }] },
      },
    },
  });
  expect((await apply(deployment(2), "--dry-run=server")).stdout).toBe(
    "deployment.apps/web serverside-applied (server dry run)",
  );
  expect(await kubectl(name, "get", "deployments", "-o=name")).toBe("");
  // The controllers work: a deployment gets its pods, which wait for a node.
  await apply(deployment(2));
  await kubectl(name, "wait", "deployment/web", "--for=jsonpath={.status.replicas}=2", "--timeout=30s");
  expect(await kubectl(name, "get", "pods", "-o=jsonpath={.items[*].status.phase}")).toBe("Pending Pending");
  await kubectl(name, "create", "role", "reader", "--verb=get", "--resource=pods");
  await kubectl(name, "create", "rolebinding", "reader", "--role=reader", "--user=jane");
  const may = (verb: string) => kubectlProcess(name, ["auth", "can-i", verb, "pods", "--as=jane"], { reject: false });
  expect((await may("get")).stdout).toBe("yes");
  expect((await may("delete")).stdout).toBe("no");
  expect(await kubectl(name, "get", "nodes", "-o=name")).toBe("");
}

describe("doctor", () => {
  const name = "e2e-doctor";
  const settings = join(root, `Pulumi.${name}.yaml`);

  afterAll(async () => await execa("rm", ["-f", settings]));

  it("tells with exit code 0 that a node can run, in a trial sandbox of which nothing stays", async () => {
    const running = traces(home);
    const { exitCode, stdout } = await cli("doctor", name, "--json");
    expect(exitCode).toBe(0);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({
      probed: expect.stringContaining("trial sandbox"),
      blockers: [],
      recommendedMode: "node",
    });
    expect(report.findings.find(({ quirk }: { quirk: string }) => quirk === "kernel-tunables")).toMatchObject({
      found: true,
      remedy: "kernel facade",
      answer: expect.stringContaining("/proc/sys/vm/panic_on_oom"),
    });
    expect(traces(home)).toEqual(running);
  });

  it("that is killed leaves a trial sandbox, which the next one removes", async () => {
    const running = traces(home);
    const trial = () => traces(home).processes.some((line) => / supervise .*\/sandboxes\/try_/.test(line)) || undefined;
    const killed = execa("node", [join(root, "automation/cli.ts"), "doctor", name], { reject: false });
    await waitFor("the trial sandbox runs", 60, trial);
    killed.kill("SIGKILL");
    await killed;
    expect(traces(home)).not.toEqual(running);
    expect((await cli("doctor", name)).exitCode).toBe(0);
    expect(traces(home)).toEqual(running);
  });

  it("asks a sandbox that runs, and finds in it what was found before it was set up", async () => {
    const { exitCode, all } = await cli("doctor", stackOf("2026-09"));
    expect(exitCode).toBe(0);
    expect(all).toMatch(/^probed the sandbox e2e-202609; kernel /);
    const found = [...all.matchAll(/^(\S+) +yes /gm)].map(([, quirk]) => quirk);
    expect(found.toSorted()).toEqual(everywhere.toSorted());
  });

  it("tells with exit code 3 that only a control plane can run, and why", async () => {
    const { sandbox, runsc } = generations.find((generation) => generation.name === "2022-12")!;
    writeFileSync(
      settings,
      JSON.stringify({ config: { "gvisor-k3s:sandbox": { ...sandbox, runsc: await runsc(() => {}) } } }),
    );
    const { exitCode, all } = await cli("doctor", name);
    expect(exitCode).toBe(3);
    expect(all).toContain(
      'rshared: "kubelet: failed to make /var/lib/kubelet rshared: invalid argument"; the kernel\'s ' +
        "answer: mount --make-rshared: invalid argument",
    );
    expect(all).toMatch(/recommended {2}mode: control-plane$/);
  });

  it.each(generations)(
    "works within a sandbox of $name, as people find themselves in one",
    async ({ runsc, sandbox }) => {
      const program = await runsc(() => {});
      const state = join(home, "inside");
      const command = [process.execPath, join(root, "automation/cli.ts"), "doctor", "--json"];
      const { stdout, exitCode } = await execa(
        program,
        [
          `--root=${state}`,
          `--platform=${sandbox.platform ?? "systrap"}`,
          "--network=none",
          "--ignore-cgroups",
          "do",
          ...command,
        ],
        { reject: false, cwd: root, timeout: 60_000 },
      );
      const report = JSON.parse(stdout);
      expect(report.probed).toBe("this machine");
      expect(exitCode).toBe(sandbox.platform === "ptrace" ? 3 : 0);
      expect(report.recommendedMode).toBe(sandbox.platform === "ptrace" ? "control-plane" : "node");
      await execa("umount", [join(state, "null-netns")], { reject: false }); // runsc's own
      await execa("rm", ["-rf", state]);
    },
  );
});

it("destroy leaves nothing of any of them", async () => {
  for (const { name } of generations) {
    const { exitCode, all } = await cli("destroy", stackOf(name));
    expect(exitCode, all).toBe(0);
  }
  await execa("rm", ["-f", archive, join(home, "sent"), join(home, "received")]);
  expect(traces(home)).toEqual(before);
});
