/** A cluster of several nodes, on real parts, in one order: each test goes on where the one before it stopped. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { waitFor } from "../../system/wait.ts";
import {
  cli,
  endAll,
  entriesOf,
  identity,
  inside,
  killProcess,
  killSandbox,
  kubectl,
  kubectlProcess,
  limits,
  optionsFile,
  ownHome,
  pathsOf,
  printed,
  refused,
  setOptions,
  shellImage,
  supervised,
  traces,
} from "./harness.ts";
import { PATIENCE, reaching } from "./reaching.ts";

const home = await ownHome();
const name = "e2e-nodes";
const [first, second] = [`${name}-w-1`, `${name}-w-2`];
const image = "nodes.test/shell:1";
const archive = join(home, "shell.tar");
const drain = process.env.K3S === undefined; // the version of a program of one's own is not known
const base = { pod: { enabled: false }, images: [archive], addons: { metricsServer: { enabled: false } } };
const pools = (count: number) => ({ ...base, nodes: [{ name: "w", count, labels: { tier: "w" }, drain }] });
let before: ReturnType<typeof traces>;

const { pod, service, apply, of, addressOf, nodeAddress, ready, hears, becomes } = reaching(name);

/** The versions of nodes' kubelets, and whom events are about, one after the other. */
const VERSIONS = "{.items[*].status.nodeInfo.kubeletVersion}";
const WHOM = "{.items[*].involvedObject.name}";

/** Waits until a pod of the Deployment answers by its Service, and returns its name. */
const reachesMoved = (what: string) =>
  waitFor(what, PATIENCE, async () => {
    const pods = ["get", "pods", "--selector=app=moved", "--field-selector=status.phase=Running"];
    const there = (await kubectl(name, ...pods, "-o=jsonpath={.items[*].metadata.name}")).split(" ");
    const heard = await hears("a", "moveds");
    return there.includes(heard) ? heard : undefined;
  });

/** What the host hears. */
const hostHears = async (address: string) => (await (await fetch(`http://${address}/`)).text()).split(" ")[0];

beforeAll(async () => {
  before = { ...traces(home, name, first, second), files: [] };
  await shellImage(image, archive, "id");
});

afterAll(async () => {
  rmSync(optionsFile(name), { force: true });
  await endAll(home, name);
});

async function up(nodes: number): Promise<void> {
  setOptions(name, pools(nodes));
  const { exitCode, all } = await cli("up", name);
  expect(exitCode, all).toBe(0);
}

it("has a second node that joins, and pods on both reach each other, by Services and names too", async () => {
  await up(1);
  const nodes = await kubectl(name, "get", "nodes", "-o=jsonpath={range .items[*]}{.metadata.name}{' '}{end}");
  expect(nodes.trim()).toBe(`${name} ${first}`);
  expect(await of("node", first, ".metadata.labels.tier")).toBe("w");
  await apply(pod("a", name), pod("b", first), service("a", 30081), service("b", 30080));
  await ready("a", "b");
  const [a, b] = [await addressOf("a"), await addressOf("b")];
  expect(await hears("a", `${b}:8080`)).toBe("b");
  expect(await hears("b", `${a}:8080`)).toBe("a");
  await becomes("the Service is served at the other node", "a", "bs", "b");
  await becomes("and at the server's", "b", "as", "a");
  for (const node of [name, first]) {
    const address = await nodeAddress(node);
    for (const asking of ["a", "b"]) expect(await hears(asking, `${address}:30081`), `${asking}, ${node}`).toBe("a");
    expect(await hostHears(`${address}:30080`)).toBe("b");
  }
  expect(await kubectl(name, "logs", "b")).toContain("is running on kernel");
});

it("gives a node nothing by its token but what is its own, and the server no stranger", async () => {
  const ask = async (node: string, csr: string) => {
    const token = (await inside(node, "/bin/cat", "/etc/rancher/k3s/token")).trim().replace(/.*::/, ""); // k3s' has more
    const api = `https://${await nodeAddress(name)}:6443`;
    const options = [`--server=${api}`, `--token=${token}`, "--insecure-skip-tls-verify"];
    return kubectlProcess(name, ["--kubeconfig=/dev/null", ...options, ...csr.split(" ")], { reject: false });
  };
  for (const question of ["get secrets -A", "get nodes", "get pods -A"])
    expect(String((await ask(first, question)).stderr), question).toContain("Forbidden");
  const stranger = ["--kubeconfig=/dev/null", "--token=abcdef.0123456789abcdef", "--insecure-skip-tls-verify"];
  const server = `--server=https://${await nodeAddress(name)}:6443`;
  const { stderr } = await kubectlProcess(name, [...stranger, server, "get", "nodes"], { reject: false });
  expect(stderr).toContain("Unauthorized");
});

