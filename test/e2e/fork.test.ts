/** Clusters that begin with what another one has: each test goes on where the one before it stopped. */
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { imageName } from "../../artifacts/artifacts.ts";
import {
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
  root,
  setOptions,
} from "./harness.ts";

const home = await ownHome();
const [plane, copy, begun] = ["e2e-fork-c", "e2e-fork-d", "e2e-fork-e"];
const [node, other] = ["e2e-fork-n", "e2e-fork-m"];
const all = [plane, copy, begun, node, other];

afterAll(async () => {
  await endAll(home, ...all);
  if (!process.env.KEEP) for (const name of all) rmSync(optionsFile(name), { force: true });
});

const note = (name: string, what: string) => kubectl(name, "create", "configmap", what);
const notes = async (name: string) =>
  (await kubectl(name, "get", "configmaps", "-o=jsonpath={.items[*].metadata.name}"))
    .split(" ")
    .filter((found) => found !== "kube-root-ca.crt")
    .sort();

/** What an API server says to who has the credentials of another cluster, and does not look whom he asks. */
async function saysTo(credentials: string, name: string): Promise<string> {
  const server = /server: (\S+)/.exec(readFileSync(pathsOf(name).kubeconfig, "utf8"))![1]!;
  const foreign = [`--kubeconfig=${pathsOf(credentials).kubeconfig}`, `--server=${server}`];
  const insecure = ["--insecure-skip-tls-verify=true", "get", "configmaps"];
  const { all, exitCode } = await kubectlProcess(name, [...foreign, ...insecure], { reject: false, all: true });
  expect(exitCode).not.toBe(0);
  return String(all);
}

describe("a control plane", () => {
  beforeAll(async () => {
    setOptions(plane, { mode: "control-plane", ports: ["127.0.0.1:18463:6443"] });
    await printed("up", plane);
    await note(plane, "of-both");
    // Its root would have every fork take the identity for its own already.
    await inside(plane, "ln", "-s", "seed", "/var/lib/rancher/k3s/server/seeded");
  });

  it("is another cluster with the same objects, which lets nobody in who has keys of the first", async () => {
    expect(await printed("fork", plane, copy)).toContain(`${optionsFile(copy)} has the options of ${plane}`);
    expect(await notes(copy)).toEqual(["of-both"]);
    for (const [credentials, name] of [
      [plane, copy],
      [copy, plane],
    ] as const)
      expect(await saysTo(credentials, name)).toMatch(/Unauthorized|must be logged in/);
    expect(await inside(copy, "hostname")).toBe(copy);
    expect(await printed("preview", copy)).toBe("nothing changes");
    expect(await printed("snapshot", "list", plane)).toContain("has no snapshot");
  });

  it("goes its own way", async () => {
    await note(copy, "of-the-copy");
    await note(plane, "of-the-first");
    expect(await notes(plane)).toEqual(["of-both", "of-the-first"]);
    expect(await notes(copy)).toEqual(["of-both", "of-the-copy"]);
  });

  it("refuses what it cannot be, and makes nothing", async () => {
    expect(await refused("fork", plane, copy)).toContain("it is there already; choose another name");
    const before = readdirSync(root);
    expect(await refused("fork", plane, "org/values")).toContain("letters, digits, dots, dashes and underscores");
    expect(readdirSync(root)).toEqual(before);
    expect(await refused("fork", plane, begun, "--from", "none")).toContain("there is no such snapshot");
    await printed("snapshot", "save", plane, "then");
    setOptions(begun, { from: `${plane}/then`, kubernetes: "1.36", node: { httpsListenPort: 7443 } });
    const said = await refused("up", begun);
    for (const [option, why] of [
      ["mode", "it was another one when"],
      ["node", "it was another one when"],
      ["kubernetes", "take that, and upgrade the cluster"],
    ])
      expect(said).toMatch(new RegExp(`- ${option}.*${why}`));
    expect(entriesOf(pathsOf(begun).state)).toEqual([]);
    setOptions(begun, { from: "nobody", mode: "control-plane" });
    expect(await refused("up", begun)).toContain("`gvisor-k3s snapshot list nobody` names those that there are");
  });

  it("begins with a snapshot by an option, which is of no interest from then on", async () => {
    await note(plane, "of-later");
    setOptions(begun, { from: `${plane}/then`, mode: "control-plane" });
    await printed("up", begun);
    expect(await notes(begun)).toEqual(["of-both", "of-the-first"]);
    expect(await saysTo(plane, begun)).toMatch(/Unauthorized|must be logged in/);
    await printed("snapshot", "delete", plane, "then");
    expect(await printed("preview", begun)).toBe("nothing changes");
    const authority = await inside(begun, "cat", "/var/lib/rancher/k3s/server/tls/server-ca.crt");
    await printed("up", begun);
    expect(await inside(begun, "cat", "/var/lib/rancher/k3s/server/tls/server-ca.crt")).toBe(authority);
    expect(await notes(begun)).toEqual(["of-both", "of-the-first"]);
  });
});

