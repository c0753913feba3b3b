/** What a pod may take and do: limits that hold, resizes, and a control plane that outlives whatever a pod asks for. */
import { join } from "node:path";
import type { ResultPromise } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { waitFor } from "../../system/wait.ts";
import { everyField, type Field, type Schemas } from "./everyField.ts";
import {
  changes,
  endAll,
  inside,
  kill,
  kubectl,
  kubectlProcess,
  open,
  ownHome,
  services,
  shellImage,
  supervised,
} from "./harness.ts";

const home = await ownHome();
const name = "e2e-l";
const image = "example.test/shell:1";
const archive = join(home, "shell.tar");

const kubeletArgs = ["pod-max-pids=40"];
const options = {
  images: [archive],
  pod: { enabled: false },
  addons: { coredns: { enabled: false }, metricsServer: { enabled: false } },
  node: { kubeletArgs },
};

beforeAll(async () => {
  await shellImage(image, archive);
  const stack = await open(name, options);
  await stack.up();
});

afterAll(async () => {
  await endAll(home, name);
});

interface Container {
  name?: string;
  command?: string[];
  [field: string]: unknown;
}

/** A pod of one or more containers of the tests' image. */
function pod(pod: string, containers: Container[], spec: object = {}): object {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: pod },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: containers.map((container, i) => ({ name: `c${i}`, image, imagePullPolicy: "Never", ...container })),
      ...spec,
    },
  };
}

async function create(object: object): Promise<void> {
  await kubectlProcess(name, ["create", "-f", "-"], { input: JSON.stringify(object) });
}

const ready = (pod: string) => kubectl(name, "wait", "--for=condition=Ready", `pod/${pod}`, "--timeout=60s");

const remove = (...pods: string[]) => kubectl(name, "delete", "pod", ...pods, "--force", "--grace-period=0");

/** What a JSON path gives of a pod. */
const ask = (pod: string, path: string) => kubectl(name, "get", "pod", pod, `-o=jsonpath={${path}}`);

/** The server's process: its pid and when it started. */
async function server(): Promise<string> {
  const { pid } = (await services(name)).server!;
  const stat = await inside(name, "/bin/cat", `/proc/${pid}/stat`);
  return `${pid} since ${stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]}`;
}

/** The pid of the process that the server has for controllers, scheduler and kubelet. */
async function agent(): Promise<string> {
  const look =
    'for p in /proc/[0-9]*; do tr "\\0" " " < $p/cmdline | grep -q "gvisor-k3s-node [a]gent " && echo "$p"; done';
  const found = await inside(name, "/bin/sh", "-c", `${look}; true`);
  return found.replaceAll("/proc/", "").trim();
}

describe("a resize in place", () => {
  const resize = async (to: object) =>
    await kubectl(
      name,
      "patch",
      "pod",
      "resize",
      "--subresource=resize",
      "--patch",
      JSON.stringify({
        spec: { containers: [{ name: "c0", resources: to }] },
      }),
    );

  beforeAll(async () => {
    await create(
      pod("resize", [
        {
          command: ["/bin/sleep", "infinity"],
          resources: { requests: { cpu: "50m", memory: "32Mi" }, limits: { cpu: "100m", memory: "64Mi" } },
        },
      ]),
    );
    await ready("resize");
  });

  it("is done, in the container's cgroup and the pod's, without a restart", async () => {
    const before = await server();
    await resize({ requests: { cpu: "80m", memory: "48Mi" }, limits: { cpu: "200m", memory: "128Mi" } });
    await waitFor("the resize is done", 60, async () => {
      const told = await ask("resize", ".status.containerStatuses[0].resources");
      return (
        told === '{"limits":{"cpu":"200m","memory":"128Mi"},"requests":{"cpu":"80m","memory":"48Mi"}}' || undefined
      );
    });
    expect(await ask("resize", ".status.containerStatuses[0].restartCount")).toBe("0");
    const uid = await ask("resize", ".metadata.uid");
    const id = (await ask("resize", ".status.containerStatuses[0].containerID")).replace("containerd://", "");
    const folder = `/sys/fs/cgroup/memory/kubepods/burstable/pod${uid}`;
    for (const cgroup of [folder, `${folder}/${id}`])
      expect((await inside(name, "/bin/cat", `${cgroup}/memory.limit_in_bytes`)).trim()).toBe(String(128 * 2 ** 20));
    expect(await server()).toBe(before);
  });

  it("that the node has no room for is refused, with the reason", async () => {
    const before = await server();
    const refused = resize({ requests: { memory: "64Gi" }, limits: { memory: "64Gi" } });
    await expect(refused).rejects.toThrow(/enough allocatable resources: memory, requested: \d+, allocatable: \d+/);
    expect(await ask("resize", ".status.containerStatuses[0].resources.limits.memory")).toBe("128Mi");
    expect(await server()).toBe(before);
    await remove("resize");
  });
});