it("has a policy hold for a pod of one node and a client on another", async () => {
  await apply(pod("c", name), {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: "only-a" },
    spec: {
      podSelector: { matchLabels: { app: "b" } },
      ingress: [{ from: [{ podSelector: { matchLabels: { app: "a" } } }] }],
    },
  });
  await ready("c");
  const b = `${await addressOf("b")}:8080`;
  await becomes("others are refused", "c", b, "");
  const port = `${await nodeAddress(first)}:30080`;
  for (const address of [b, "bs", port]) {
    expect(await hears("a", address), address).toBe("b");
    expect(await hears("c", address), address).toBe("");
  }
  await kubectl(name, "delete", "networkpolicy", "only-a");
  await becomes("without the policy they are not", "c", b, "b");
});

it("binds a claim on the node of its pod, for whoever the pod's user is, and removes the folder with it", async () => {
  const spec = {
    accessModes: ["ReadWriteOnce"],
    resources: { requests: { storage: "1Mi" } },
  };
  const shell = { image, command: ["sh", "-c", "id > /data/who; sleep 10000"] };
  const claiming = pod("claiming", first, {
    ...shell,
    securityContext: { runAsUser: 1000 },
    volumeMounts: [{ name: "data", mountPath: "/data" }],
  });
  const { nodeName: _, ...free } = claiming.spec; // the scheduler is who binds claims
  await apply(
    { apiVersion: "v1", kind: "PersistentVolumeClaim", metadata: { name: "data" }, spec },
    {
      ...claiming,
      spec: {
        ...free,
        nodeSelector: { tier: "w" },
        volumes: [{ name: "data", persistentVolumeClaim: { claimName: "data" } }],
      },
    },
  );
  await ready("claiming");
  expect(await of("pod", "claiming", ".spec.nodeName")).toBe(first);
  const folders = () => inside(first, "/bin/busybox", "ls", "/var/lib/rancher/k3s/storage");
  const folder = (await folders()).trim();
  const who = `/var/lib/rancher/k3s/storage/${folder}/who`;
  await waitFor(
    "the pod has written",
    PATIENCE,
    async () => (await inside(first, "/bin/cat", who).catch(() => "")).includes("uid=1000") || undefined,
  );
  await kubectl(name, "delete", "pod/claiming", "pvc/data");
  await waitFor("the folder is gone", PATIENCE, async () => (await folders()).trim() === "" || undefined);
});

it("tells of each node, runs programs on each, and refuses what takes one node", async () => {
  const told = JSON.parse(await printed("status", name, "--json")) as { joined: object[]; problems: string[] };
  expect(told.problems).toEqual([]);
  expect(told.joined).toMatchObject([{ name: first, ready: true }]);
  expect((await printed("exec", "-c", name, "-n", first, "--", "/bin/hostname")).trim()).toBe(first);
  expect(await refused("exec", "-c", name, "-n", "other", "--", "/bin/hostname")).toContain(`${name}, ${first}`);
  const only = "nodes.test/one:1";
  const one = join(home, "one.tar");
  await shellImage(only, one);
  await printed("images", "import", "-c", name, "-n", first, one);
  const has = async (node: string) => (await inside(node, "ctr", "-n", "k8s.io", "images", "ls", "-q")).includes(only);
  expect([await has(name), await has(first)]).toEqual([false, true]);
  expect(await printed("list")).not.toContain(first);
});

it("brings back a node that died, and one whose server did, with their pods", async () => {
  const before = await identity(name, "b");
  await killProcess(supervised(first).sandbox!);
  await waitFor("its pod runs again", 2 * PATIENCE, async () => {
    const now = await identity(name, "b");
    return (now !== before && (await of("pod", "b", ".status.containerStatuses[0].ready")) === "true") || undefined;
  });
  await becomes("it is reached", "a", `${await addressOf("b")}:8080`, "b");
  await killProcess(supervised(name).sandbox!);
  await waitFor(
    "the server answers",
    2 * PATIENCE,
    async () => (await kubectl(name, "get", "nodes").catch(() => "")).includes(first) || undefined,
  );
  await ready("b");
  await waitFor(
    "a runs again",
    2 * PATIENCE,
    async () => (await hears("b", `${await addressOf("a")}:8080`)) === "a" || undefined,
  );
});

it("heals a node by the next up, where its supervisor is gone as well", async () => {
  await killSandbox(first);
  const told = await cli("status", name);
  expect(told.exitCode).toBe(3);
  expect(told.all).toContain(`node ${first}: `);
  await up(1);
  // What is told of the pod may be of before for a moment, its address too.
  await waitFor(
    "its pod is reached",
    2 * PATIENCE,
    async () => (await hears("a", `${await addressOf("b")}:8080`)) === "b" || undefined,
  );
});

