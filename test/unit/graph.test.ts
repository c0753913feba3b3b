/** The program's graph, from the registrations that Pulumi's engine would get. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as pulumi from "@pulumi/pulumi";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { fileDigest } from "../../artifacts/artifacts.ts";
import type { ClusterArgs } from "../../components/cluster.ts";
import { FakeMachine } from "../../machines/fake.ts";
import type { ManagedSpec } from "../../machines/managed.ts";
import type { Observed } from "../../machines/observe.ts";
import type { MachineRecord } from "../../machines/record.ts";
import type { MachineRef } from "../../machines/ref.ts";
import { preflight } from "../../steps/preflight.ts";

// What it checks is this machine, on which the graph does not depend; preflight.test.ts is about it.
vi.mock("../../steps/preflight.ts", () => ({ preflight: vi.fn(), needMachine: vi.fn() }));
// What is found of the machine.
let observed: Observed;
vi.mock("../../machines/index.ts", async (original) => ({
  ...(await original<typeof import("../../machines/index.ts")>()),
  openMachine: (ref: MachineRef) => Object.assign(new FakeMachine(ref), { observed }),
}));

interface Registration {
  type: string;
  /** The names of the resources, without their types. */
  parent: string;
  dependsOn: string[];
  deletedWith: string;
  secretOutputs: string[];
  /** As they are on the wire: a secret is wrapped. */
  inputs: Record<string, unknown>;
}

const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-graph-"));
const nameOf = (urn: string) => urn.split("::").at(-1) ?? "";

/** What the sandbox is found to lack. */
const found = ["kernel-tunables", "old-kernel-cri"];

/** What a command prints, or the engine's own word on a pod. */
const outputs = (type: string, name: string, inputs: object) =>
  type === "kubernetes:core/v1:Pod"
    ? { ...inputs, metadata: { name: "testpod", uid: "uid-1" }, status: { phase: "Running" } }
    : { ...inputs, stdout: stdoutOf(name) };

const stdoutOf = (name: string) => {
  if (name.endsWith("quirks-ask")) return JSON.stringify(found);
  if (name.endsWith("node-member")) return JSON.stringify({ token: "t0ken1.s3cret", serverCA: "s", clientCA: "c" });
  return `${name} says`;
};

/** Runs the program with these options and returns what it registers, by name. */
async function graph(options: Record<string, unknown> = {}): Promise<Record<string, Registration>> {
  return (await program(options)).registrations;
}

/** The same, with what the program exports. */
async function program(
  options: Record<string, unknown>,
  run: () => Promise<Record<string, unknown>> = () => import("../../index.ts"),
) {
  const registrations: Record<string, Registration> = {};
  await pulumi.runtime.setMocks(
    {
      newResource: ({ type, name, inputs }) => ({ id: `${name}-id`, state: outputs(type, name, inputs) }),
      call: () => ({}),
    },
    "gvisor-k3s",
    "graph",
  );
  const monitor = pulumi.runtime.getMonitor()!;
  const register = monitor.registerResource;
  monitor.registerResource = ((...args: Parameters<typeof register>) => {
    const [request] = args;
    registrations[request.getName()] = {
      type: request.getType().replace("gvisor-k3s:index:", ""),
      parent: nameOf(request.getParent()),
      dependsOn: request.getDependenciesList().map(nameOf).sort(),
      deletedWith: nameOf(request.getDeletedwith()),
      secretOutputs: request.getAdditionalsecretoutputsList(),
      inputs: request.getObject()!.toJavaScript(),
    };
    return register.apply(monitor, args);
  }) as typeof register;
  pulumi.runtime.setAllConfig(
    Object.fromEntries(
      Object.entries(options).map(([key, value]) => [
        `gvisor-k3s:${key}`,
        typeof value === "string" ? value : JSON.stringify(value),
      ]),
    ),
  );
  vi.resetModules();
  try {
    const exported = await run();
    await pulumi.runtime.disconnect();
    return { registrations, exported: (exported.default ?? exported) as Record<string, unknown> };
  } catch (error) {
    await pulumi.runtime.disconnect(); // what was begun before
    throw Object.assign(error as Error, { registered: Object.keys(registrations) });
  }
}

/**
 * Everything that must be done before a resource is made.
 * @param through what a resource is said to depend on; Pulumi's engine keeps these, and a destroy goes by them
 */
function awaited(
  all: Record<string, Registration>,
  name: string,
  through = ({ dependsOn }: Registration) => dependsOn,
): Set<string> {
  const found = new Set<string>();
  const visit = (from: string) => {
    for (const next of through(all[from]!)) {
      if (found.has(next)) continue;
      found.add(next);
      visit(next);
    }
  };
  visit(name);
  return found;
}

let plain: Record<string, Registration>;

