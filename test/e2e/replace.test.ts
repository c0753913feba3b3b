/**
 * Every option whose doc says that a change of it replaces something, or restarts nothing, is changed on a running
 * cluster. Whatever is replaced, the same `up` makes again all that was in it, and the next preview shows no change.
 * Each test goes on where the one before it stopped.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { connect } from "node:tls";
import type { Stack } from "@pulumi/pulumi/automation/index.js";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { artifactFolder, goArch, pathInSandbox } from "../../artifacts/artifacts.ts";
import { linkAddresses } from "../../config/network.ts";
import { parseStackConfig } from "../../config/schema.ts";
import { optionDocs } from "../../docs/tables.ts";
import { argumentsOf, parentOf, signalTo } from "../../system/processes.ts";
import { waitFor } from "../../system/wait.ts";
import {
  changes,
  cli,
  endAll,
  identity,
  inside,
  kubectl,
  limits,
  open,
  ownHome,
  pathsOf,
  record,
  services,
  supervised,
  traces,
} from "./harness.ts";
import { type SshMachine, startSshMachine } from "./sshMachine.ts";

const home = await ownHome();
const stackName = "e2e-x";
/** The option `name`, before and after its change. */
const [first, second] = ["e2e-x", "e2e-y"];
const image = "example.test/own:1";
const archive = join(home, "own.tar");
let name = first;
let options: Record<string, unknown> = {
  name,
  images: [archive],
  addons: { coredns: { enabled: false }, metricsServer: { enabled: false } },
};
let stack: Stack;
let before: ReturnType<typeof here>;
let machine: SshMachine | undefined;

/** A value for an option by its full name, in options that may have others of the same group. */
function withOption(all: Record<string, unknown>, path: string, value: unknown): Record<string, unknown> {
  const [key, ...rest] = path.split(".");
  const inner = (all[key!] ?? {}) as Record<string, unknown>;
  return { ...all, [key!]: rest.length === 0 ? value : withOption(inner, rest.join("."), value) };
}

/** Changes options, and returns the resources that an `up` then changes, by what happens to them. */
async function change(changed: Record<string, unknown>): Promise<Record<string, string[]>> {
  for (const [path, value] of Object.entries(changed)) options = withOption(options, path, value);
  name = options.name as string;
  stack = await open(stackName, options);
  return (await changes((act) => stack.up(act))).changed;
}

/** Looks whether all is well, with a pod that starts just now. */
let count = 0;
async function expectWell(): Promise<void> {
  expect((await changes((act) => stack.preview(act))).changed).toEqual({});
  if (options.mode === "control-plane") {
    expect(await kubectl(name, "get", "--raw=/readyz")).toBe("ok");
    return;
  }
  await kubectl(name, "wait", `node/${name}`, "--for=condition=Ready", "--timeout=60s");
  const pod = `probe-${count++}`;
  await kubectl(name, "run", pod, `--image=${image}`, "--image-pull-policy=Never", "--restart=Never");
  await kubectl(name, "wait", `pod/${pod}`, "--for=condition=Ready", "--timeout=60s");
  const { namespace = "default" } = options.pod as { namespace?: string };
  await kubectl(name, "wait", "-n", namespace, "pod/testpod", "--for=condition=Ready", "--timeout=60s");
}

/** What is here of the clusters, less the machine that is another one's. */
function here(): ReturnType<typeof traces> {
  const { processes, mounts, ...rest } = traces(home, first, second);
  const own = (text: string) => !text.includes("/machines/");
  return { ...rest, processes: processes.filter(own), mounts: mounts.filter(own), files: [] };
}

beforeAll(async () => {
  before = here();
  const tools = artifactFolder({ name: "images" });
  const program = ["--file", `${join(tools, "testpod")}:/testpod:0755`, "--entrypoint", "/testpod"];
  await execa(join(tools, "mkimage"), ["--platform", `linux/${goArch()}`, ...program, "--name", image, "-o", archive]);
  options = { ...options, pod: {} };
  await change({});
  await kubectl(name, "create", "configmap", "kept", "--from-literal=by=its-owner");
});

