/**
 * A cluster with nodes on other machines, by SSH, beside those of this host. In one order: each test goes on where the one
 * before it stopped.
 */
import { readFileSync, rmSync } from "node:fs";
import { execa } from "execa";
import { afterAll, beforeAll, expect, it } from "vitest";
import { meshNamespace } from "../../machines/paths.ts";
import type { ProcessId } from "../../system/processes.ts";
import { waitFor } from "../../system/wait.ts";
import {
  cli,
  endAll,
  killProcess,
  kubectl,
  optionsFile,
  ownHome,
  pathsOf,
  printed,
  refused,
  setOptions,
  stateFiles,
  supervised,
  traces,
} from "./harness.ts";
import { PATIENCE, reaching } from "./reaching.ts";
import { type SshMachine, startSshMachine } from "./sshMachine.ts";

const home = await ownHome();
const name = "e2e-far";
const [here, far, other] = [`${name}-w-1`, `${name}-far-1`, `${name}-other-1`];
const base = { pod: { enabled: false }, addons: { metricsServer: { enabled: false } } };
const { pod, service, apply, of, addressOf, nodeAddress, ready, hears, becomes } = reaching(name);
let machines: SshMachine[];
let before: ReturnType<typeof traces>;

/** How a machine is logged in to. */
const reached = ({ host, keys }: SshMachine) => ({ host, privateKey: keys.user, knownHosts: keys.knownHosts });

function configure(nodes: Record<string, SshMachine>, more: object = {}): void {
  const elsewhere = Object.entries(nodes).map(([pool, machine]) => ({ name: pool, ssh: reached(machine), ...more }));
  setOptions(name, { ...base, nodes: [{ name: "w" }, ...elsewhere] });
}

async function up(nodes: Record<string, SshMachine>): Promise<string> {
  configure(nodes);
  const { exitCode, all } = await cli("up", name);
  expect(exitCode, all).toBe(0);
  return all!;
}

/** What a node leaves on a machine. */
const left = (machine: SshMachine) =>
  machine.shell(
    "ls -d /etc/cni /etc/containerd /etc/rancher /opt/gvisor-k3s /run/gvisor* /run/netns/* /run/sandbox-init.sock " +
      "/var/lib/containerd /var/lib/gvisor-k3s /var/lib/kubelet /var/lib/rancher /var/log/gvisor-k3s 2> /dev/null; " +
      "cat /proc/mounts; ip -oneline address; ip route; true",
  );
let untouched: string[];

const wire = (node: string) => JSON.parse(readFileSync(pathsOf(node).wireProcess, "utf8")) as ProcessId;

/** What runs here, but for the machines themselves. */
const tracesHere = () => {
  const found = traces(home, name, here, far, other);
  return { ...found, files: [], processes: found.processes.filter((line) => !line.includes("/machines/")) };
};

beforeAll(async () => {
  machines = [];
  for (const [i, subnet] of ["10.109.21", "10.109.22", "10.109.23"].entries())
    machines.push(await startSshMachine(home, `e2e-far-${i}`, subnet));
  untouched = await Promise.all(machines.map(left));
  before = tracesHere();
});

afterAll(async () => {
  if (process.env.KEEP) return;
  await cli("destroy", name);
  for (const machine of machines) await machine.remove();
  rmSync(optionsFile(name), { force: true });
  await endAll(home, name);
});