const nothing: Observed = { state: "absent", drift: [], repairs: {}, problems: [] };

beforeAll(async () => {
  vi.stubEnv("GVISOR_K3S_HOME", home);
  observed = nothing;
  plain = await graph();
});

afterAll(() => {
  vi.unstubAllEnvs();
  rmSync(home, { recursive: true });
});

describe("the graph", () => {
  it("has each part as a component, with its commands below it", () => {
    const parts = Object.entries(plain).filter(([, { type }]) => !type.includes(":"));
    expect(
      Object.fromEntries(
        parts.map(([part, { type }]) => [
          part,
          [
            type,
            Object.keys(plain)
              .filter((name) => plain[name]!.parent === part)
              .sort(),
          ],
        ]),
      ),
    ).toEqual({
      sandbox: ["Sandbox", ["sandbox-process"]],
      quirks: ["QuirkProbe", ["quirks-ask"]],
      facade: ["KernelFacade", ["facade-apply"]],
      runc: ["PatchedRunc", ["runc-build"]],
      runtime: ["RuntimeWrapper", ["runtime-check"]],
      containerd: ["ContainerdConfig", ["containerd-apply", "containerd-registries"]],
      node: ["K3sNode", ["node-kubeconfig", "node-ready", "node-server"]],
      network: ["PodNetwork", ["network-apply"]],
      images: ["Images", ["images-import"]],
      proxy: ["ServiceProxy", ["proxy-apply"]],
      coredns: ["ClusterDns", ["coredns-apply"]],
      "metrics-server": ["MetricsServer", ["metrics-server-apply"]],
      testpod: ["TestPod", ["testpod-logs", "testpod-pod", "testpod-provider"]],
    });
  });

  it("does the steps in the order of their integration", () => {
    const order = [
      "sandbox-process",
      "quirks-ask",
      "facade-apply",
      "runtime-check",
      "containerd-apply",
      "network-apply",
      "node-ready",
      "testpod-pod",
      "testpod-logs",
    ];
    for (const [index, step] of order.entries()) {
      expect([...awaited(plain, step)], `before ${step}`).toEqual(expect.arrayContaining(order.slice(0, index)));
      for (const later of order.slice(index + 1)) expect(awaited(plain, step), `before ${step}`).not.toContain(later);
    }
    expect(awaited(plain, "runtime-check")).toContain("runc-build");
    expect(awaited(plain, "testpod-pod")).toContain("images-import");
    expect(awaited(plain, "images-import")).toContain("containerd-apply");
    expect(awaited(plain, "images-import")).not.toContain("node-server");
    expect([...awaited(plain, "node-server")], "its kubelet awaits containerd by itself").toEqual(["sandbox-process"]);
    expect(awaited(plain, "node-ready")).toContain("node-server");
    expect(awaited(plain, "network-apply")).not.toContain("images-import");
    expect([...awaited(plain, "coredns-apply")]).toEqual(
      expect.arrayContaining(["network-apply", "images-import", "proxy-apply"]),
    );
    for (const other of ["proxy-apply", "coredns-apply", "metrics-server-apply"])
      expect(awaited(plain, "testpod-pod"), "what the test pod does not need").not.toContain(other);
  });

  it("builds runc beside the sandbox, once it is known what it is to be patched with", async () => {
    expect(awaited(plain, "runc-build")).toContain("quirks-ask");
    const named = await graph({ quirks: [] });
    expect([...awaited(named, "runc-build")]).toEqual([]);
    // A resource is registered after its parent, which in turn waits for all that it depends on itself.
    const withParents = ({ dependsOn, parent }: Registration) => [...dependsOn, ...(parent ? [parent] : [])];
    expect([...awaited(named, "runc-build", withParents)]).toEqual(["runc"]);
  });

  it("lets everything in the sandbox end with it, and nothing else", () => {
    const ending = Object.keys(plain).filter((name) => plain[name]!.deletedWith !== "");
    expect(ending.sort()).toEqual([
      "containerd-apply",
      "containerd-registries",
      "coredns-apply",
      "facade-apply",
      "images-import",
      "metrics-server-apply",
      "network-apply",
      "node-kubeconfig",
      "node-ready",
      "node-server",
      "proxy-apply",
      "quirks-ask",
      "runc-build",
      "runtime-check",
      "testpod-logs",
      "testpod-pod",
    ]);
    for (const name of ending) expect(plain[name]!.deletedWith, name).toBe("sandbox-process");
  });

  it("keeps the kubeconfig a secret, wherever it goes", async () => {
    const { registrations, exported } = await program({});
    expect(registrations["node-kubeconfig"]).toMatchObject({
      secretOutputs: ["stdout", "stderr"],
      inputs: { logging: "none" },
    });
    expect(await (exported.kubeconfig as unknown as { isSecret: Promise<boolean> }).isSecret).toBe(true);
    const secret = {
      "4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270",
      value: "node-kubeconfig says",
    }; // Pulumi's own mark of a secret
    expect(registrations["testpod-provider"]!.inputs.kubeconfig).toEqual(secret);
    expect(registrations["testpod-logs"]!.inputs.stdin).toEqual(secret);
    // Less those two it is nowhere.
    const rest = JSON.stringify(registrations).replaceAll(JSON.stringify(secret), "");
    expect(rest).not.toContain(secret.value);
  });

  it("keeps registries' passwords and keys secret", async () => {
    const key = join(home, "client.key");
    writeFileSync(key, "-----BEGIN PRIVATE KEY-----\nvery-private\n");
    const { registrations } = await program({
      registries: {
        configs: {
          "a.example": { auth: { username: "a", password: "very-secret" }, tls: { cert_file: key, key_file: key } },
        },
      },
    });
    const secret = { "4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270" };
    expect(registrations["containerd-apply"]!.inputs.environment).toMatchObject({ STEP_PARAMS: secret });
    expect(registrations["containerd-registries"]!.inputs.stdin).toMatchObject(secret);
    expect(registrations["containerd-apply"]!.inputs.stdin, "what is not secret is shown").toEqual(expect.any(String));
  });

  it("keeps a password in a proxy's address secret, and shows an address without one", async () => {
    const secret = { "4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270" };
    const { registrations } = await program({ proxy: { https: "http://me:very-secret@proxy.example:3128" } });
    expect(registrations["containerd-apply"]!.inputs.environment).toMatchObject({ STEP_PARAMS: secret });
    const plain = { ...registrations, "containerd-apply": {} };
    expect(JSON.stringify(plain)).not.toContain("very-secret");
    const open = await program({ proxy: { https: "http://proxy.example:3128" } });
    expect(open.registrations["containerd-apply"]!.inputs.environment).toMatchObject({
      STEP_PARAMS: expect.stringContaining("HTTPS_PROXY=http://proxy.example:3128"),
    });
  });

  it("takes registries and a proxy that are outputs, and keeps a secret one", async () => {
    const secret = { "4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270" };
    const { registrations } = await program({}, async () => {
      const { Cluster } = await import("../../components/cluster.ts");
      const password = pulumi.secret("very-secret");
      const host = pulumi.output("mirror.example");
      const registries = {
        mirrors: { "docker.io": { endpoint: [pulumi.interpolate`https://${host}:5000`] } },
        configs: { "a.example": { auth: { username: "a", password } } },
      };
      const proxy = { http: pulumi.interpolate`http://${host}:3128` };
      return { default: { made: new Cluster("graph", { registries, proxy }) } };
    });
    const { environment } = registrations["graph-containerd-apply"]!.inputs as { environment: Record<string, unknown> };
    const params = environment.STEP_PARAMS as { value: string };
    expect(params).toMatchObject(secret);
    expect(JSON.parse(params.value)).toMatchObject({
      credentials: expect.stringContaining("very-secret"),
      env: expect.arrayContaining(["HTTP_PROXY=http://mirror.example:3128"]),
    });
    expect(JSON.stringify(registrations["graph-containerd-registries"]!.inputs)).toContain(
      "https://mirror.example:5000",
    );
    expect(JSON.stringify(registrations).replaceAll(JSON.stringify(params), "")).not.toContain("very-secret");
  });

  it("takes outputs for what is in the files of containerd and the server, and for the test pod", async () => {
    const { registrations } = await program({}, async () => {
      const { Cluster } = await import("../../components/cluster.ts");
      const late = pulumi.output("late");
      const node = {
        httpsListenPort: 7443,
        labels: { team: late },
        apiServerArgs: [pulumi.interpolate`oidc-client-id=${pulumi.secret("very-secret")}`],
      };
      const containerd = { logLevel: pulumi.output("debug" as const) };
      const pod = { args: [late, "b"] };
      const nodes = [{ name: "w" }];
      return { default: { made: new Cluster("graph", { node, containerd, pod, nodes }) } };
    });
    const server = registrations["graph-node-server"]!.inputs.stdin as { value: string };
    for (const line of ["team=late", "oidc-client-id=very-secret", "https-listen-port: 7443"])
      expect(server.value).toContain(line);
    expect(JSON.stringify(registrations).replaceAll(JSON.stringify(server), "")).not.toContain("very-secret");
    expect(registrations["graph-containerd-apply"]!.inputs.stdin).toContain('level = "debug"');
    expect(registrations["graph-testpod-pod"]!.inputs).toMatchObject({
      spec: { containers: [{ args: ["late", "b"] }] },
    });
  });

  it("takes no other output, and says of each that is one where it is", async () => {
    const given = { name: pulumi.output("graph"), sandbox: { memory: pulumi.secret("2Gi") } } as unknown as ClusterArgs;
    const made = program({}, async () => {
      const { Cluster } = await import("../../components/cluster.ts");
      return { default: { made: new Cluster("graph", given) } };
    });
    const error = (await made.catch((reason: unknown) => reason)) as Error;
    for (const option of ["name", "sandbox.memory"]) expect(error.message).toContain(`${option}: it is an output`);
  });

  it("replaces a sandbox for another name, home, subnet or mode only, and nothing else at all", () => {
    const replacing = Object.entries(plain).filter(([, { inputs }]) => inputs.triggers !== undefined);
    expect(Object.fromEntries(replacing.map(([name, { inputs }]) => [name, inputs.triggers]))).toEqual({
      "sandbox-process": ["graph", home, expect.stringMatching(/^10\.107\..*\/30$/), "node"],
    });
  });

  it("has what the stack tells", async () => {
    const { exported } = await program({ sandbox: { subnet: "192.168.7.0/24" } });
    const told = await new Promise((resolve) => pulumi.output({ ...exported }).apply(resolve));
    expect(told).toEqual({
      address: "192.168.7.2",
      kubeconfig: "node-kubeconfig says",
      quirks: found,
      kubeconfigPath: `${home}/sandboxes/graph/kubeconfig`,
      testPod: { name: "testpod", phase: "Running", logs: "testpod-logs says" },
    });
  });
});

