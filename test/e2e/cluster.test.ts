/** What a cluster does for its users: Services, names, claims, manifests; and what becomes of them when a part dies. */
import { rmSync, writeFileSync } from "node:fs";
import { Agent, createServer, get } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { execa, type ResultPromise } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { artifactFolder, imageName, pathInSandbox } from "../../artifacts/artifacts.ts";
import { linkAddresses } from "../../config/network.ts";
import { defaultSubnet } from "../../config/schema.ts";
import { isAlive } from "../../system/processes.ts";
import { waitFor } from "../../system/wait.ts";
import {
  changes,
  cli,
  endAll,
  inside,
  kill,
  killProcess,
  kubectl,
  kubectlProcess,
  open,
  ownHome,
  record,
  shellImage,
  supervised,
} from "./harness.ts";

const home = await ownHome();
const name = "e2e-c";
const nodePort = 30080;
const manifest = join(home, "web.yaml");
const options = { manifests: [manifest], images: [join(home, "shell.tar")], pod: { enabled: false } };

const service = (service: string, spec: object) => ({
  apiVersion: "v1",
  kind: "Service",
  metadata: { name: service },
  spec: { selector: { app: "web" }, ports: [{ port: 80, targetPort: 8080 }], ...spec },
});
const deployment = (replicas: number) => ({
  apiVersion: "apps/v1",
  kind: "Deployment",
  metadata: { name: "web" },
  spec: {
    replicas,
    selector: { matchLabels: { app: "web" } },
    template: {
      metadata: { labels: { app: "web" } },
      spec: {
        containers: [
          {
            name: "main",
            image: imageName("testpod"),
            imagePullPolicy: "Never",
            readinessProbe: { httpGet: { path: "/healthz", port: 8080 }, periodSeconds: 1 },
          },
        ],
      },
    },
  },
});

function writeManifest(...objects: object[]): void {
  writeFileSync(manifest, objects.map((object) => stringify(object)).join("---\n"));
}

const everything = [
  deployment(2),
  service("web", {}),
  service("headless", { clusterIP: "None" }),
  service("sticky", { sessionAffinity: "ClientIP" }),
  service("node", { type: "NodePort", ports: [{ port: 80, targetPort: 8080, nodePort }] }),
  service("elsewhere", {
    type: "ExternalName",
    externalName: "web.default.svc.cluster.local",
    selector: undefined,
    ports: undefined,
  }),
  service("nobody", { selector: { app: "nobody" } }),
];

beforeAll(async () => {
  await shellImage("example.test/shell:1", options.images[0]!);
  writeManifest(...everything);
  const stack = await open(name, options);
  await stack.up();
});

afterAll(async () => {
  await endAll(home, name);
});

/** The names of the pods with a label, sorted. */
async function pods(label = "app=web"): Promise<string[]> {
  return (await kubectl(name, "get", "pods", "-l", label, "-o=jsonpath={.items[*].metadata.name}")).split(" ").sort();
}

/** Runs the test program in one of the web pods. */
async function inPod(...args: string[]): Promise<string> {
  return await kubectl(name, "exec", "deploy/web", "--", "/testpod", ...args);
}

const answering = async (url: string) => (await inPod("get", url)).split(" ")[0]!;

describe("up", () => {
  it("ends when the system's pods and those of the manifests are Ready", async () => {
    const states = await kubectl(
      name,
      "get",
      "pods",
      "-A",
      '-o=jsonpath={range .items[*]}{.metadata.namespace} {.status.containerStatuses[*].ready}{"\\n"}{end}',
    );
    expect(states.trim().split("\n").sort()).toEqual([
      "default true",
      "default true",
      "kube-system true",
      "kube-system true",
    ]);
  });
});