it("tells what is wrong with any of the machines before anything is made on one", async () => {
  const [first, second] = machines as [SshMachine, SshMachine];
  configure({ far: first }, { count: 2, memory: "1Gi" });
  const limited = await cli("up", name);
  expect(limited.all).toContain(`nodes.far.count = 2: ${first.host} is one machine, and takes one node`);
  expect(limited.all).toContain('nodes.far.memory = "1Gi": a sandbox that is made here is limited');
  const missing = { ...first, keys: { ...first.keys, user: "/nowhere" } };
  configure({ far: missing });
  expect((await cli("up", name)).all).toContain('nodes.far.ssh.privateKey = "/nowhere": there is no such file');
  configure({ far: first, other: { ...second, keys: { ...second.keys, user: second.keys.stranger } } });
  const keyless = await cli("up", name);
  expect(keyless.all).toMatch(/the key is not accepted by 10\.109\.22\.2 for the user root/);
  expect(keyless.all).toContain("nothing was changed");
  expect(await Promise.all(machines.map(left))).toEqual(untouched);
  const { processes, ...others } = tracesHere();
  const { processes: _, ...othersBefore } = before;
  expect(others).toEqual(othersBefore);
  expect(processes.filter((line) => !line.includes("[mux]"))).toEqual([]); // ssh keeps a connection for some seconds
});

it("probes a machine before a node is there, of which nothing stays", async () => {
  const [first] = machines as [SshMachine];
  configure({ far: first });
  const all = await printed("doctor", name, "-n", far);
  expect(all).toContain(`probed the machine ${first.host}; kernel 4.19.0-gvisor`);
  expect(all).toContain("a node can run here");
  const preview = await printed("preview", name);
  expect(preview).toContain("+ create far-1-node-join");
  expect(await Promise.all(machines.map(left))).toEqual(untouched);
});

it("has nodes on two other machines, whose pods reach all others and are reached, by Services and names too", async () => {
  const [first, second] = machines as [SshMachine, SshMachine];
  await up({ far: first, other: second });
  const nodes = await kubectl(name, "get", "nodes", "-o=jsonpath={range .items[*]}{.metadata.name}{' '}{end}");
  expect(nodes.trim().split(" ").sort()).toEqual([name, far, other, here].sort());
  const on = { a: name, b: here, c: far, d: other };
  const pods = Object.entries(on).map(([one, node]) => pod(one, node));
  await apply(...pods, service("c", 30083), service("a", 30084));
  await ready("a", "b", "c", "d");
  for (const from of Object.keys(on)) {
    for (const to of Object.keys(on))
      expect(await hears(from, `${await addressOf(to)}:8080`), `${from} ${to}`).toBe(to);
    await becomes("a Service whose pod is elsewhere is served", from, "cs", "c");
    await becomes("and one whose pod is here", from, "as", "a");
    for (const node of [name, far, other])
      expect(await hears(from, `${await nodeAddress(node)}:30083`), node).toBe("c");
  }
  expect(await kubectl(name, "logs", "d")).toContain("is running on kernel");
  expect(await kubectl(name, "exec", "d", "--", "/testpod", "get", "https://kubernetes.default.svc/version")).toContain(
    "gitVersion",
  );
});

it("has a policy hold for a pod there and a client on another node", async () => {
  await apply({
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: "only-a" },
    spec: {
      podSelector: { matchLabels: { app: "c" } },
      ingress: [{ from: [{ podSelector: { matchLabels: { app: "a" } } }] }],
    },
  });
  const c = `${await addressOf("c")}:8080`;
  await becomes("others are refused", "d", c, "");
  for (const address of [c, "cs"]) {
    expect(await hears("a", address), address).toBe("c");
    expect(await hears("b", address), address).toBe("");
  }
  await kubectl(name, "delete", "networkpolicy", "only-a");
  await becomes("without the policy they are not", "d", c, "c");
});

it("is not changed by a second up, and tells of each node", async () => {
  const [first, second] = machines as [SshMachine, SshMachine];
  expect(await up({ far: first, other: second })).toMatch(/resources {3}\d+ same\n/);
  const told = JSON.parse(await printed("status", name, "--json")) as { joined: object[]; problems: string[] };
  expect(told.problems).toEqual([]);
  expect(told.joined).toHaveLength(3);
  expect(await printed("list")).not.toContain(far);
  expect(await refused("pause", name)).toContain("only nodes that are made on this machine can be saved");
  expect((await printed("exec", "-c", name, "-n", far, "--", "uname", "-n")).trim()).toBe("e2e-far-0");
});