it("takes another limit of memory while it runs", async () => {
  const { sandbox } = supervised(first);
  setOptions(name, { ...base, nodes: [{ ...pools(1).nodes[0]!, memory: "600Mi" }] });
  const { exitCode, all } = await cli("up", name);
  expect(exitCode, all).toBe(0);
  expect(all).toMatch(/^resources +\d+ same, 1 update$/m);
  expect(limits(first).memory).toBe(600 * 2 ** 20);
  expect(supervised(first).sandbox).toEqual(sandbox);
  await up(1);
});

it("is taken back to a snapshot, with what was on each node", async () => {
  const data = { metadata: { name: "kept" }, apiVersion: "v1", kind: "ConfigMap" };
  const mark = (node: string, ...args: string[]) => inside(node, "/bin/busybox", ...args);
  await apply({ ...data, data: { is: "before" } });
  for (const node of [name, first]) await mark(node, "touch", "/var/lib/kept");
  await printed("snapshot", "save", name, "one");
  expect(await refused("snapshot", "save", name, "one")).toContain("has a snapshot one");
  await apply({ ...data, data: { is: "after" } });
  await kubectl(name, "delete", "pod/b", "--wait=false");
  for (const node of [name, first]) await mark(node, "rm", "/var/lib/kept");
  await printed("snapshot", "restore", name, "one");
  expect(await of("configmap", "kept", ".data.is")).toBe("before");
  for (const node of [name, first]) await mark(node, "ls", "/var/lib/kept");
  await waitFor(
    "the pod that was deleted is reached",
    2 * PATIENCE,
    async () => (await hears("a", `${await addressOf("b").catch(() => "none")}:8080`)) === "b" || undefined,
  );
  await printed("snapshot", "delete", name, "one");
  for (const node of [name, first]) expect(entriesOf(pathsOf(node).snapshots)).toEqual([]);
});

// A cluster of k3s is not forked: its keys are k3s' own to make.
it.skipIf(process.env.K3S)("is forked with all its nodes, each under a name of its own", async () => {
  const fresh = `${name}-2`;
  const token = (await inside(first, "/bin/cat", "/etc/rancher/k3s/token")).trim();
  const networks = (cluster: string) => kubectl(cluster, "get", "nodes", "-o=jsonpath={.items[*].spec.podCIDR}");
  await printed("fork", name, fresh);
  try {
    const nodes = (await kubectl(fresh, "get", "nodes", "-o=name"))
      .split("\n")
      .map((node) => node.replace("node/", ""));
    expect(nodes).toEqual([fresh, `${fresh}-w-1`]);
    expect(await networks(fresh)).toBe(await networks(name));
    const there = reaching(fresh);
    await there.ready("a", "b");
    expect([await there.of("pod", "a", ".spec.nodeName"), await there.of("pod", "b", ".spec.nodeName")]).toEqual(nodes);
    await there.becomes("a pod of the one node is reached from the other", "a", "bs", "b");
    await becomes("and those of the first cluster, as before", "a", "bs", "b");
    // Who is root on a node of the first cluster is nobody in the other.
    const api = `--server=https://${await there.nodeAddress(fresh)}:6443`;
    const asking = ["--kubeconfig=/dev/null", api, `--token=${token}`, "--insecure-skip-tls-verify", "get", "nodes"];
    expect(String((await kubectlProcess(fresh, asking, { reject: false })).stderr)).toContain("Unauthorized");
  } finally {
    await printed("destroy", fresh);
    rmSync(optionsFile(fresh), { force: true });
  }
  expect(traces(home, fresh, `${fresh}-w-1`)).toMatchObject({ links: [], namespaces: [], cgroups: [], locks: [] });
});

it("is paused as a whole, and goes on as one", async () => {
  await printed("pause", name);
  expect(traces(home, name, first).processes).toEqual([]);
  const told = JSON.parse(await printed("status", name, "--json")) as { state: string; problems: string[] };
  expect(told).toMatchObject({ state: "paused", problems: [] });
  expect(await refused("pause", name)).toContain("is paused already");
  await printed("resume", name);
  await waitFor(
    "the pods reach each other",
    2 * PATIENCE,
    async () => (await hears("a", `${await addressOf("b").catch(() => "none")}:8080`)) === "b" || undefined,
  );
  expect(await refused("resume", name)).toContain("runs already");
});