describe("a Service", () => {
  it("is reached by its name and by its address, and spreads its callers over its pods", async () => {
    const address = await kubectl(name, "get", "service", "web", "-o=jsonpath={.spec.clusterIP}");
    expect(await pods()).toContain(await answering(`http://${address}`));
    const seen = new Set<string>();
    await waitFor(
      "both pods have answered",
      60,
      async () => seen.add(await answering("http://web")).size === 2 || undefined,
    );
    expect([...seen].sort()).toEqual(await pods());
  });

  it("keeps a caller at one pod where it is to", async () => {
    const first = await answering("http://sticky");
    for (let call = 0; call < 8; call++) expect(await answering("http://sticky")).toBe(first);
  });

  it("is reached by a pod that is its only endpoint", async () => {
    const [own] = await pods();
    await kubectl(name, "label", "pod", own!, "alone=yes");
    await kubectl(
      name,
      "expose",
      "pod",
      own!,
      "--name=alone",
      "--port=80",
      "--target-port=8080",
      "--selector=alone=yes",
    );
    const answer = async () =>
      (await kubectlProcess(name, ["exec", own!, "--", "/testpod", "get", "http://alone"], { reject: false })).stdout;
    await waitFor("the pod answers itself", 20, async () => String(await answer()).startsWith(own!) || undefined);
  });

  it("of type NodePort is reached from the host", async () => {
    const { address } = await (await open(name, options)).outputs();
    expect(await pods()).toContain((await (await fetch(`http://${address!.value}:${nodePort}`)).text()).split(" ")[0]);
  });

  it("without endpoints refuses at once", async () => {
    await expect(inPod("get", "http://nobody")).rejects.toThrow(/connection refused/);
  });

  it("whose endpoints change keeps the connections to those that stay", async () => {
    await kubectl(name, "scale", "deploy/web", "--replicas=1");
    await waitFor("one pod is left", 60, async () => (await pods()).length === 1 || undefined);
    const [own] = await pods();
    const { address } = await (await open(name, options)).outputs();
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const ports = new Set<number>();
    const ask = () =>
      new Promise<string>((resolve, reject) => {
        const request = get({ host: address!.value, port: nodePort, agent }, (response) => {
          ports.add(request.socket!.localPort!);
          response.setEncoding("utf8").once("data", resolve);
        });
        request.once("error", reject);
      });
    expect(await ask()).toContain(own);
    await kubectl(name, "scale", "deploy/web", "--replicas=3");
    await kubectl(name, "rollout", "status", "deploy/web", "--timeout=60s");
    expect(await ask()).toContain(own);
    for (const other of (await pods()).filter((pod) => pod !== own))
      await kubectl(name, "delete", "pod", other, "--wait=false");
    await kubectl(name, "rollout", "status", "deploy/web", "--timeout=60s");
    expect(await ask()).toContain(own);
    expect(ports.size, "one connection all the time").toBe(1);
    agent.destroy();
    await kubectl(name, "scale", "deploy/web", "--replicas=2");
  });

  it("is there again when the proxy was killed under load, and no caller hangs", async () => {
    const { address } = await (await open(name, options)).outputs();
    let [going, failed, inARow] = [true, 0, 0];
    const caller = async () => {
      while (going) {
        const answered = await fetch(`http://${address!.value}:${nodePort}`, {
          signal: AbortSignal.timeout(5000),
        }).then(
          (response) => response.text(),
          (error: Error) => error,
        );
        if (answered instanceof Error && answered.name === "TimeoutError") throw answered;
        [failed, inARow] = answered instanceof Error ? [failed + 1, 0] : [failed, inARow + 1];
      }
    };
    const callers = Promise.all(Array.from({ length: 8 }, caller));
    await waitFor("calls are answered", 20, () => inARow > 50 || undefined);
    await kill(name, "proxy");
    await waitFor("calls have failed, and are answered again", 30, () => (failed > 0 && inARow > 200) || undefined);
    going = false;
    await callers;
  });

  it("whose node port somebody else has says so", async () => {
    const { address } = await (await open(name, options)).outputs();
    const listener = inside(name, "/bin/httpd", "-f", "-p", `${address!.value}:30099`).catch(() => undefined);
    await waitFor(
      "the port is taken",
      20,
      async () => (await inside(name, "/bin/netstat", "-ltn")).includes(":30099 ") || undefined,
    );
    await kubectlProcess(name, ["apply", "-f", "-"], {
      input: JSON.stringify(
        service("taken", { type: "NodePort", ports: [{ port: 80, targetPort: 8080, nodePort: 30099 }] }),
      ),
    });
    const told = () =>
      kubectl(name, "get", "events", "--field-selector=involvedObject.name=taken", "-o=jsonpath={.items[*].message}");
    await waitFor(
      "the Service tells",
      20,
      async () =>
        /:30099.*cannot be listened on: .*address already in use; end the program that has it, or choose another port/.test(
          await told(),
        ) || undefined,
      told,
    );
    await kubectl(name, "delete", "service", "taken");
    await inside(name, "/bin/killall", "httpd");
    await listener;
  });
});

