/**
 * The official release's way: downloaded, started by its own command line, awaited by the API server's word. k3s cannot
 * be had where this was built, so the release that a server on loopback offers is a script that starts the embedded
 * server, which reads the same config file.
 */
import { createHash } from "node:crypto";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { stringify } from "yaml";
import { imageName } from "../../artifacts/artifacts.ts";
import { k3sFolder, releaseFiles } from "../../artifacts/k3sRelease.ts";
import { waitFor } from "../../system/wait.ts";
import { changes, cli, inside, kill, kubectl, kubectlProcess, open, ownHome, removeHome, services } from "./harness.ts";

const home = await ownHome();
const name = "e2e-r";
const [older, newer, broken, odd] = ["v1.37.1+k3s900", "v1.37.1+k3s901", "v1.38.0+k3s900", "v1.37.1+k3s902"];
const { binary, sums } = releaseFiles();
/**
 * What k3s writes for its kube-proxy, which the embedded server writes elsewhere; and its version on standard error.
 */
const release = (version: string) => `#!/bin/sh
${version === broken ? "rm -f /var/lib/rancher/k3s/server/db/*; echo I cannot read this >&2; exit 1" : ""}
${version === odd ? 'echo "Unknown flag --node-ip found in config.yaml, skipping" >&2' : ""}
mkdir -p /var/lib/rancher/k3s/agent
ln -sf ../server/cred/kube-proxy.kubeconfig /var/lib/rancher/k3s/agent/kubeproxy.kubeconfig
echo "Starting k3s ${version}" >&2
if [ "$1" = agent ]; then
  cd /var/lib/rancher/k3s
  mkdir -p inner/agent
  # The hash is checked as k3s does, of what the server has; the rest of its token is one of Kubernetes' own.
  [ "$(sed 's/^K10//; s/::.*//' /etc/rancher/k3s/token)" = "$(sha256sum agent/server-ca.crt | cut -d' ' -f1)" ] || exit 1
  [ -s /etc/rancher/node/password ] || exit 1
  sed 's/.*:://' /etc/rancher/k3s/token > inner/token
  cp agent/*-ca.crt inner/agent
  ln -sf ../inner/agent/kubelet.kubeconfig agent
  sed "s,^data-dir: .*,&/inner,; s,^token-file: .*,token-file: $PWD/inner/token," "$3" > inner/config.yaml
  exec /usr/local/bin/gvisor-k3s-node join --config inner/config.yaml
fi
exec /usr/local/bin/gvisor-k3s-node "$@"
`;
const manifest = join(home, "settings.yaml");
const settings = (...names: string[]) =>
  writeFileSync(
    manifest,
    names
      .map((map) =>
        stringify({
          apiVersion: "v1",
          kind: "ConfigMap",
          metadata: { name: map, namespace: "default" },
          data: { a: "b" },
        }),
      )
      .join("---\n"),
  );
const removeReleases = () => {
  for (const version of [older, newer, broken, odd]) rmSync(k3sFolder({ version }), { recursive: true, force: true });
};
let server: Server;
let options: { distribution: "k3s"; k3s: { version: string; mirror: string }; manifests: string[] };