afterAll(async () => {
  if (process.env.KEEP) return await endAll(home);
  await cli("destroy", stackName);
  await machine?.remove();
  await endAll(home);
});

/** The options whose docs say something. */
const documented = (words: RegExp) => optionDocs().flatMap(({ option, doc }) => (words.test(doc) ? [option] : []));

/** What the node has registered as: which, and with which label and taints. */
const registered = () =>
  kubectl(name, "get", "node", name, "-o=jsonpath={.metadata.uid} {.metadata.labels.tier} {.spec.taints}");

describe("what restarts nothing", () => {
  let server: Server;
  let port: number;
  let published: number;
  const values: Record<string, () => unknown> = {
    "sandbox.memory": () => "3Gi",
    "sandbox.cpus": () => 1.5,
    "sandbox.hostPorts": () => [port],
    "sandbox.restart": () => false,
    ports: () => [`${published}:6443`],
  };

  beforeAll(async () => {
    const listening = (on: Server) =>
      new Promise<number>((resolve) => on.listen(0, () => resolve((on.address() as AddressInfo).port)));
    server = createServer((_, response) => response.end("the host answers"));
    port = await listening(server);
    const other = createServer();
    published = await listening(other); // free, once this one is closed
    other.close();
  });

  afterAll(() => {
    server.close();
  });

  /** What the node gets of a service of the host's. */
  const ask = () => {
    const { host } = linkAddresses(parseStackConfig({ name, ...options }).sandbox.subnet);
    const get = [pathInSandbox({ name: "images" }, "testpod"), "get", `http://${host}:${port}/`];
    return inside(name, ...get).catch((error: Error) => /deadline exceeded/.exec(error.message)?.[0] ?? error.message);
  };

  /** Whether the API server shows its certificate at the host's port. */
  const shown = () =>
    new Promise<boolean>((resolve) => {
      const socket = connect({ host: "127.0.0.1", port: published, rejectUnauthorized: false }, () => {
        resolve(true);
        socket.destroy();
      });
      socket.once("error", () => resolve(false));
    });

  /** What there is to see of each. */
  const effects = async () => {
    const { restart } = JSON.parse(readFileSync(pathsOf(name).spec, "utf8")) as { restart: boolean };
    return { ...limits(name), host: await ask(), restart, shown: await shown() };
  };

  it("is known for every option whose doc says so", () => {
    expect(documented(/restarts nothing/)).toEqual(Object.keys(values));
  });

  it("takes effect at once, in the sandbox that runs, and its pods live on", async () => {
    const [pod, { sandbox, egress }, { incarnation }] = [
      await identity(name, "testpod"),
      supervised(name),
      record(name),
    ];
    const [kept, given] = ["deadline exceeded", "the host answers"];
    expect(await effects()).toEqual({ memory: 4 * 2 ** 30, cpus: null, host: kept, restart: true, shown: false });
    const changed = Object.fromEntries(Object.entries(values).map(([path, value]) => [path, value()]));
    expect(await change(changed)).toEqual({ update: ["sandbox-process"] });
    expect(await effects()).toEqual({ memory: 3 * 2 ** 30, cpus: 1.5, host: given, restart: false, shown: true });
    await expectWell();
    await change({
      "sandbox.memory": null,
      "sandbox.cpus": null,
      "sandbox.hostPorts": [],
      "sandbox.restart": true,
      ports: [],
    });
    expect(await effects()).toEqual({ memory: null, cpus: null, host: kept, restart: true, shown: false });
    expect([await identity(name, "testpod"), supervised(name), record(name).incarnation]).toEqual([
      pod,
      expect.objectContaining({ sandbox, egress }),
      incarnation,
    ]);
  });
});