describe("names", () => {
  it("of a headless Service are its pods' addresses, and of an external one another name's", async () => {
    await kubectl(name, "rollout", "status", "deploy/web", "--timeout=60s");
    const addresses = async () =>
      (
        await kubectl(
          name,
          "get",
          "pods",
          "-l",
          "app=web",
          "--field-selector=status.phase=Running",
          "-o=jsonpath={.items[*].status.podIP}",
        )
      )
        .split(" ")
        .sort();
    await waitFor(
      "the headless Service has both pods",
      60,
      async () => (await inPod("resolve", "headless")) === (await addresses()).join("\n") || undefined,
    );
    expect(await inPod("resolve", "elsewhere")).toBe(
      await kubectl(name, "get", "service", "web", "-o=jsonpath={.spec.clusterIP}"),
    );
  });

  it("lead to the API server, which takes the pod's token", async () => {
    expect(await inPod("get", "https://kubernetes.default.svc.cluster.local/version")).toContain("gitVersion");
  });

  it("are answered again when CoreDNS was killed", async () => {
    await kubectl(name, "delete", "pod", "--namespace=kube-system", "-l=k8s-app=kube-dns");
    await kubectl(name, "rollout", "status", "deploy/coredns", "--namespace=kube-system", "--timeout=60s");
    expect(await pods()).toContain(await answering("http://web.default.svc.cluster.local"));
  });
});