it("keeps what leads there from others", async () => {
  const key = readFileSync(machines[0]!.keys.user, "utf8").split("\n")[1]!;
  for (const file of stateFiles(home)) expect(readFileSync(file, "utf8")).not.toContain(key);
});

it("links a node again after its connection broke, by itself", async () => {
  const { pid } = wire(far);
  const { stdout: ssh } = await execa("pgrep", ["--parent", String(pid)]);
  process.kill(Number(ssh), "SIGKILL");
  await becomes("it is reached again", "a", `${await addressOf("c")}:8080`, "c");
  expect(wire(far).pid).toBe(pid);
});

it("links it again by the next up where what leads there is gone", async () => {
  await killProcess(wire(far));
  const told = await cli("status", name);
  expect(told.exitCode).toBe(3);
  expect(told.all).toContain(`node ${far}: the link to the other nodes is gone`);
  await up({ far: machines[0]!, other: machines[1]! });
  await becomes("it is reached again", "a", `${await addressOf("c")}:8080`, "c");
});

it("has them there when the server's sandbox died and came back", async () => {
  await killProcess(supervised(name).sandbox!);
  await waitFor(
    "the server answers",
    2 * PATIENCE,
    async () => (await kubectl(name, "get", "nodes").catch(() => "")).includes(far) || undefined,
  );
  await waitFor(
    "the pods reach each other",
    2 * PATIENCE,
    async () => (await hears("d", `${await addressOf("a").catch(() => "none")}:8080`)) === "a" || undefined,
  );
  await kubectl(name, "wait", `node/${far}`, `node/${other}`, "--for=condition=Ready", "--timeout=60s");
});

it("moves a node to another machine, and takes one off, of which nothing is left", async () => {
  const [first, second, third] = machines as [SshMachine, SshMachine, SshMachine];
  await up({ far: third, other: second });
  expect(await left(first)).toBe(untouched[0]);
  await apply(pod("e", far));
  await ready("e");
  expect(await hears("d", `${await addressOf("e")}:8080`)).toBe("e");
  expect(await of("node", far, ".status.conditions[?(@.type=='Ready')].status")).toBe("True");
  await up({ far: third });
  expect(await left(second)).toBe(untouched[1]);
  expect(await kubectl(name, "get", "nodes")).not.toContain(other);
});

it("tells of a machine that is gone, and leaves it to itself when it is told to", async () => {
  await machines[2]!.halt();
  const told = await cli("status", name);
  expect(told.exitCode).toBe(3);
  expect(told.all).toMatch(new RegExp(`! node ${far}: .*10\\.109\\.23\\.2`));
  expect(told.all).toMatch(/^e2e-far-w-1 +Ready/m);
  configure({});
  const stuck = await cli("up", name);
  expect(stuck.exitCode).toBe(1);
  expect(stuck.all).toContain("if the machine 10.109.23.2 is gone for good, the same command with --forget");
  expect(await printed("up", "--forget", name)).toContain("e2e-far");
  expect(await kubectl(name, "get", "nodes")).not.toContain(far);
  expect(tracesHere().namespaces).toEqual(
    [meshNamespace(name), ...[name, here].map((node) => pathsOf(node).link)].sort(),
  );
}, 400_000);

it("leaves nothing here or there", async () => {
  const { exitCode, all } = await cli("destroy", name);
  expect(exitCode, all).toBe(0);
  const there = machines.slice(0, 2);
  expect(await Promise.all(there.map(left))).toEqual(untouched.slice(0, 2));
  const { namespaces: _, links: __, ...now } = tracesHere();
  expect(before).toMatchObject(now);
  expect(JSON.stringify(tracesHere())).not.toContain(meshNamespace(name));
});