beforeAll(async () => {
  // of an earlier run
  removeReleases();
  server = createServer((request, response) => {
    const [version, file] = request.url!.split("/").slice(-2).map(decodeURIComponent) as [string, string];
    const content = release(version);
    if (file === binary) response.end(content);
    else if (file === sums) response.end(`${createHash("sha256").update(content).digest("hex")}  ${binary}\n`);
    else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  options = {
    distribution: "k3s",
    k3s: { version: older, mirror: `http://127.0.0.1:${(server.address() as AddressInfo).port}` },
    manifests: [manifest],
  };
});

afterAll(async () => {
  server.close();
  if (process.env.KEEP) return;
  await cli("destroy", name);
  removeReleases();
  removeHome(home);
});

it("is downloaded, and brings a pod to Running with the same containerd, network, proxy and DNS", async () => {
  settings("one", "two");
  const { outputs } = await (await open(name, options)).up();
  expect(outputs.testPod!.value).toMatchObject({ phase: "Running" });
  expect(existsSync(join(k3sFolder({ version: older }), "k3s"))).toBe(true);
  expect(await inside(name, "/bin/cat", "/var/log/gvisor-k3s/server.log")).toContain(`Starting k3s ${older}`);
  expect(
    await kubectl(name, "exec", "testpod", "--", "/testpod", "get", "https://kubernetes.default.svc/version"),
  ).toContain("gitVersion");
  expect((await changes(async (run) => await (await open(name, options)).up(run))).changed).toEqual({});
});

it("has the kubelet settings that gVisor asks for, over the server's own", async () => {
  const { kubeletconfig } = JSON.parse(await kubectl(name, "get", "--raw", `/api/v1/nodes/${name}/proxy/configz`));
  expect(kubeletconfig).toMatchObject({
    failCgroupV1: false,
    cgroupsPerQOS: true,
    enforceNodeAllocatable: ["none"],
    evictionHard: { "memory.available": "12%" },
    cgroupDriver: "cgroupfs",
  });
});

it("of another version is one restart of the server, which pods survive", async () => {
  const uid = () =>
    kubectl(name, "get", "pod", "testpod", "-o=jsonpath={.metadata.uid} {.status.containerStatuses[0].restartCount}");
  const before = await uid();
  const { changed } = await changes(
    async (run) => await (await open(name, { ...options, k3s: { ...options.k3s, version: newer } })).up(run),
  );
  expect({ ...changed, update: changed.update!.sort() }).toEqual({
    update: ["node-download", "node-ready", "node-server"],
  });
  expect(await inside(name, "/bin/cat", "/var/log/gvisor-k3s/server.log")).toContain(`Starting k3s ${newer}`);
  expect(await uid()).toBe(before);
});

it("that does not start makes way for the one of before, with the cluster's data; a downgrade is refused", async () => {
  const pod = () =>
    kubectl(name, "get", "pod", "testpod", "-o=jsonpath={.metadata.uid} {.status.containerStatuses[0].restartCount}");
  const before = await pod();
  await kubectl(name, "create", "configmap", "kept", "--from-literal=a=b");
  const up = async (version: string) =>
    await changes(async (run) => await (await open(name, { ...options, k3s: { ...options.k3s, version } })).up(run));
  await expect(up(broken)).rejects.toThrow(
    /server keeps ending.*I cannot read this.*the server of before, v1\.37\.1\+k3s901, runs again, as it was/s,
  );
  expect(await kubectl(name, "get", "configmap", "kept", "-o=jsonpath={.data.a}")).toBe("b");
  expect(await pod()).toBe(before);
  expect(await inside(name, "/bin/ls", "/var/lib/rancher/k3s/server")).not.toContain("before-upgrade");
  await expect(up(older)).rejects.toThrow(
    'k3s.version = "v1.37.1+k3s900": the cluster runs v1.37.1+k3s901, and a downgrade is not possible',
  );
  await expect(up("v1.39.0+k3s1")).rejects.toThrow("goes up by one minor version at a time; take a v1.38 first");
  expect((await up(newer)).changed).toEqual({ update: ["node-download"] });
  await kubectl(name, "delete", "configmap", "kept");
});

it("that skips what it does not know of its config makes way for the one of before, and the keys are told", async () => {
  await expect((await open(name, { ...options, k3s: { ...options.k3s, version: odd } })).up()).rejects.toThrow(
    /v1\.37\.1\+k3s902 does not know, and skips, what its config has: node-ip.*\n.*of before, v1\.37\.1\+k3s901, runs again/,
  );
});

it("has claims bound by this project's provisioner, for as long as they are to be", async () => {
  const wanted = { ...options, k3s: { ...options.k3s, version: newer } };
  await (await open(name, wanted)).up();
  const claim = {
    apiVersion: "v1",
    kind: "PersistentVolumeClaim",
    metadata: { name: "data" },
    spec: { accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Mi" } } },
  };
  const container = { name: "main", image: imageName("testpod"), imagePullPolicy: "Never" };
  const pod = {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "claims" },
    spec: {
      containers: [{ ...container, volumeMounts: [{ name: "data", mountPath: "/data" }] }],
      volumes: [{ name: "data", persistentVolumeClaim: { claimName: "data" } }],
    },
  };
  const input = [claim, pod].map((object) => stringify(object)).join("---\n");
  await kubectlProcess(name, ["apply", "--filename=-"], { input });
  await kubectl(name, "wait", "pod/claims", "--for=condition=Ready", "--timeout=90s");
  const [volume] = (await inside(name, "/bin/ls", "/var/lib/rancher/k3s/storage")).split("\n");
  expect(volume).toMatch(/_default_data$/);
  await kubectl(name, "delete", "pod/claims", "pvc/data", "--grace-period=1");
  const none = { ...wanted, addons: { localStorage: { enabled: false } } };
  const { changed } = await changes(async (run) => await (await open(name, none)).up(run));
  expect(changed).toEqual({ update: ["controllers-apply"], delete: ["controllers-class-apply"] });
  expect(await kubectl(name, "get", "storageclass", "-o=name")).toBe("");
  expect(await inside(name, "/bin/cat", `/proc/${(await services(name)).controllers!.pid}/cmdline`)).not.toContain(
    "claims",
  );
});

it("has nodes whose kubelets are of its agent, of the server's release or an older one", async () => {
  const [first, second] = [`${name}-w-1`, `${name}-old-1`];
  const several = (version: string) => ({
    ...options,
    k3s: { ...options.k3s, version: newer },
    nodes: [{ name: "w" }, { name: "old", k3s: { version } }],
  });
  await (await open(name, several(older))).up();
  const said = async (node: string) =>
    (await inside(node, "/bin/cat", "/var/log/gvisor-k3s/agent.log")).match(/Starting k3s \S+/g)!.at(-1);
  expect([await said(first), await said(second)]).toEqual([`Starting k3s ${newer}`, `Starting k3s ${older}`]);
  const image = imageName("testpod");
  for (const node of [first, second]) {
    const pin = {
      nodeName: node,
      terminationGracePeriodSeconds: 1,
      containers: [{ name: "main", image, imagePullPolicy: "Never" }],
    };
    const pod = { apiVersion: "v1", kind: "Pod", metadata: { name: `on-${node}`, labels: { on: node } }, spec: pin };
    await kubectlProcess(name, ["apply", "--filename=-"], { input: JSON.stringify(pod) });
    await kubectl(name, "wait", `pod/on-${node}`, "--for=condition=Ready", "--timeout=90s");
    const api = await kubectl(
      name,
      "exec",
      `on-${node}`,
      "--",
      "/testpod",
      "get",
      "https://kubernetes.default.svc/version",
    );
    expect(api, node).toContain("gitVersion");
  }
  const data = "/var/lib/rancher/k3s/data"; // where a release unpacks itself
  await inside(
    second,
    "/bin/sh",
    "-c",
    `mkdir -p ${data}/of-the-one ${data}/of-the-other; ln -s of-the-one ${data}/current`,
  );
  const { changed } = await changes(async (run) => await (await open(name, several(newer))).up(run));
  expect({ ...changed, update: changed.update!.sort() }).toEqual({
    update: ["old-1-node-download", "old-1-node-join"],
  });
  expect(await said(second)).toBe(`Starting k3s ${newer}`);
  expect((await inside(second, "/bin/ls", data)).split("\n").sort()).toEqual(["current", "of-the-one"]);
  await kill(first, "agent"); // and k3s, which has the kubelet's ports, with it
  const health = () => kubectl(name, "get", `--raw=/api/v1/nodes/${first}/proxy/healthz`).catch(() => "");
  await waitFor("its kubelet answers again", 60, async () => (await health()) === "ok" || undefined);
  await kubectl(name, "wait", `node/${first}`, "--for=condition=Ready", "--timeout=90s");
  expect(
    await kubectl(name, "get", "pod", `on-${first}`, "-o=jsonpath={.status.containerStatuses[0].restartCount}"),
  ).toBe("0");
  await (await open(name, { ...several(newer), nodes: [] })).up();
  expect(await kubectl(name, "get", "nodes", "-o=name")).toBe(`node/${name}`);
});

it("has manifests applied, and what left one is deleted", async () => {
  settings("two", "three");
  options = { ...options, k3s: { ...options.k3s, version: newer } };
  await (await open(name, options)).up();
  const names = async () =>
    (await kubectl(name, "get", "configmaps", "-o=name")).split("\n").filter((map) => !map.includes("kube-root-ca"));
  expect(await names()).toEqual(["configmap/three", "configmap/two"]);
  await (await open(name, { ...options, manifests: [] })).up();
  expect(await names()).toEqual([]);
});

it("that is not there fails with the address and what to do, and the cluster goes on", async () => {
  server.removeAllListeners("request").on("request", (_, response) => response.writeHead(404).end());
  await expect(
    (await open(name, { ...options, k3s: { ...options.k3s, version: "v1.37.9+k3s1" } })).up(),
  ).rejects.toThrow(/v1\.37\.9%2Bk3s1\/sha256sum-\w+\.txt cannot be downloaded .*404.*see https:/s);
  expect(await kubectl(name, "get", "pod", "testpod", "-o=jsonpath={.status.phase}")).toBe("Running");
});