describe("the way out", () => {
  const outside = "e2e-outside"; // not gk-: such links lead to sandboxes, and pods are not let there
  const address = "198.51.100.2"; // of a network for documentation, RFC 5737
  let server: ResultPromise;
  const ip = (...args: string[]) => execa("ip", args);

  beforeAll(async () => {
    await ip("netns", "add", outside);
    await ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", outside);
    await ip("address", "add", "198.51.100.1/24", "dev", outside);
    await ip("link", "set", outside, "up");
    await ip("-netns", outside, "address", "add", `${address}/24`, "dev", "eth0");
    await ip("-netns", outside, "link", "set", "eth0", "up");
    server = execa("ip", ["netns", "exec", outside, join(artifactFolder({ name: "images" }), "testpod")], {
      reject: false,
    });
    await waitFor("the server outside answers the host", 20, () =>
      fetch(`http://${address}:8080/healthz`).then(
        ({ ok }) => ok || undefined,
        () => undefined,
      ),
    );
  });

  afterAll(async () => {
    server.kill();
    await server;
    await ip("netns", "delete", outside);
    await execa("ip", ["link", "delete", outside], { reject: false }); // it goes with the namespace, a little later
  });

  const get = async () => await inPod("get", `http://${address}:8080/healthz`).catch((error: Error) => error.message);

  it("leads pods to what is beyond the host, and to nothing of the host itself", async () => {
    expect(await get()).toBe("ok");
    await expect(inPod("get", `http://${address}:81/`), "a port that is closed there").rejects.toThrow(
      /connection refused/,
    );
    await expect(inPod("get", "http://198.51.100.1:8080/"), "an address of the host's").rejects.toThrow(
      /connection refused/,
    );
    await expect(inPod("get", "http://169.254.169.254/"), "a cloud's metadata").rejects.toThrow(/connection refused/);
  });

  it(
    "leads to none of the host's services on the link either, but to those that are given, which " + "restarts nothing",
    async () => {
      const { host } = linkAddresses(defaultSubnet(name));
      const careless = createServer((_, response) => response.end("a service of the host's"));
      await new Promise<void>((resolve) => careless.listen(0, resolve)); // on every address
      const { port } = careless.address() as AddressInfo;
      const ask = () => inside(name, pathInSandbox({ name: "images" }, "testpod"), "get", `http://${host}:${port}/`); // the node itself: pods have no way back from there
      const give = async (hostPorts: number[]) => {
        const stack = await open(name, { ...options, sandbox: { hostPorts } });
        expect((await changes((settings) => stack.up(settings))).changed).toEqual({ update: ["sandbox-process"] });
      };
      try {
        await expect(ask()).rejects.toThrow(/deadline exceeded/);
        const before = record(name).pid;
        await give([port]);
        expect(await ask()).toContain("a service of the host's");
        await give([]);
        await expect(ask()).rejects.toThrow(/deadline exceeded/);
        expect(record(name).pid).toBe(before);
      } finally {
        careless.close();
      }
    },
  );

  it("is started again when its process was killed", async () => {
    const { egress } = supervised(name);
    await killProcess(egress!);
    await waitFor("it runs again", 20, () => (supervised(name).egress?.starts ?? 0) > egress!.starts || undefined);
    await waitFor("it leads outside", 20, async () => (await get()) === "ok" || undefined);
    expect(await (await changes(async (settings) => (await open(name, options)).preview(settings))).changed).toEqual(
      {},
    );
  });

  it("is one update away when its process was killed with the supervisor", async () => {
    const { egress, ...supervisor } = supervised(name);
    await killProcess(supervisor);
    await waitFor("the way out ends with it", 20, () => !isAlive(egress) || undefined);
    expect((await cli("status", name)).stdout).toContain("! the sandbox's supervisor is gone");
    const before = supervised(name).sandbox;
    const stack = await open(name, options);
    expect((await changes((settings) => stack.up(settings))).changed).toEqual({ update: ["sandbox-process"] });
    expect(supervised(name).sandbox).toEqual(before);
    await waitFor("it leads outside", 20, async () => (await get()) === "ok" || undefined);
    expect((await changes((settings) => stack.preview(settings))).changed).toEqual({});
  });
});