// Of k3s there is one release here; k3s.test.ts has two that stand in for it.
it.skipIf(process.env.K3S)(
  "has nodes older than the server, and exchanges their kubelets one after the other, each drained first",
  async () => {
    const old = [`${name}-o-1`, `${name}-o-2`];
    const bothPools = (kubernetes: object) => {
      const pool = { name: "o", count: 2, labels: { tier: "o" }, drain: true, ...kubernetes };
      setOptions(name, { ...pools(1), nodes: [...pools(1).nodes, pool] });
    };
    const versions = () => kubectl(name, "get", "nodes", "--selector=tier=o", `-o=jsonpath=${VERSIONS}`);
    bothPools({ kubernetes: "1.36" });
    const added = await cli("up", name);
    expect(added.exitCode, added.all).toBe(0);
    expect((await versions()).split(" ")).toEqual([
      expect.stringMatching(/^v1\.36\./),
      expect.stringMatching(/^v1\.36\./),
    ]);
    const app = { app: "moved" };
    const { nodeName: _, ...spec } = pod("moved", "").spec;
    await apply(
      {
        apiVersion: "apps/v1",
        kind: "Deployment",
        metadata: { name: "moved" },
        spec: {
          replicas: 1,
          selector: { matchLabels: app },
          template: { metadata: { labels: app }, spec: { ...spec, nodeSelector: { tier: "o" } } },
        },
      },
      service("moved", 30082),
    );
    await kubectl(name, "rollout", "status", "deployment/moved", "--timeout=60s");
    const before = await reachesMoved("a pod of an older node is reached");
    bothPools({});
    const { exitCode, all } = await cli("up", name);
    expect(exitCode, all).toBe(0);
    expect((await versions()).split(" ")).toEqual([
      expect.stringMatching(/^v1\.37\./),
      expect.stringMatching(/^v1\.37\./),
    ]);
    for (const node of old) expect(await of("node", node, ".spec.unschedulable")).toBe("");
    await waitFor("each kubelet tells that it was to take no pods", PATIENCE, async () => {
      const told = await kubectl(
        name,
        "get",
        "events",
        "--field-selector=reason=NodeNotSchedulable",
        `-o=jsonpath=${WHOM}`,
      );
      return old.every((node) => told.split(" ").includes(node)) || undefined;
    });
    await kubectl(name, "rollout", "status", "deployment/moved", "--timeout=60s");
    expect(await reachesMoved("it is reached where it went")).not.toBe(before);
    await kubectl(name, "delete", "deployment/moved", "service/moveds");
    await up(1);
    expect(entriesOf(join(home, "sandboxes"))).toEqual([name, first]);
  },
);

it("shows one node more as that node's resources and nothing else, and one less as their end, after a drain", async () => {
  setOptions(name, pools(2));
  const added = JSON.parse(await printed("preview", name, "--json")) as { resource: string; operation: string }[];
  expect(added.length).toBeGreaterThan(0);
  for (const { resource, operation } of added) expect(`${operation} ${resource}`).toMatch(/^create w-2-/);
  await up(2);
  await apply(pod("d", second));
  await ready("d");
  await becomes("the two that have joined reach each other", "d", `${await addressOf("b")}:8080`, "b");
  await up(1);
  expect(await kubectl(name, "get", "nodes")).not.toContain(second);
  expect(await kubectl(name, "get", "pods")).not.toMatch(/^d /m);
  expect(await kubectl(name, "get", "secrets", "--namespace=kube-system")).toContain("bootstrap-token");
  expect(entriesOf(join(home, "sandboxes"))).toEqual([name, first]);
  expect(await inside(name, "/bin/busybox", "ls", "/var/lib/rancher/k3s/server/nodes")).toBe(`${first}.json`);
});

it("is a cluster of one node again, whose sandbox goes on, once the pods of the last other one have ended", async () => {
  const leaving = pod("e", first, { image, command: ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"] });
  await apply({ ...leaving, spec: { ...leaving.spec, terminationGracePeriodSeconds: 30 } });
  await ready("e");
  const [sandbox, of] = [supervised(name).sandbox, await identity(name, "a")];
  const watch = kubectlProcess(name, ["get", "pod", "e", "--watch", "-o=jsonpath={.status.phase}{' '}"], {
    reject: false,
  });
  await up(0);
  watch.kill();
  // Who was told to end tells that it has, before it is gone.
  expect(String((await watch).stdout)).toContain("Succeeded");
  expect(await kubectl(name, "get", "nodes", "-o=name")).toBe(`node/${name}`);
  expect([supervised(name).sandbox, await identity(name, "a")]).toEqual([sandbox, of]);
  expect(entriesOf(join(home, "sandboxes"))).toEqual([name]);
});

it("leaves nothing", async () => {
  const { exitCode, all } = await cli("destroy", name);
  expect(exitCode, all).toBe(0);
  expect({ ...traces(home, name, first, second), files: [] }).toEqual(before);
});