describe("what restarts the node's server", () => {
  it("restarts that alone, and takes effect on the node that is there", async () => {
    const [pod, uid, { sandbox }] = [await identity(name, "testpod"), await registered(), supervised(name)];
    const { server, containerd } = await services(name);
    const changed = await change({
      "node.httpsListenPort": 6444,
      "node.labels": { tier: "test" },
      "node.kubeletArgs": ["max-pods=50", "register-with-taints=tier=test:PreferNoSchedule"],
      "node.apiServerArgs": ["v=1"],
      "node.controllerManagerArgs": ["v=1"],
      "node.schedulerArgs": ["v=1"],
      "addons.localStorage.enabled": false,
    });
    // The way to the API is another one, and with it all that is made through it is looked at again.
    expect(changed).toEqual({ update: expect.arrayContaining(["node-server", "node-kubeconfig"]) });
    expect(readFileSync(pathsOf(name).kubeconfig, "utf8")).toContain(":6444");
    expect(await kubectl(name, "get", "node", name, "-o=jsonpath={.status.capacity.pods}")).toBe("50");
    expect(await kubectl(name, "get", "storageclass", "-o=name")).toBe("");
    expect(await registered()).toBe(uid); // it registers once
    const now = await services(name);
    expect(now.server!.pid).not.toBe(server!.pid);
    expect([now.containerd!.pid, supervised(name).sandbox, await identity(name, "testpod")]).toEqual([
      containerd!.pid,
      sandbox,
      pod,
    ]);
    await expectWell();
  });
});