/** The parameters of a step. */
function paramsOf(all: Record<string, Registration>, name: string): Record<string, unknown> {
  const { STEP_PARAMS } = all[name]!.inputs.environment as { STEP_PARAMS: string };
  return JSON.parse(STEP_PARAMS) as Record<string, unknown>;
}

/**
 * The inputs that differ between two graphs, as "resource.input"; a resource that only one of them has is told by its
 * name.
 */
function differences(a: Record<string, Registration>, b: Record<string, Registration>): string[] {
  const keys = (all: Record<string, Registration>) =>
    Object.entries(all).flatMap(([name, { inputs }]) => [name, ...Object.keys(inputs).map((key) => `${name}.${key}`)]);
  const at = (all: Record<string, Registration>, path: string) => {
    const [name, key] = path.split(".") as [string, string?];
    return JSON.stringify(key === undefined ? name in all : all[name]?.inputs[key]);
  };
  const differing = [...new Set([...keys(a), ...keys(b)])].filter((path) => at(a, path) !== at(b, path));
  return differing.filter((path) => !differing.includes(path.split(".")[0]!) || !path.includes(".")).sort();
}

describe("further nodes", () => {
  const pools = (count: number) => ({ nodes: [{ name: "w", count }] });

  it("are all that a node has, and their part in the cluster ends with the server's machine", async () => {
    const one = await graph(pools(1));
    const added = Object.keys(one).filter((name) => !(name in plain));
    expect(added.filter((name) => one[name]!.type.startsWith("command:")).sort()).toEqual(
      [
        "containerd-apply",
        "containerd-registries",
        "facade-apply",
        "images-import",
        "node-join",
        "node-member",
        "proxy-apply",
        "quirks-ask",
        "runc-build",
        "runtime-check",
        "sandbox-process",
      ].map((name) => `w-1-${name}`),
    );
    expect(one["w-1-node-member"]!.deletedWith).toBe("sandbox-process");
    expect(one["w-1-node-join"]!.deletedWith).toBe("w-1-sandbox-process");
    expect([...awaited(one, "w-1-node-member")]).toEqual(
      expect.arrayContaining(["node-server", "w-1-sandbox-process"]),
    );
    expect([...awaited(one, "w-1-node-join")]).toEqual(
      expect.arrayContaining(["w-1-node-member", "w-1-containerd-apply"]),
    );
    expect(awaited(one, "w-1-containerd-apply"), "what needs no server begins beside it").not.toContain("node-server");
    expect(awaited(one, "testpod-pod"), "what the test pod does not need").not.toContain("w-1-node-join");
  });

  it("have the same parts on another machine, which is reached by what the pool says, and a link there", async () => {
    const ssh = { host: "far.example", knownHosts: "/k", privateKey: "/p" };
    const both = await graph({ nodes: [{ name: "w" }, { name: "far", ssh }] });
    const parts = (node: string) =>
      Object.keys(both)
        .filter((name) => name.startsWith(`${node}-`))
        .map((name) => name.slice(node.length))
        .sort();
    expect(parts("far-1")).toEqual(parts("w-1"));
    expect(paramsOf(both, "far-1-sandbox-process")).toMatchObject({
      machine: { kind: "ssh", joins: "graph", ssh: { host: "far.example" } },
      spec: { mesh: { cluster: "graph" } },
    });
    expect(paramsOf(both, "far-1-proxy-apply")).toMatchObject({ mesh: "gk-nodes" });
    expect(paramsOf(both, "w-1-proxy-apply")).toMatchObject({ mesh: "eth1" });
    expect(paramsOf(both, "far-1-node-member")).toMatchObject({ machine: { kind: "managed", name: "graph" } });
  });

  it("get another kubelet one after the other, and take pods again before the next is drained", async () => {
    observed = { ...nothing, state: "running" };
    const drained = await graph({ nodes: [{ name: "w", count: 2, drain: true }] });
    expect(drained["w-2-node-member"]!.dependsOn).toContain("w-1-node-return");
    expect(drained["w-1-node-return"]!.dependsOn).toContain("w-1-node-join");
    const others = await graph(pools(2));
    observed = nothing;
    expect(others["w-2-node-member"]!.dependsOn).toContain("w-1-node-join");
    expect(awaited(others, "w-2-containerd-apply"), "what is beside it").not.toContain("w-1-node-join");
    expect(awaited(await graph(pools(2)), "w-2-node-join"), "nodes that are new").not.toContain("w-1-node-join");
  });

  it("keep by what a node joins a secret", async () => {
    const one = await graph(pools(1));
    expect(one["w-1-node-member"]!.secretOutputs).toContain("stdout");
    const secret = JSON.stringify(one["w-1-node-join"]!.inputs);
    expect(secret).toContain("t0ken1.s3cret");
    const shown = { ...one["w-1-node-join"]!.inputs, environment: undefined };
    expect(JSON.stringify(shown)).not.toContain("t0ken1.s3cret");
  });

  it("change nothing of the others: one more is what is new", async () => {
    const [one, two] = [await graph(pools(1)), await graph(pools(2))];
    for (const name of Object.keys(one)) expect(two[name], name).toEqual(one[name]);
    const added = Object.keys(two).filter((name) => !(name in one));
    expect(added.every((name) => name.startsWith("w-2-"))).toBe(true);
  });
});

