import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { arch, tmpdir } from "node:os";
import { join } from "node:path";
import { rootCertificates } from "node:tls";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { conflistPath } from "../../config/conflist.ts";
import { meshDevice, meshNetworks } from "../../config/mesh.ts";
import { overlap, parseNetwork } from "../../config/network.ts";
import { joiningNodes } from "../../config/nodes.ts";
import { renderKubeletConfig } from "../../config/nodeYaml.ts";
import { inSandbox } from "../../config/paths.ts";
import { parseStackConfig } from "../../config/schema.ts";
import { FakeMachine } from "../../machines/fake.ts";
import { driverOf } from "../../machines/index.ts";
import { answerIn, startedIn } from "../../machines/inside.ts";
import { hostPaths } from "../../machines/paths.ts";
import { distributionOf } from "../../servers/index.ts";
import type { ServerRef } from "../../servers/server.ts";
import { joinServer } from "../../steps/join.ts";
import { invitationIn, inviteNode, removeNode, returnNode } from "../../steps/member.ts";
import { CommandError } from "../../system/run.ts";

const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-nodes-"));
afterAll(() => rmSync(home, { recursive: true }));

describe("the nodes of the options", () => {
  const k3s = { distribution: "k3s", k3s: { version: "v1.36.4+k3s1" } };

  it("are called by cluster, pool and number, and have limits and a network of their own", () => {
    const nodes = [
      { name: "w", count: 2, memory: "1Gi" },
      { name: "gpu", taints: ["gpu=yes:NoSchedule"] },
    ];
    const config = parseStackConfig({ name: "dev", nodes, ports: ["8080:80"], sandbox: { hostPorts: [5000] } });
    const joining = joiningNodes(config);
    expect(joining.map(({ name }) => name)).toEqual(["dev-w-1", "dev-w-2", "dev-gpu-1"]);
    const [first, , gpu] = joining;
    expect(first!.config).toMatchObject({ name: "dev-w-1", ports: [], sandbox: { memory: "1Gi", hostPorts: [5000] } });
    expect(first!.config.joins).toEqual({ cluster: "dev", server: config.sandbox.subnet });
    expect(gpu!.taints).toEqual(["gpu=yes:NoSchedule"]);
  });

  it("are of the server's version or an older one, and YAML may take that for a number", () => {
    const config = parseStackConfig({ name: "dev", nodes: [{ name: "w" }, { name: "old", kubernetes: 1.36 }] });
    expect(joiningNodes(config).map((node) => node.config.kubernetes)).toEqual(["1.37", "1.36"]);
  });

  it("are of the server's k3s, or of another one", () => {
    const nodes = [
      { name: "w" },
      { name: "old", k3s: { version: "v1.35.9+k3s1" } },
      { name: "own", k3s: { path: process.execPath } },
    ];
    const config = parseStackConfig({ name: "dev", ...k3s, nodes });
    expect(joiningNodes(config).map((node) => distributionOf(node.config).refOf(node.config).version)).toEqual([
      "v1.36.4+k3s1",
      "v1.35.9+k3s1",
      undefined,
    ]);
  });

  it.each([
    [{ kubernetes: "1.36", nodes: [{ name: "w", kubernetes: "1.37" }] }, "nodes.w.kubernetes", "never newer than its"],
    [{ nodes: [{ name: "w" }, { name: "w" }] }, "nodes", "two pools have this name"],
    [{ nodes: [{ name: "w", memory: "100Mi" }] }, "nodes.w.memory", "at least 256Mi"],
    [{ nodes: [{ name: "w", labels: { "node-role.kubernetes.io/x": "" } }] }, "nodes.w.labels", "no kubelet may give"],
    [{ nodes: [{ name: "w", k3s: { path: "/k3s" } }] }, "nodes.w.k3s", "for distribution: k3s"],
    [{ ...k3s, nodes: [{ name: "w", kubernetes: "1.36" }] }, "nodes.w.kubernetes", "nodes.w.k3s says which"],
    [
      { ...k3s, nodes: [{ name: "w", k3s: { version: "v1.37.0+k3s1" } }] },
      "nodes.w.k3s.version",
      "never newer than its",
    ],
    [
      { distribution: "k3s", k3s: { path: "/k3s" }, nodes: [{ name: "w", k3s: { version: "v1.35.0+k3s1" } }] },
      "nodes.w.k3s.version",
      "give them k3s.path",
    ],
    [{ ...k3s, nodes: [{ name: "w", k3s: { version: "v1.32.0+k3s1" } }] }, "nodes.w.k3s.version", "at most 3 minor"],
    [
      { ...k3s, nodes: [{ name: "w", k3s: { path: "/k3s" }, drain: true }] },
      "nodes.w.drain",
      "the version is not known",
    ],
    [
      {
        distribution: "k3s",
        k3s: { version: "v1.36.4+k3s1", airgap: "/k3s" },
        nodes: [{ name: "w", k3s: { version: "v1.35.9+k3s1" } }],
      },
      "nodes.w.k3s.version",
      "k3s.airgap has one release",
    ],
    [{ target: "inside", nodes: [{ name: "w" }] }, "nodes", "target: managed"],
    [{ nodes: [{ name: "w", ssh: {} }] }, "nodes[0].ssh.host", ""],
    [{ nodes: [{ name: "w", count: 2, ssh: { host: "a" } }] }, "nodes.w.count", "a is one machine"],
    [
      {
        nodes: [
          { name: "v", ssh: { host: "a" } },
          { name: "w", ssh: { host: "a", user: "ops" } },
        ],
      },
      "nodes.w.ssh.host",
      "the node of the pool v is there",
    ],
    [{ nodes: [{ name: "w", cpus: 1, ssh: { host: "a" } }] }, "nodes.w.cpus", "a sandbox that is made here is limited"],
  ])("are refused as %j", (options, option, message) => {
    const parse = () => parseStackConfig({ name: "dev", ...options });
    expect(parse).toThrow(option);
    expect(parse).toThrow(message);
  });

  it("are sandboxes of this host, or on other machines, each with its own link to the rest", () => {
    const nodes = [{ name: "w" }, { name: "far", ssh: { host: "a", user: "ops" } }];
    const config = parseStackConfig({ name: "dev", nodes });
    const [here, far] = joiningNodes(config).map((node) => node.config);
    expect([here!, far!].map(({ target }) => target)).toEqual(["managed", "ssh"]);
    expect(driverOf(far!).refOf(far!, home)).toMatchObject({
      kind: "ssh",
      joins: "dev",
      ssh: { host: "a", sudo: true },
    });
    expect([here!, far!].map(meshDevice)).toEqual(["eth1", "gk-nodes"]);
    expect(meshNetworks(far!.joins!)).toEqual(["10.107.0.0/16", config.sandbox.subnet]);
  });

  it.each([
    ["a network of the nodes'", ["10.107.3.0/24"], "it is on the network 10.107.3.0/24"],
    ["the nodes' as a way out", ["192.0.2.0/24", "10.107.0.1/32"], "it is on the network 10.107.0.1/32"],
    ["others", ["192.0.2.0/24", "192.0.2.1/32", "10.108.0.0/16"], undefined],
  ])("are not put on a machine that has %s", (_, networks, message) => {
    const config = parseStackConfig({ name: "dev", nodes: [{ name: "far", ssh: { host: "a" } }] });
    const far = joiningNodes(config)[0]!.config;
    const there = {
      arch: { x64: "x86_64", arm64: "aarch64" }[arch() as "x64"],
      isGvisor: true,
      missing: [],
      taken: [],
    };
    const observed = { state: "absent", drift: [], repairs: {}, problems: [] } as const;
    const found = { ...observed, drift: [], problems: [], there: { ...there, free: 4096, stranger: false, networks } };
    const problems = driverOf(far).problemsThere!(far, driverOf(far).refOf(far, home), found);
    expect(problems.map((problem) => problem.message.split(",")[0])).toEqual(message === undefined ? [] : [message]);
  });

  it("have networks that share no address, whatever they are called", () => {
    const name = fc.string({ unit: fc.constantFrom(..."abc"), minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(name, fc.integer({ min: 1, max: 20 }), (cluster, count) => {
        const config = parseStackConfig({ name: cluster, nodes: [{ name: "w", count }] });
        const subnets = [config.sandbox.subnet, ...joiningNodes(config).map((node) => node.config.sandbox.subnet)];
        const networks = subnets.map((subnet) => parseNetwork(subnet)!);
        for (const [i, a] of networks.entries())
          for (const b of networks.slice(i + 1)) expect(overlap(a, b)).toBe(false);
      }),
    );
  });

  it("have links whose names the kernel takes, each its own", () => {
    const names = ["dev", "dev-w-1", "a-long-name", "a-long-name-workers-1", "a-long-name-workers-2"];
    const links = names.map((name) => hostPaths(name, home).link);
    expect(new Set(links).size).toBe(names.length);
    for (const link of links) expect(link).toMatch(/^gk-.{1,12}$/);
  });
});

it("what a machine tells of its start is numbers and a hash, whatever else it says", () => {
  const told = {
    incarnation: 3,
    revision: "ab1",
    pid: 7,
    startTime: "99",
    owner: "p/other",
    joins: "other",
    kind: "managed",
  };
  expect(startedIn(told)).toEqual({ incarnation: 3, revision: "ab1", pid: 7, startTime: "99" });
  for (const wrong of [null, [], "x", { pid: -1, incarnation: 1e99, revision: "\u001b[2J", startTime: {} }])
    expect(startedIn(wrong)).toEqual({ incarnation: 0, revision: "", pid: 0, startTime: "" });
});

it("what a machine tells of itself is of the form that is known, or nothing is taken of it", () => {
  const told = {
    record: null,
    alive: true,
    answers: false,
    files: null,
    services: {},
    free: 7,
    arch: "x86_64",
    gvisor: true,
  };
  expect(answerIn(JSON.stringify({ ...told, taken: ["/etc/cni"] }))).toMatchObject({ files: {}, taken: ["/etc/cni"] });
  for (const wrong of [{ files: [] }, { services: 7 }, { record: [] }, { files: { "/a": null } }, { taken: {} }])
    expect(answerIn(JSON.stringify({ ...told, taken: null, ...wrong })), JSON.stringify(wrong)).toBe(undefined);
  for (const text of ["", "null", "[]", "{"]) expect(answerIn(text)).toBe(undefined);
});

describe("an invitation", () => {
  it.each([
    ["no token", { token: "a b", serverCA: "", clientCA: "" }, "no token"],
    ["a program in its place", { token: "$(reboot)abc.0123456789abcdef" }, "no token"],
    ["no certificate", { token: "abcdef.0123456789abcdef", serverCA: "-----BEGIN", clientCA: "" }, "no server CA"],
  ])("with %s is refused", (_, printed, refusal) => {
    expect(() => invitationIn(JSON.stringify(printed))).toThrow(refusal);
  });
});

const context = (machine: FakeMachine, content = "") => ({
  machine,
  content,
  incarnation: 1,
  repairs: 0,
  say: (line: string) => said.push(line),
});
let said: string[] = [];

describe("a node that joins", () => {
  const params = (machine: FakeMachine, distribution: ServerRef["distribution"] = "embedded") => ({
    machine: machine.ref,
    server: { distribution, server: distribution === "k3s" ? "/opt/k3s" : "/opt/node", kubectl: "/opt/node" },
    takes: { artifacts: [], own: [] },
    invitation: { token: "abcdef.0123456789abcdef", serverCA: "server", clientCA: "client" },
    network: parseStackConfig({ name: "a" }).network,
    clusterCidr: "10.42.0.0/16",
    address: "10.107.0.2",
  });
  const joining = (pods: unknown) =>
    new FakeMachine(
      { kind: "managed", name: `a-w-${said.length}`, home },
      {
        starts: (_, machine) => {
          machine.files.set(`${inSandbox.nodeData}/agent/stages.json`, JSON.stringify({ pid: 1, pods, nodeReady: 1 }));
          return true;
        },
      },
    );

  it("gives its pods the network that the server chose, and keeps the token from others", async () => {
    const machine = joining("10.42.7.0/24");
    await joinServer.run(params(machine), context(machine, "config"));
    expect(machine.files.get(conflistPath)).toContain('"10.42.7.0/24"');
    expect(machine.files.get(inSandbox.joinToken)).toBe("abcdef.0123456789abcdef\n");
    expect(machine.files.get(inSandbox.nodeConfig)).toBe("config");
  });

  it("to k3s has k3s' agent run, which takes no other server, and keeps its password on a machine made anew", async () => {
    const [first, second] = [joining("10.42.7.0/24"), joining("10.42.7.0/24")];
    for (const machine of [first, second]) {
      await joinServer.run(params(machine, "k3s"), context(machine, "config"));
    }
    expect(first.services.get("agent")!.command.join(" ")).toBe(
      `/opt/node join --config ${inSandbox.nodeConfig} --agent /opt/k3s`,
    );
    const hash = createHash("sha256").update("server").digest("hex");
    expect(first.files.get(inSandbox.joinToken)).toBe(`K10${hash}::abcdef.0123456789abcdef\n`);
    expect(first.files.get(inSandbox.nodePassword)).toMatch(/^[0-9a-f]{32}\n$/);
    expect(second.files.get(inSandbox.nodePassword)).toBe(first.files.get(inSandbox.nodePassword));
    expect(first.files.get(`${inSandbox.nodeData}/agent/etc/kubelet.conf.d/10-gvisor-k3s.conf`)).toBe(
      renderKubeletConfig(),
    );
  });

  it.each([["10.43.0.0/24"], ["../../etc"], [7], [undefined]])("takes no %s for it", async (pods) => {
    const machine = joining(pods);
    await expect(joinServer.run(params(machine), context(machine))).rejects.toThrow("is none of 10.42.0.0/16");
    expect(machine.files.has(conflistPath)).toBe(false);
  });
});

/** The server's machine, what is run there, and the parameters of what is done for a node. */
const server = (answers: (args: readonly string[]) => string) => {
  said = [];
  const ran: string[] = [];
  const runs = (args: readonly string[]) => {
    ran.push(args.slice(1, 3).join(" "));
    return answers(args);
  };
  const machine = new FakeMachine({ kind: "managed", name: "a", home }, { runs });
  const params = { machine: machine.ref, program: "/opt/node", node: "a-w-1", address: "10.107.0.6" };
  return { ran, machine, params };
};

const heldBack = () => {
  throw new CommandError({
    escapedCommand: "kubectl drain",
    exitCode: 1,
    stderr: "Cannot evict pod db-0",
    timedOut: false,
    isMaxBuffer: false,
  });
};

describe("a node that gets another kubelet, and is drained for it", () => {
  const token = "abcdef.0123456789abcdef";
  const pem = rootCertificates[0]!;
  const answers = (node: object) => (args: readonly string[]) =>
    args.includes("get") ? JSON.stringify(node) : JSON.stringify({ token, serverCA: pem, clientCA: pem });
  const tells = (kubeletVersion: string, unschedulable = false, annotations = {}) => ({
    metadata: { annotations },
    spec: { unschedulable },
    status: { nodeInfo: { kubeletVersion } },
  });
  const invited = async (node: object) => {
    const { ran, machine, params } = server(answers(node));
    await inviteNode.run({ ...params, kubelet: "v1.37.2" }, context(machine));
    return ran;
  };

  it("takes no pods before, unless it has it already", async () => {
    expect(await invited(tells("v1.36.3"))).toEqual([
      "kubectl get",
      "kubectl annotate",
      "kubectl drain",
      "invite --config",
    ]);
    expect(said).toEqual(["draining a-w-1, which gets v1.37.2 in place of v1.36.3"]);
    expect(await invited(tells("v1.37.2"))).toEqual(["kubectl get", "invite --config"]);
  });

  it("takes pods again, but for one whose user wants none on it", async () => {
    const drained = { "gvisor-k3s/drained": "" };
    const returned = async (node: object) => {
      const { ran, machine, params } = server(answers(node));
      await returnNode.run(params, context(machine));
      return ran;
    };
    expect(await returned(tells("v1.37.2", true, drained))).toEqual([
      "kubectl get",
      "kubectl uncordon",
      "kubectl annotate",
    ]);
    expect(await invited(tells("v1.36.3", true))).toEqual(["kubectl get", "kubectl drain", "invite --config"]);
    expect(await returned(tells("v1.37.2", true))).toEqual(["kubectl get"]);
  });

  it("keeps the one that it has where something keeps it from being drained", async () => {
    const { ran, machine, params } = server((args) =>
      args.includes("drain") ? heldBack() : answers(tells("v1.36.3"))(args),
    );
    const done = inviteNode.run({ ...params, kubelet: "v1.37.2" }, context(machine));
    await expect(done).rejects.toThrow(/so its kubelet is not exchanged.*Cannot evict pod db-0/);
    expect(ran).not.toContain("invite --config");
  });
});

describe("a node that is removed", () => {
  const remove = async (answers: (args: readonly string[]) => string) => {
    const { ran, machine, params } = server(answers);
    return { ran, done: removeNode.run(params, context(machine)) };
  };

  it("is drained first, and its volumes are told", async () => {
    const { ran, done } = await remove((args) =>
      args.includes("persistentvolumes") ? "pvc-1 a\npvc-2 a-w-1\n" : args.includes("get") ? "{}" : "",
    );
    await done;
    expect(ran).toEqual(["kubectl get", "kubectl get", "kubectl drain", "forget --config"]);
    expect(said).toEqual(["node a-w-1 goes, and with it what is on pvc-2"]);
  });

  it("that the server does not know is only forgotten", async () => {
    const { ran, done } = await remove(() => "");
    await done;
    expect(ran).toEqual(["kubectl get", "forget --config"]);
  });

  it("stays if something keeps it from being drained, which is told with what to do", async () => {
    const { ran, done } = await remove((args) => (args.includes("drain") ? heldBack() : "{}"));
    await expect(done).rejects.toThrow(
      /a-w-1 is not drained within 120 s.*Cannot evict pod db-0[\s\S]*PodDisruptionBudget/,
    );
    expect(ran).not.toContain("forget --config");
  });
});