describe("a claim", () => {
  const claim = {
    apiVersion: "v1",
    kind: "PersistentVolumeClaim",
    metadata: { name: "data" },
    spec: { accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Gi" } } },
  };
  const user = (pod: string) => ({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: pod },
    spec: {
      terminationGracePeriodSeconds: 0,
      containers: [
        {
          name: "main",
          image: "example.test/shell:1",
          imagePullPolicy: "Never",
          volumeMounts: [{ name: "data", mountPath: "/data" }],
        },
      ],
      volumes: [{ name: "data", persistentVolumeClaim: { claimName: "data" } }],
    },
  });
  const apply = (object: object) => kubectlProcess(name, ["apply", "-f", "-"], { input: JSON.stringify(object) });
  const start = async (pod: string) => {
    await apply(user(pod));
    await kubectl(name, "wait", `pod/${pod}`, "--for=condition=Ready", "--timeout=60s");
  };

  it("is bound by the default class, and its data outlives its pod", async () => {
    await apply(claim);
    await start("writer");
    await kubectl(name, "exec", "writer", "--", "sh", "-c", "echo written > /data/file");
    await kubectl(name, "delete", "pod", "writer");
    await start("reader");
    expect(await kubectl(name, "exec", "reader", "--", "cat", "/data/file")).toBe("written");
  });

  it("that asks for what a folder of one node is not is told so", async () => {
    await apply({ ...claim, metadata: { name: "shared" }, spec: { ...claim.spec, accessModes: ["ReadWriteMany"] } });
    const pod = user("sharer");
    await apply({
      ...pod,
      spec: { ...pod.spec, volumes: [{ name: "data", persistentVolumeClaim: { claimName: "shared" } }] },
    });
    await waitFor(
      "the claim tells why",
      30,
      async () =>
        (
          await kubectl(
            name,
            "get",
            "events",
            "--field-selector=involvedObject.name=shared",
            "-o=jsonpath={.items[*].message}",
          )
        ).includes("access mode ReadWriteMany: ReadWriteOnce and ReadWriteOncePod are allowed") || undefined,
    );
  });

  it("has its data after the sandbox was killed with 30 pods in it, which all come back, and Services and names work", {
    timeout: 600_000,
  }, async () => {
    // The server applies manifests anew when it starts, so the number has to be the manifest's.
    writeManifest(deployment(30), ...everything.slice(1));
    await (await open(name, options)).up();
    const containers = async () =>
      new Map(
        (
          await kubectl(
            name,
            "get",
            "pods",
            "-l=app=web",
            "-o=jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} " +
              '{.status.containerStatuses[0].ready}{"\\n"}{end}',
          )
        )
          .split("\n")
          .map((line) => line.split(" "))
          .map(([pod, id, ready]) => [pod, ready === "true" ? id : undefined]),
      );
    const before = await containers();
    expect(before.size).toBe(30);
    process.kill(record(name).pid, "SIGKILL");
    await waitFor("the sandbox is gone", 20, () => !isAlive(record(name)) || undefined);
    await (await open(name, options)).up();
    // What the API server tells of a pod is from before until the kubelet has looked at it: another container tells
    // that it has.
    await waitFor(
      "every pod has a new container, and is Ready",
      240,
      async () =>
        [...(await containers())].filter(([pod, id]) => before.has(pod) && id !== undefined && id !== before.get(pod))
          .length === 30 || undefined,
      () => kubectl(name, "get", "pods", "-l=app=web"),
    );
    await waitFor(
      "the data is read",
      60,
      async () =>
        (await kubectl(name, "exec", "reader", "--", "cat", "/data/file").catch(() => "")) === "written" || undefined,
    );
    await waitFor(
      "the Service answers by its name",
      60,
      async () => (await inPod("get", "http://web").catch(() => undefined)) !== undefined || undefined,
    );
    writeManifest(...everything);
    await (await open(name, options)).up();
  });

  it("takes its data along when it is deleted", async () => {
    const volume = await kubectl(name, "get", "pvc", "data", "-o=jsonpath={.spec.volumeName}");
    await kubectl(name, "delete", "pod", "reader");
    await kubectl(name, "delete", "pvc", "data");
    await kubectl(name, "wait", `pv/${volume}`, "--for=delete", "--timeout=60s");
  });
});

describe("a manifest", () => {
  it("that changes is one update, and what left it is deleted", async () => {
    writeManifest(...everything.filter(({ metadata }) => metadata.name !== "sticky"));
    const stack = await open(name, options);
    expect((await changes((settings) => stack.up(settings))).changed).toEqual({ update: ["manifest-web-apply"] });
    await expect(kubectl(name, "get", "service", "sticky")).rejects.toThrow(/not found/);
    await kubectl(name, "get", "service", "web");
  });

  it("that the cluster refuses fails with the cluster's words, and the rest stays", async () => {
    writeManifest(deployment(1), service("web", { ports: [{ port: 99_999 }] }));
    const stack = await open(name, options);
    await expect(stack.up()).rejects.toThrow(/Service "?web"?(.|\n)*spec\.ports\[0\]\.port: Invalid value: 99999/);
    await kubectl(name, "get", "service", "web");
  });

  it("that leaves the list is deleted with what it brought", async () => {
    rmSync(manifest);
    const stack = await open(name, { ...options, manifests: [] });
    expect((await changes((settings) => stack.up(settings))).changed).toEqual({
      delete: ["manifest-web-apply", "manifest-web"],
    });
    await expect(kubectl(name, "get", "deploy", "web")).rejects.toThrow(/not found/);
  });
});