describe("the API", () => {
  it("goes on answering while controllers, scheduler and kubelet end, and they come back", async () => {
    const [before, first] = [await server(), await agent()];
    expect(first).toMatch(/^\d+$/);
    await inside(name, "/bin/kill", "-SEGV", first); // as good as a panic: nobody is asked
    expect(await kubectl(name, "get", "--raw", "/readyz")).toBe("ok");
    await waitFor("another one runs", 60, async () => /^\d+$/.test((await agent()).replace(first, "")) || undefined);
    await create(pod("after", [{ command: ["/bin/sleep", "infinity"] }]));
    await ready("after"); // scheduler and kubelet
    await kubectl(name, "create", "deployment", "after", `--image=${image}`, "--", "/bin/sleep", "infinity");
    await waitFor("the controllers work", 60, async () =>
      (await kubectl(name, "get", "replicasets", "-l=app=after", "-o=name")) === "" ? undefined : true,
    );
    await kubectl(name, "delete", "deployment", "after");
    await remove("after");
    expect(await server()).toBe(before);
  });

  it("and all of them come back when its own process is killed", async () => {
    const first = await agent();
    await kill(name, "server");
    await waitFor("another agent runs", 60, async () => !["", first].includes(await agent()) || undefined);
    await waitFor("a pod runs", 60, async () => {
      await create(pod("again", [{ command: ["/bin/sleep", "infinity"] }])).catch(() => undefined);
      return (await ask("again", ".status.phase").catch(() => "")) === "Running" || undefined;
    });
    await remove("again");
  });
});

/** Asks the API through a proxy of kubectl's. */
class Api {
  #process?: ResultPromise;
  #url = "";

  async open(): Promise<void> {
    this.#process = kubectlProcess(name, ["proxy", "--port=0", "--reject-paths=^$"], { timeout: 0, reject: false });
    const said = await new Promise<string>((resolve) =>
      this.#process!.stdout!.once("data", (data) => resolve(String(data))),
    );
    this.#url = `http://${/127\.0\.0\.1:\d+/.exec(said)![0]}`;
  }

  async close(): Promise<void> {
    this.#process?.kill();
    await this.#process;
  }