describe("an update touches only what an option is about", () => {
  it.each<[Record<string, unknown>, string[]]>([
    [{ containerd: { snapshotter: "native" } }, ["containerd-apply.stdin"]],
    [{ containerd: { logLevel: "debug" } }, ["containerd-apply.stdin"]],
    [
      { registries: { mirrors: { "docker.io": { endpoint: ["https://mirror.example"] } } } },
      ["containerd-registries.stdin"],
    ],
    [
      { registries: { configs: { "a.example": { auth: { username: "a", password: "b" } } } } },
      ["containerd-apply.environment"],
    ],
    [{ proxy: { http: "http://proxy.example:3128" } }, ["containerd-apply.environment"]],
    // The sandbox's step has the tools of the version, and the others its kubectl: they restart nothing.
    [
      { kubernetes: "1.36" },
      ["coredns", "metrics-server", "proxy"]
        .map((part) => `${part}-apply.environment`)
        .concat(["node-ready", "node-server", "sandbox-process"].map((name) => `${name}.environment`))
        .sort(),
    ],
    [{ node: { labels: { a: "b" } } }, ["node-server.stdin"]],
    [{ node: { httpsListenPort: 7443 } }, ["node-kubeconfig.environment", "node-server.stdin"]],
    [{ network: { mtu: 1500 } }, ["network-apply.stdin"]],
    [
      { node: { clusterCidr: "10.99.0.0/16" } },
      ["network-apply.stdin", "node-server.stdin", "sandbox-process.environment"],
    ],
    [{ sandbox: { memory: "2Gi" } }, ["sandbox-process.environment"]],
    [{ sandbox: { hostPorts: [5000] } }, ["sandbox-process.environment"]],
    [{ sandbox: { platform: "kvm" } }, ["quirks-ask.environment", "sandbox-process.environment"]],
    [{ pod: { args: ["-v"] } }, ["testpod-pod.spec"]],
    [{ egress: { enabled: false } }, ["sandbox-process.environment"]],
    [{ sandbox: { restart: false } }, ["sandbox-process.environment"]],
    [{ ports: ["8080:80"] }, ["sandbox-process.environment"]],
    [{ sandbox: { setuid: false } }, ["quirks-ask.environment", "sandbox-process.environment"]],
    [
      { node: { files: { "/etc/kubernetes/self.ts": import.meta.filename } } },
      ["node-files", "node-server.environment"],
    ],
    [{ addons: { coredns: { enabled: false } } }, ["coredns", "coredns-apply"]],
    [{ addons: { metricsServer: { enabled: false } } }, ["metrics-server", "metrics-server-apply"]],
    [{ addons: { ingress: { enabled: true } } }, ["images-import.environment", "ingress", "ingress-apply"]],
    [{ addons: { coredns: { image: "example.test/coredns:1" } } }, ["coredns-apply.stdin"]],
    [{ addons: { localStorage: { enabled: false } } }, ["node-server.stdin"]],
    [{ node: { clusterDomain: "example.test" } }, ["coredns-apply.stdin", "node-server.stdin"]],
    [{ pod: { enabled: false } }, ["testpod", "testpod-logs", "testpod-pod", "testpod-provider"]],
    [
      { runtime: { rules: [{ dropNamespace: "cgroup" }] } },
      ["containerd-apply.stdin", "runtime-check.environment", "runtime-check.stdin"],
    ],
  ])("%j", async (options, expected) => {
    expect(differences(plain, await graph(options))).toEqual(expected);
  });

  const record: MachineRecord = {
    version: 2,
    kind: "managed",
    owner: "gvisor-k3s/graph",
    incarnation: 4,
    revision: "another",
    pid: 1,
    startTime: "1",
    repairs: 0,
    programs: { init: "" },
  };

  it.each<Observed["state"]>(["stopped", "silent", "running"])(
    "a sandbox that is found %s, and is to be started anew, has what lives in its memory done again, and no more",
    async (state) => {
      observed = { ...nothing, state, record };
      const next = await graph();
      observed = nothing;
      expect(differences(plain, next)).toEqual(
        [
          "containerd-apply",
          "coredns-apply",
          "facade-apply",
          "metrics-server-apply",
          "network-apply",
          "node-ready",
          "node-server",
          "proxy-apply",
          "runtime-check",
          "sandbox-process",
        ].map((name) => `${name}.environment`),
      );
      expect(next["sandbox-process"]!.inputs.environment).toMatchObject({ SANDBOX_INCARNATION: "5" });
    },
  );

  it("a file that was edited has its step done again, and a supervisor that is gone that of the sandbox", async () => {
    observed = { ...nothing, repairs: { containerd: 1, sandbox: 2 } };
    const next = await graph();
    observed = nothing;
    expect(differences(plain, next)).toEqual(["containerd-apply.environment", "sandbox-process.environment"]);
    expect(next["sandbox-process"]!.inputs.environment).toMatchObject({ STEP_REPAIRS: "2" });
  });

  it("a network that was lost has the node waited for, and restarts nothing", async () => {
    observed = { ...nothing, repairs: { network: 1 } };
    const next = await graph();
    observed = nothing;
    expect(differences(plain, next)).toEqual(["network-apply.environment", "node-ready.environment"]);
    expect(next["node-ready"]!.inputs.environment).toMatchObject({ STEP_REPAIRS: "0", BELOW_REPAIRS: "1" });
  });

  it("a sandbox that is replaced has everything in it done again", () => {
    const inIt = Object.keys(plain).filter((name) => plain[name]!.deletedWith === "sandbox-process");
    const steps = inIt.filter((name) => plain[name]!.type.startsWith("command:") && name !== "testpod-logs");
    for (const name of steps.filter((step) => step !== "runc-build")) {
      expect(plain[name]!.inputs.environment, name).toMatchObject({ SANDBOX_ID: "sandbox-process-id" });
    }
  });
});