describe("what replaces something", () => {
  /** Another value for each option, which may need the machine that is made below. */
  const values: Record<string, () => { value: unknown; with?: Record<string, unknown>; replaced: string }> = {
    "pod.namespace": () => ({ value: "kube-public", replaced: "testpod-pod" }),
    "pod.image": () => ({ value: image, replaced: "testpod-pod" }),
    "pod.args": () => ({ value: ["--port", "8081"], replaced: "testpod-pod" }),
    "sandbox.subnet": () => ({ value: "10.108.77.0/29", replaced: "sandbox-process" }),
    name: () => ({ value: second, replaced: "sandbox-process" }),
    mode: () => ({ value: "control-plane", replaced: "sandbox-process" }),
    target: () => ({ value: "ssh", with: { ssh: reached(`${network}.2`) }, replaced: "sandbox-process" }),
    "ssh.host": () => ({ value: `${network}.3`, replaced: "sandbox-process" }),
  };
  const network = "10.109.11";
  const reached = (host: string) => {
    const { keys } = machine!;
    return { host, privateKey: keys.user, knownHosts: keys.knownHosts };
  };

  it("is known for every option whose doc says so", () => {
    // The further nodes' is seen in elsewhere.test.ts, where there are several machines.
    expect(documented(/\breplaces\b/).sort()).toEqual([...Object.keys(values), "nodes[].ssh.host"].sort());
  });

  it.each(Object.entries(values))("%s", async (path, to) => {
    if (path === "target") machine = await twoAddresses();
    const { value, with: others, replaced } = to();
    const was = supervisedNow();
    if (path === "target") {
      // What is killed on its way to another machine is gone on with there too, and taken for nobody else's.
      const ended = change({ ...others, [path]: value }).then(
        () => "it ended well",
        (error: Error) => error.message,
      );
      expect(await Promise.race([killedThere(), ended])).toBe(undefined);
      expect(await ended).toContain("update failed");
      expect(record(name)).toMatchObject({ kind: "ssh", owner: `gvisor-k3s/${stackName}` });
    }
    const changed = await change({ ...others, [path]: value });
    expect(Object.values(changed).flat()).toContain(replaced);
    expect(changed["create-replacement"] ?? changed.replace).toContain(replaced);
    if (replaced !== "sandbox-process") expect(supervisedNow()).toEqual(was);
    else if (was !== undefined) expect(supervisedNow()).not.toEqual(was);
    await expectWell();
    await effects[path]!();
  });

  it("all of which leaves nothing", async () => {
    const { exitCode, all } = await cli("destroy", stackName);
    expect(exitCode, all).toBe(0);
    expect(here()).toEqual(before);
    expect(await machine!.shell("ls /var/lib/gvisor-k3s /var/lib/rancher 2> /dev/null || true")).toBe("");
  });

  /** The sandbox's process, if the node is in one that is made here. */
  const supervisedNow = () => (existsSync(pathsOf(name).supervisor) ? supervised(name).sandbox : undefined);

  const testPod = (what: string) =>
    kubectl(name, "get", "pod", "-n", "kube-public", "testpod", `-o=jsonpath={${what}}`);

  /** What there is to see of each. */
  const effects: Record<string, () => Promise<void>> = {
    "pod.namespace": async () => {
      expect(await testPod(".metadata.name")).toBe("testpod");
      expect(await kubectl(name, "get", "pod", "-n", "default", "testpod", "--ignore-not-found")).toBe("");
    },
    "pod.image": async () => expect(await testPod(".spec.containers[0].image")).toBe(image),
    "pod.args": async () => expect(await testPod(".spec.containers[0].args")).toBe('["--port","8081"]'),
    "sandbox.subnet": async () => {
      expect((await stack.outputs()).address!.value).toBe("10.108.77.2");
      expect(readFileSync(pathsOf(name).kubeconfig, "utf8")).toContain("https://10.108.77.2:6444");
      // It is another node, which has registered with these.
      const tier = (await registered()).split(" ").slice(1).join(" ");
      expect(tier).toBe('test [{"effect":"PreferNoSchedule","key":"tier","value":"test"}]');
      expect(await kubectl(name, "get", "configmap", "kept", "--ignore-not-found")).toBe(""); // as the doc says
    },
    name: async () => {
      expect(await kubectl(name, "get", "nodes", "-o=name")).toBe(`node/${second}`);
      expect({ ...traces(pathsOf(first).state, first), files: [] }).toEqual(before);
    },
    mode: async () => expect(await kubectl(name, "get", "nodes", "-o=name")).toBe(""),
    target: async () => {
      // What leads to another machine is no supervisor, and has no network of its own here.
      const { processes, ...rest } = here();
      expect(processes.filter((line) => /supervise|runsc|egress/.test(line))).toEqual([]);
      expect({ ...rest, processes: [], locks: [] }).toEqual(before);
    },
    "ssh.host": async () => expect(record(name).ssh!.host).toBe(`${network}.3`),
  };

  /** Kills the step that starts the node on another machine, when that has done so and before the step knows. */
  async function killedThere(): Promise<void> {
    const running = (pattern: RegExp) =>
      readdirSync("/proc").filter(
        (pid) => /^\d+$/.test(pid) && pattern.test(argumentsOf(Number(pid)).join(" ").trim()),
      );
    const starts = new RegExp(`^ssh .* ${network}\\.2 .*'machine' 'start'$`);
    const step = await waitFor("the node is being started there", 240, () => {
      const [pid] = running(starts);
      return pid === undefined ? undefined : parentOf(Number(pid));
    });
    signalTo(step, "SIGSTOP");
    await waitFor("it is started there", 120, async () => {
      const found = await machine!.shell(`ls /var/lib/gvisor-k3s/sandboxes/${name}/machine.json 2> /dev/null || true`);
      return found !== "" || undefined;
    });
    signalTo(step, "SIGKILL");
  }

  /** A machine that is reached at two addresses, and so counts as two. */
  async function twoAddresses(): Promise<SshMachine> {
    const made = await startSshMachine(home, "e2e-x-ssh", network);
    await made.shell(`ip address add ${network}.3/24 dev eth0`);
    const { knownHosts } = made.keys;
    const noted = readFileSync(knownHosts, "utf8");
    writeFileSync(knownHosts, noted + noted.replace(`${network}.2`, `${network}.3`));
    return made;
  }
});