  /** @returns what the API says, and whether it did what it was asked; one that does not answer is an error */
  async ask<T>(method: string, path: string, body?: object): Promise<{ done: boolean; said: T }> {
    const type = method === "PATCH" ? "application/strategic-merge-patch+json" : "application/json";
    const response = await fetch(`${this.#url}${path}`, {
      method,
      headers: { "content-type": type },
      ...(body && { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if ([502, 503].includes(response.status) && !text.includes('"kind"')) throw new Error(`${method} ${path}: ${text}`);
    const json = response.headers.get("content-type")?.includes("json");
    return { done: response.ok, said: (json ? JSON.parse(text) : text) as T };
  }
}

interface Pod {
  metadata: { name: string; generation?: number; deletionTimestamp?: string };
  status: {
    phase?: string;
    startTime?: string;
    observedGeneration?: number;
    conditions?: { type: string; status: string }[];
  };
}

const pods = "/api/v1/namespaces/default/pods";
const node = `/api/v1/nodes/${name}`;
const core = (kind: string) => `io.k8s.api.core.v1.${kind}`;

/** Pods of which each has one field set that the last one has not. */
function everyPod(schemas: Schemas): { path: string; pod: object }[] {
  const main = { command: ["/bin/sleep", "infinity"], volumeMounts: [{ name: "a", mountPath: "/a" }] };
  const base = { volumes: [{ name: "a", emptyDir: {} }], restartPolicy: "Always" };
  const found: { path: string; pod: object }[] = [];
  const add = (path: string, containers: Container[], spec: object) =>
    found.push({ path, pod: pod(`every-${found.length}`, containers, { ...base, ...spec }) });
  // Those of a group or with a claim wait for others that nobody makes, and nothing is told of them.
  const others = ["schedulingGroup", "resourceClaims"];
  const own = ["containers", "initContainers", "ephemeralContainers", "volumes", ...others];
  for (const { path, value } of everyField(schemas, core("PodSpec"), 2)) {
    const { containers: _, ...spec } = value as Record<string, unknown>;
    if (!own.some((field) => path.startsWith(`.${field}`))) add(path, [main], spec);
  }
  const resources = { limits: { cpu: "100m", memory: "32Mi" }, requests: { cpu: "10m", memory: "16Mi" } };
  for (const { path, value } of everyField(schemas, core("Container"), 4))
    add(`.containers[]${path}`, [{ ...main, resources, ...(value as Container), name: "c0" }], {});
  for (const { path, value } of everyField(schemas, core("Container"), 1)) {
    const init = { image, imagePullPolicy: "Never", command: ["/bin/cat", "/dev/null"], ...(value as Container) };
    add(`.initContainers[]${path}`, [main], { initContainers: [{ ...init, name: "i" }] });
  }
  for (const { path, value } of everyField(schemas, core("Volume"), 4))
    add(`.volumes[]${path}`, [main], { volumes: [{ ...(value as object), name: "a" }] });
  return found;
}

describe("whatever is asked of pods and of the node", () => {
  const api = new Api();
  let schemas: Schemas;
  let before: string[];

  beforeAll(async () => {
    await api.open();
    const { said } = await api.ask<{ components: { schemas: Schemas } }>("GET", "/openapi/v3/api/v1");
    schemas = said.components.schemas;
    before = [await server(), await agent()];
  });

  afterAll(async () => {
    await api.close();
    await kubectl(name, "delete", "pods", "--all", "--force", "--grace-period=0");
  });

  const list = async () => (await api.ask<{ items: Pod[] }>("GET", pods)).said.items;

  /** The kubelet has done what it does with a pod's first sight, or nobody wants it there. */
  const isSeen = ({ status: { phase, startTime, conditions = [] } }: Pod) =>
    phase !== "Pending" ||
    startTime !== undefined ||
    conditions.some(({ type, status }) => type === "PodScheduled" && status === "False");

  // Every twelfth of some 400, which takes a minute; all of them with WALK=1.
  it("the server goes on: the fields of a pod, and a resize of each", { timeout: 1_800_000 }, async () => {
    const every = everyPod(schemas);
    expect(every.length).toBeGreaterThan(300);
    const all = process.env.WALK ? every : every.filter((_, index) => index % 12 === 0);
    let accepted = 0;
    for (let at = 0; at < all.length; at += 30) {
      const asked = all.slice(at, at + 30);
      let late: string[] = [];
      for (const { pod } of asked) if ((await api.ask("POST", pods, pod)).done) accepted++;
      await waitFor(
        `what became of ${asked[0]!.path} to ${asked.at(-1)!.path} is seen`,
        120,
        async () => {
          late = (await list()).filter((pod) => !isSeen(pod)).map(({ metadata }) => metadata.name);
          return late.length === 0 || undefined;
        },
        () => late.map((name) => all[Number(name.replace("every-", ""))]?.path).join(", "),
      );
      for (const { metadata } of await list())
        await api.ask("PATCH", `${pods}/${metadata.name}/resize`, {
          spec: {
            containers: [
              {
                name: "c0",
                resources: { limits: { cpu: "200m", memory: "48Mi" }, requests: { cpu: "20m", memory: "24Mi" } },
              },
            ],
          },
        });
      await api.ask("DELETE", pods);
      await waitFor("they are gone", 120, async () => (await list()).length === 0 || undefined);
      expect([await server(), await agent()], `${asked[0]!.path} to ${asked.at(-1)!.path}`).toEqual(before);
    }
    expect(accepted).toBeGreaterThan(all.length / 3);
  });

  // Of all volumes that are translated for a driver, this is the one whose translation ended the agent, at each start.
  it("the kubelet goes on: a vSphere volume with a policy, of which an event tells", { timeout: 300_000 }, async () => {
    const vsphereVolume = { volumePath: "a", storagePolicyName: "a" };
    const mounted = { command: ["/bin/sleep", "infinity"], volumeMounts: [{ name: "a", mountPath: "/a" }] };
    await create(pod("vsphere", [mounted], { volumes: [{ name: "a", vsphereVolume }] }));
    const events = () =>
      kubectl(
        name,
        "get",
        "events",
        "--field-selector=involvedObject.name=vsphere,type=Warning",
        "-o=jsonpath={.items[*].message}",
      );
    await waitFor("an event", 240, async () => /csi\.vsphere\.vmware\.com/.test(await events()) || undefined, events);
    expect([await server(), await agent()]).toEqual(before);
    await remove("vsphere");
  });

  it("the server goes on: every subresource of a pod", { timeout: 300_000 }, async () => {
    await create(pod("sub", [{ command: ["/bin/sleep", "infinity"] }]));
    await ready("sub");
    for (const [i, { value }] of everyField(schemas, core("EphemeralContainer"), 1).entries())
      await api.ask("PATCH", `${pods}/sub/ephemeralcontainers`, {
        spec: { ephemeralContainers: [{ image, imagePullPolicy: "Never", ...(value as object), name: `e${i}` }] },
      });
    for (const { value } of everyField(schemas, core("PodStatus"), 3))
      await api.ask("PATCH", `${pods}/sub/status`, { status: value });
    for (const [method, path, body] of [
      ["GET", "log?follow=false&previous=true"],
      ["GET", "log?container=none"],
      ["GET", "proxy/"],
      ["GET", "proxy/a/b?c=d"],
      ["POST", "binding", { target: { name: "nowhere" }, metadata: { name: "sub" } }],
      ["POST", "exec?command=%00"],
      ["GET", "attach?stdin=true"],
      ["GET", "portforward?ports=0"],
      ["POST", "eviction", { apiVersion: "policy/v1", kind: "Eviction", metadata: { name: "sub" } }],
    ] as const)
      await api.ask(method, `${pods}/sub/${path}`, body);
    expect([await server(), await agent()]).toEqual(before);
  });

  it("the server goes on: every field of the node, spec and status", { timeout: 300_000 }, async () => {
    const fields = (kind: string): Field[] => everyField(schemas, core(kind), 3);
    for (const { path, value } of fields("NodeSpec"))
      if (path !== ".unschedulable") await api.ask("PATCH", node, { spec: value });
    for (const { value } of fields("NodeStatus")) await api.ask("PATCH", `${node}/status`, { status: value });
    await api.ask("PATCH", node, { spec: { taints: null } });
    for (const path of ["proxy/", "proxy/pods", "proxy/configz", "proxy/stats/summary", "proxy/metrics/cadvisor"])
      await api.ask("GET", `${node}/${path}`);
    await create(pod("still", [{ command: ["/bin/sleep", "infinity"] }]));
    await ready("still");
    expect([await server(), await agent()]).toEqual(before);
  });
});

describe("a memory limit", () => {
  /** Takes memory, and keeps it: dd reads blocks of that size into one buffer. */
  const eat = (size: string) => ["/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", `bs=${size}`, "count=100000000"];
  const limit = (memory: string) => ({ resources: { limits: { memory } } });
  const terminated = ".state.terminated";
  const end = async (pod: string, container = ".status.containerStatuses[0]", state = terminated) =>
    `${await ask(pod, `${container}${state}.reason`)} ${await ask(pod, `${container}${state}.exitCode`)}`;
  const killed = async (pod: string, container?: string, state?: string) =>
    await waitFor(
      `a container of ${pod} is killed`,
      60,
      async () => (await end(pod, container, state)) === "OOMKilled 137" || undefined,
      async () => await ask(pod, ".status"),
    );

  it("is kept: who is over it is OOMKilled with exit code 137, and its neighbours live on", async () => {
    const sleeper = { command: ["/bin/sleep", "infinity"], ...limit("32Mi") };
    const within = { command: eat("24M"), ...limit("64Mi") };
    await create(
      pod("eater", [{ command: eat("200M"), ...limit("128Mi") }, sleeper, within], { restartPolicy: "Never" }),
    );
    await killed("eater");
    const told = await kubectl(name, "describe", "pod", "eater");
    expect(told).toMatch(/State:\s+Terminated\s+Reason:\s+OOMKilled\s+Exit Code:\s+137/);
    expect(await ask("eater", ".status.containerStatuses[1].state.running.startedAt")).not.toBe("");
    expect(await ask("eater", ".status.containerStatuses[2].state.running.startedAt")).not.toBe("");
    await remove("eater");
  });

  it("lets a container be started again where its policy says so", async () => {
    await create(pod("again", [{ command: eat("200M"), ...limit("64Mi") }]));
    await killed("again", undefined, ".lastState.terminated");
    await waitFor(
      "it is restarted",
      60,
      async () => Number(await ask("again", ".status.containerStatuses[0].restartCount")) > 0,
    );
    await remove("again");
  });

  it("counts for init containers", async () => {
    const init = { name: "i", image, imagePullPolicy: "Never", command: eat("200M"), ...limit("64Mi") };
    await create(pod("init", [{ command: ["/bin/sleep", "1"] }], { initContainers: [init], restartPolicy: "Never" }));
    await killed("init", ".status.initContainerStatuses[0]");
    await waitFor("the pod has failed", 60, async () => (await ask("init", ".status.phase")) === "Failed" || undefined);
    await remove("init");
  });

  it("of a pod counts for all its containers together: the largest is killed", async () => {
    const containers = ["96M", "48M"].map((size) => ({ command: eat(size) }));
    await create(pod("together", containers, { resources: { limits: { memory: "128Mi" } }, restartPolicy: "Never" }));
    await killed("together");
    expect(await ask("together", ".status.containerStatuses[1].state.running.startedAt")).not.toBe("");
    await remove("together");
  });

  it("counts what lies in a volume in memory", async () => {
    const write = ["/bin/busybox", "dd", "if=/dev/zero", "of=/mem/f", "bs=1M", "count=100"];
    const command = ["/bin/sh", "-c", `${write.join(" ")}; sleep 1000000`];
    const volumes = [{ name: "mem", emptyDir: { medium: "Memory" } }];
    const container = { command, volumeMounts: [{ name: "mem", mountPath: "/mem" }], ...limit("64Mi") };
    await create(pod("volume", [container], { volumes, restartPolicy: "Never" }));
    await killed("volume");
    await remove("volume");
  });

  it("that a resize has raised or lowered counts as it is now", async () => {
    const resources = { requests: { memory: "64Mi" }, limits: { memory: "256Mi" } };
    await create(pod("lowered", [{ command: eat("96M"), resources }], { restartPolicy: "Never" }));
    await ready("lowered");
    const patch = JSON.stringify({ spec: { containers: [{ name: "c0", resources: { limits: { memory: "64Mi" } } }] } });
    await kubectl(name, "patch", "pod", "lowered", "--subresource=resize", "--patch", patch);
    // Upstream lowers no limit below what is used, and says so.
    const condition = '.status.conditions[?(@.type=="PodResizeInProgress")].message';
    await waitFor(
      "it is told",
      60,
      async () => (await ask("lowered", condition)).includes("below current usage") || undefined,
    );
    expect(await ask("lowered", ".status.phase")).toBe("Running");
    await remove("lowered");
  });
});

describe("a limit of processes", () => {
  it("is kept: a container makes no more, and the others do", async () => {
    const count = "for p in /proc/[0-9]*; do echo $p; done | grep -c .";
    const command = ["/bin/sh", "-c", "while :; do sleep 1000000 & done"];
    await create(pod("forks", [{ command }], { restartPolicy: "Never" }));
    // The shell ends when it cannot fork, and has told so.
    await waitFor("it makes no more", 60, async () => {
      const { stdout } = await kubectlProcess(name, ["logs", "forks"], { reject: false });
      return String(stdout).includes("can't fork") || undefined;
    });
    expect(Number(await inside(name, "/bin/sh", "-c", count))).toBeLessThan(150);
    await create(pod("other", [{ command: ["/bin/sh", "-c", "sleep 1000000 & sleep 1000000"] }]));
    await ready("other");
    await remove("forks", "other");
  });
});

describe("a machine whose memory is used up", () => {
  it("loses the pods that go first, and neither its server nor containerd nor itself", async () => {
    const before = [
      await server(),
      JSON.stringify((await services(name)).containerd),
      supervised(name).sandbox!.starts,
    ];
    const eat = "i=0; while :; do i=$((i+1)); dd if=/dev/zero of=/mem/$i bs=1M count=64; done";
    const volumes = [{ name: "mem", emptyDir: { medium: "Memory" } }];
    const hungry = { command: ["/bin/sh", "-c", eat], volumeMounts: [{ name: "mem", mountPath: "/mem" }] };
    const all = [
      "/bin/busybox",
      "dd",
      "if=/dev/zero",
      "of=/dev/null",
      "bs=3500M",
      "iflag=fullblock",
      "count=100000000",
    ];
    const resources = { requests: { memory: "64Mi", cpu: "10m" }, limits: { memory: "64Mi", cpu: "10m" } };
    await create(pod("kept", [{ command: ["/bin/sleep", "infinity"], resources }]));
    await ready("kept");
    // With a request the second is scheduled also where the kubelet, having evicted the first, keeps others away.
    const asking = { resources: { requests: { memory: "16Mi" } } };
    for (const [pod_, container] of [
      ["greedy", { command: all, ...asking }],
      ["hungry", { ...hungry, ...asking }],
    ] as const) {
      await create(pod(pod_, [container], { volumes, restartPolicy: "Never" }));
      await waitFor(
        `${pod_} has gone`,
        120,
        async () => (await ask(pod_, ".status.phase")) === "Failed" || undefined,
        async () => await ask(pod_, ".status"),
      );
      // Whether the kubelet looks in time decides which of the two it is.
      const why = [
        await ask(pod_, ".status.reason"),
        await ask(pod_, ".status.containerStatuses[0].state.terminated.reason"),
      ].join(" ");
      expect(why).toMatch(/OOMKilled|Evicted/);
      await remove(pod_);
    }
    expect(await ask("kept", ".status.containerStatuses[0].restartCount")).toBe("0");
    expect([
      await server(),
      JSON.stringify((await services(name)).containerd),
      supervised(name).sandbox!.starts,
    ]).toEqual(before);
    await remove("kept");
  });
});

describe("a node that has lost /run", () => {
  it("starts again by itself, with its pods", async () => {
    // With a request it is scheduled also where the test before has left the node short of memory, for five minutes.
    const resources = { requests: { memory: "16Mi" } };
    await create(pod("stays", [{ command: ["/bin/sleep", "infinity"], resources }]));
    await ready("stays");
    const [uid, { starts }] = [await ask("stays", ".metadata.uid"), supervised(name).sandbox!];
    await inside(name, "/bin/busybox", "umount", "-l", "/run").catch(() => undefined); // it may end with the sandbox
    await waitFor("it is started again", 120, () => (supervised(name).sandbox?.starts ?? 0) > starts || undefined);
    await waitFor("its pod runs again", 120, async () => {
      const restarts = await ask("stays", ".status.containerStatuses[0].restartCount").catch(() => "0");
      return (Number(restarts) > 0 && (await ask("stays", ".status.phase")) === "Running") || undefined;
    });
    expect(await ask("stays", ".metadata.uid")).toBe(uid);
  });
});

it.each([
  ["kubelet", { kubeletArgs: [...kubeletArgs, "root-dir=/proc/none"] }, "mkdir /proc/none: "],
  ["kube-scheduler", { kubeletArgs, schedulerArgs: ["config=/none"] }, "open /none: no such file or directory"],
])("a %s that cannot run is told with the reason, and makes way for the one of before", async (part, node, why) => {
  const stack = await open(name, { ...options, node });
  const { message } = await stack.up().then(
    () => new Error("it ended well"),
    (error: Error) => error,
  );
  expect(message).toContain(`keep ending, the last time: ${part} ended: `);
  expect(message).toContain(why);
  expect(message).toMatch(/the server of before, v[\d.]+, runs again, as it was/);
  await kubectl(name, "wait", `node/${name}`, "--for=condition=Ready", "--timeout=30s");
  const before = await open(name, options);
  expect((await changes((settings) => before.preview(settings))).changed).toEqual({});
});