describe("an option changes the graph", () => {
  it("with a rule there is a wrapper, before the check, and without one there is none", async () => {
    // A runc of a fixed content, so that its path in the golden file is fixed too.
    const runc = join(home, "runc");
    writeFileSync(runc, "a runc");
    const ruled = await graph({
      runtime: {
        path: runc,
        rules: [
          { dropNamespace: "cgroup" },
          { dropMaskedPath: "/proc/kcore" },
          { set: "process.noNewPrivileges", value: false },
        ],
      },
    });
    await expect(ruled["runtime-check"]!.inputs.stdin).toMatchFileSnapshot("golden/rules.json");
    expect(plain["runtime-check"]!.inputs.stdin).toBe("");
    expect(ruled["containerd-apply"]!.inputs.stdin).toMatch(
      /BinaryName = "\/opt\/gvisor-k3s\/runc-wrapper-[0-9a-f]{12}\/runc-wrapper"/,
    );
  });

  it(
    "k3s is downloaded beside the sandbox, and runs in the embedded server's place with its own " + "addons off",
    async () => {
      const k3s = await graph({ distribution: "k3s" });
      expect(k3s["node-download"]!.inputs.create).toBe("k3s");
      expect([...awaited(k3s, "node-download")]).toEqual([]);
      expect([...awaited(k3s, "node-server")]).toEqual(
        expect.arrayContaining(["node-download", "containerd-apply", "network-apply"]),
      );
      expect(paramsOf(k3s, "node-server")).toMatchObject({
        server: {
          distribution: "k3s",
          server: expect.stringMatching(/^\/opt\/gvisor-k3s\/k3s-v1\.36\.4\+k3s1-\w+\/k3s$/),
          kubectl: expect.stringMatching(/gvisor-k3s-node$/),
        },
      });
      expect(k3s["node-server"]!.inputs.stdin).toContain(
        "disable:\n  - coredns\n  - local-storage\n  - metrics-server\n  - servicelb\n  - traefik\n",
      );
      // This project's controllers run beside it, where there are pods.
      expect(paramsOf(k3s, "controllers-apply")).toMatchObject({
        program: expect.stringMatching(/gvisor-k3s-node$/),
        claims: true,
      });
      expect(k3s["controllers-class-apply"]!.inputs.stdin).toContain("name: local-path");
      const unclaimed = await graph({ distribution: "k3s", addons: { localStorage: { enabled: false } } });
      expect(paramsOf(unclaimed, "controllers-apply")).toMatchObject({ claims: false });
      expect(Object.keys(unclaimed)).not.toContain("controllers-class-apply");
      for (const options of [{ distribution: "k3s", mode: "control-plane" }, {}] as const)
        expect(Object.keys(await graph(options)).join()).not.toContain("controllers");
      expect(Object.keys(await graph({ distribution: "k3s", k3s: { path: process.execPath } }))).not.toContain(
        "node-download",
      );
    },
  );

  it("on a machine that is a sandbox itself the same steps are done, and none has a runsc or a way out", async () => {
    const inside = await graph({ target: "inside" });
    expect(paramsOf(inside, "sandbox-process")).toMatchObject({ machine: { kind: "inside" } });
    expect(JSON.stringify(inside)).not.toMatch(/runsc-|egress/);
    expect(Object.keys(inside).sort()).toEqual(Object.keys(plain).sort());
  });

  it("on another machine the same steps are done from here, and the key stays in its file", async () => {
    const key = join(home, "key");
    writeFileSync(key, "a very private key");
    const ssh = { host: "machine.example", privateKey: key, knownHosts: "/dev/null", user: "ops" };
    const there = await graph({ target: "ssh", ssh });
    expect(Object.keys(there).sort()).toEqual(Object.keys(plain).sort());
    const steps = Object.keys(there).filter((name) => there[name]!.type.startsWith("command:"));
    for (const name of steps.filter((step) => step !== "testpod-logs")) {
      expect(there[name]!.type).toBe("command:local:Command");
      expect(paramsOf(there, name), name).toMatchObject({
        machine: { kind: "ssh", ssh: { ...ssh, port: 22, sudo: true } },
      });
    }
    expect(there["sandbox-process"]!.inputs.triggers).toEqual([
      ...["graph", "/var/lib/gvisor-k3s", expect.any(String), "node", "ssh", "machine.example", "22"],
    ]);
    expect(JSON.stringify(there)).not.toContain("very private");
    // A machine that was set up anew has lost what is on its disk, and what was copied to it.
    for (const step of ["images-import", "containerd-registries", "node-kubeconfig", "quirks-ask", "runc-build"]) {
      expect(there[step]!.inputs.environment, step).toMatchObject({ SANDBOX_INCARNATION: "1" });
    }
  });

  it("a control plane alone has nothing that runs containers", async () => {
    const alone = await graph({ mode: "control-plane" });
    expect(
      Object.keys(alone)
        .filter((name) => alone[name]!.type.startsWith("command:"))
        .sort(),
    ).toEqual(["node-kubeconfig", "node-server", "quirks-ask", "sandbox-process"]);
    expect(alone["node-server"]!.inputs.stdin).toContain("disable-agent: true");
  });

  it("crun takes the place of runc", async () => {
    const crun = join(home, "crun");
    writeFileSync(crun, "a crun");
    const other = await graph({ quirks: ["no-freezer"], runtime: { name: "crun", path: crun } });
    expect(Object.keys(other).filter((name) => name.startsWith("runc"))).toEqual([]);
    expect(other["containerd-apply"]!.inputs.stdin).toMatch(/BinaryName = "\/opt\/gvisor-k3s\/runc-wrapper-/);
    const { runtime, rules } = JSON.parse(other["runtime-check"]!.inputs.stdin as string);
    expect(runtime).toEqual([
      expect.stringMatching(/^\/opt\/gvisor-k3s\/own-crun-[0-9a-f]{12}\/crun$/),
      "--cgroup-manager=disabled",
    ]);
    expect(rules).toEqual([{ set: "ociVersion", value: "1.0.2" }]);
  });

  it("quirks that are named are not asked for, and give the same as when they are found", async () => {
    const named = await graph({ quirks: found });
    expect(differences(plain, named)).toEqual(["quirks-ask"]);
  });

  it.each<[string[], string[]]>([
    [
      ["setns-exec", "cap-last-cap"],
      ["containerd-apply.stdin", "runc-build.environment", "runtime-check.environment"],
    ],
    [["cgroup-namespace"], ["containerd-apply.stdin", "runtime-check.environment", "runtime-check.stdin"]],
    [["overlay-upper"], ["containerd-apply.stdin"]],
    [["dev-kmsg"], ["facade-apply.environment"]],
    [["no-netfilter"], []],
  ])("with the quirks %j only what removes them changes", async (more, expected) => {
    expect(differences(await graph({ quirks: found }), await graph({ quirks: [...found, ...more] }))).toEqual(expected);
  });

  it("what a cluster does not have is no output of the stack, of which Pulumi would warn", async () => {
    const { exported } = await program({ mode: "control-plane" });
    expect(Object.keys(exported).sort()).toEqual(["address", "kubeconfig", "kubeconfigPath", "quirks"]);
  });

  it("without the test pod there is none", async () => {
    expect(Object.keys(await graph({ pod: { enabled: false } })).filter((name) => name.startsWith("testpod"))).toEqual(
      [],
    );
  });

  it(
    "a manifest of the user's is applied when what its pods need is there, and one with a Secret is " + "a secret",
    async () => {
      const [plainFile, secretFile] = ["app.yaml", "keys.yml"].map((name) => join(home, name)) as [string, string];
      writeFileSync(plainFile, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n");
      writeFileSync(secretFile, "apiVersion: v1\nkind: Secret\nmetadata: {name: b}\nstringData: {key: very-secret}\n");
      const more = await graph({ manifests: [plainFile, secretFile] });
      expect(more["manifest-app-apply"]).toMatchObject({
        parent: "manifest-app",
        inputs: { stdin: expect.stringContaining("kind: ConfigMap") },
      });
      expect([...awaited(more, "manifest-app-apply")]).toEqual(
        expect.arrayContaining(["network-apply", "images-import", "proxy-apply"]),
      );
      expect(more["manifest-keys-apply"]!.inputs.stdin).toMatchObject({
        "4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270",
      });
      const alone = await graph({ mode: "control-plane", manifests: [plainFile] });
      expect(
        JSON.parse((alone["manifest-app-apply"]!.inputs.environment as { STEP_PARAMS: string }).STEP_PARAMS),
      ).toMatchObject({ manifest: "app", pods: false });
    },
  );

  it("programs of the user's are taken in place of those that are built", async () => {
    const [containerd, shim, runsc] = ["containerd", "shim", "runsc"].map((name) => {
      writeFileSync(join(home, name), name);
      return join(home, name);
    });
    const own = await graph({ sandbox: { runsc }, containerd: { containerd, shim } });
    const { takes, ...spec } = paramsOf(own, "sandbox-process").spec as ManagedSpec;
    expect(takes.map(({ name }) => name)).toEqual(["init", "host"]);
    expect(spec).toMatchObject({ runsc, runscDigest: fileDigest(runsc!) });
    // What stays of the built one is ctr.
    expect(paramsOf(own, "containerd-apply")).toMatchObject({
      takes: {
        artifacts: [{ name: "containerd" }, { name: "cni" }, { name: "init" }],
        own: [
          { source: containerd, name: "containerd" },
          { source: shim, name: "containerd-shim-runc-v2" },
        ],
      },
      shim: expect.stringMatching(
        /^\/opt\/gvisor-k3s\/own-containerd-shim-runc-v2-[0-9a-f]{12}\/containerd-shim-runc-v2$/,
      ),
    });
  });
});

describe("what is wrong stops the program before it registers anything", () => {
  it("two clusters of one name", async () => {
    const twice = program({}, async () => {
      const { Cluster } = await import("../../components/cluster.ts");
      return { one: new Cluster("one", { name: "same" }), two: new Cluster("two", { name: "same" }) };
    });
    await expect(twice).rejects.toThrow("two clusters of this program are called same; give one another option name");
  });

  it("in the options", async () => {
    const refused = await program({ network: { mtu: 1 } }).catch((error: unknown) => error);
    expect(refused).toMatchObject({
      message: expect.stringContaining("network.mtu = 1: a whole number from 1280 to 65521 is allowed"),
      registered: [],
    });
    // Of any other error Pulumi prints also where it was thrown.
    expect(pulumi.RunError.isInstance(refused)).toBe(true);
  });

  it("on the machine", async () => {
    vi.mocked(preflight).mockImplementationOnce(() => {
      throw new Error("not on this machine");
    });
    await expect(program({ network: { mtu: 1500 } })).rejects.toMatchObject({
      message: "not on this machine",
      registered: [],
    });
    expect(preflight).toHaveBeenLastCalledWith(
      expect.objectContaining({ name: "graph", network: { bridge: "cni0", mtu: 1500, policies: "enforce" } }),
      "gvisor-k3s/graph",
    );
  });
});