describe("a node", () => {
  const image = imageName("testpod");
  const name = "data";
  const volumes = [{ name, persistentVolumeClaim: { claimName: name } }];
  const container = { name: "main", image, imagePullPolicy: "Never", volumeMounts: [{ name, mountPath: "/data" }] };
  const pod = { apiVersion: "v1", kind: "Pod", metadata: { name: "kept" }, spec: { containers: [container], volumes } };
  const data = async (cluster: string) => await inside(cluster, "sh", "-c", "cat /var/lib/rancher/k3s/storage/*/noted");
  const ready = (cluster: string) => kubectl(cluster, "wait", "pod/kept", "--for=condition=Ready", "--timeout=120s");

  beforeAll(async () => {
    setOptions(node, { addons: { coredns: { enabled: false }, metricsServer: { enabled: false } } });
    await printed("up", node);
    const claim = { accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Mi" } } };
    const items = [{ apiVersion: "v1", kind: "PersistentVolumeClaim", metadata: { name }, spec: claim }, pod];
    await kubectlProcess(node, ["apply", "-f", "-"], {
      input: JSON.stringify({ apiVersion: "v1", kind: "List", items }),
    });
    await ready(node);
    await inside(node, "sh", "-c", "echo then > $(echo /var/lib/rancher/k3s/storage/*)/noted");
  });

  it("that is killed while it takes its data is made by the same command", async () => {
    const mine = `fork-${other}`;
    await printed("snapshot", "save", node, mine);
    await killedWhen(() => existsSync(pathsOf(other).seed), ["fork", node, other]);
    await printed("destroy", other);
    expect(entriesOf(pathsOf(other).state)).toEqual([]);
    await printed("fork", node, other);
    expect(entriesOf(pathsOf(node).snapshots)).toEqual([mine]);
  });

  it("runs the same pods, with their data, and calls itself by its own name", async () => {
    await ready(other);
    expect(await kubectl(other, "get", "nodes", "-o=jsonpath={.items[*].metadata.name}")).toBe(other);
    expect(await kubectl(other, "get", "pod", "kept", "-o=jsonpath={.spec.nodeName}")).toBe(other);
    const id = (cluster: string) => kubectl(cluster, "get", "nodes", "-o=jsonpath={..nodeInfo.machineID}");
    expect(await id(other)).not.toBe(await id(node));
    expect(await data(other)).toBe("then");
    await inside(other, "sh", "-c", "echo now > $(echo /var/lib/rancher/k3s/storage/*)/noted");
    expect(await data(node)).toBe("then");
    expect(await printed("preview", other)).toBe("nothing changes");
    expect(await kubectl(node, "get", "pod", "kept", "-o=jsonpath={.status.containerStatuses[0].restartCount}")).toBe(
      "0",
    );
  });

  it("lets a pod that is bound to its node come up again elsewhere in it", async () => {
    await kubectl(other, "delete", "pod", "kept", "--grace-period=1");
    await kubectlProcess(other, ["apply", "-f", "-"], { input: JSON.stringify(pod) });
    await ready(other);
    expect(await data(other)).toBe("now");
  });
});
