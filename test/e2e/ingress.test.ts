/** Ingresses by the option `addons.ingress`: hosts, paths, TLS, the class, and what is there when it is off. */
import { readFileSync } from "node:fs";
import { type IncomingMessage, request as plain } from "node:http";
import { request as secure } from "node:https";
import { afterAll, beforeAll, expect, it } from "vitest";
import { imageName } from "../../artifacts/artifacts.ts";
import type { Status } from "../../automation/status.ts";
import { linkAddresses } from "../../config/network.ts";
import { defaultSubnet } from "../../config/schema.ts";
import { waitFor } from "../../system/wait.ts";
import { changes, cli, endAll, freePort, kubectl, kubectlProcess, open, ownHome } from "./harness.ts";
import { selfSigned } from "./registry.ts";

const home = await ownHome();
const name = "wk-ingress";
const node = linkAddresses(defaultSubnet(name)).node;
const options = { pod: { enabled: false }, addons: { ingress: { enabled: true } } };
const host = "shop.example.test";
let ports: { http: number; https: number };

beforeAll(async () => {
  ports = { http: await freePort(), https: await freePort() };
  const published = [`${ports.http}:80`, `${ports.https}:443`];
  await (await open(name, { ...options, ports: published })).up();
});

afterAll(() => endAll(home, name));

/** A pod that tells its name, and its Service. */
const web = (pod: string) => [
  {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: pod, labels: { app: pod } },
    spec: { containers: [{ name: "main", image: imageName("testpod"), imagePullPolicy: "Never" }] },
  },
  {
    apiVersion: "v1",
    kind: "Service",
    metadata: { name: pod },
    spec: { selector: { app: pod }, ports: [{ port: 80, targetPort: 8080 }] },
  },
];

const ingress = (name: string, spec: object) => ({
  apiVersion: "networking.k8s.io/v1",
  kind: "Ingress",
  metadata: { name },
  spec,
});

const rule = (host: string, paths: Record<string, string>) => ({
  host,
  http: {
    paths: Object.entries(paths).map(([path, service]) => ({
      path,
      pathType: "Prefix",
      backend: { service: { name: service, port: { number: 80 } } },
    })),
  },
});

async function apply(...objects: object[]): Promise<void> {
  const list = { apiVersion: "v1", kind: "List", items: objects };
  await kubectlProcess(name, ["apply", "--filename=-"], { input: JSON.stringify(list) });
}

/** Who answers a host's path at an address, by its first word; else the status. */
function answer(address: string, port: number, host: string, path = "/", ca?: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const told = (response: IncomingMessage) => {
      let text = "";
      response.on("data", (part) => {
        text += part;
      });
      response.on("end", () =>
        resolve(response.statusCode === 200 ? text.trim().split(" ")[0]! : `${response.statusCode}`),
      );
    };
    const settings = { host: address, port, path, headers: { host } };
    const asked = ca === undefined ? plain(settings, told) : secure({ ...settings, servername: host, ca }, told);
    asked.on("error", reject).end();
  });
}

/** Waits for an answer: what Traefik is told of reaches it a moment later. */
async function answers(expected: string, ...question: Parameters<typeof answer>): Promise<void> {
  let said = "";
  await waitFor(
    `${question.slice(0, 4).join(" ")} is answered by ${expected}`,
    60,
    async () => {
      said = await answer(...question).catch((error: Error) => error.message);
      return said === expected || undefined;
    },
    () => said,
  );
}

it("serves hosts and paths at the node's address and the host's own, and says where", async () => {
  await apply(
    ...web("shop"),
    ...web("cart"),
    ingress("shop", { rules: [rule(host, { "/": "shop" }), rule("paths.example.test", { "/healthz": "cart" })] }),
  );
  await kubectl(name, "wait", "pod/shop", "pod/cart", "--for=condition=Ready");
  await answers("shop", node, 80, host);
  await answers("ok", node, 80, "paths.example.test", "/healthz");
  expect(await answer(node, 80, "paths.example.test", "/"), "no path leads there").toBe("404");
  await answers("shop", "127.0.0.1", ports.http, host);
  expect(await answer(node, 80, "other.example.test")).toBe("404");
  await waitFor(
    "the Ingress has an address",
    60,
    async () =>
      (await kubectl(name, "get", "ingress", "shop", "-o=jsonpath={.status.loadBalancer.ingress[*].ip}")) === node ||
      undefined,
  );
});

it("serves TLS with the certificate of a Secret", async () => {
  const { ca, key } = await selfSigned(home, "192.0.2.1", [host]);
  await kubectl(name, "create", "secret", "tls", "shop", `--cert=${ca}`, `--key=${key}`);
  const rules = [rule(host, { "/": "shop" })];
  await apply(ingress("shop", { rules, tls: [{ hosts: [host], secretName: "shop" }] }));
  const trusted = readFileSync(ca, "utf8");
  await answers("shop", node, 443, host, "/", trusted);
  await answers("shop", "127.0.0.1", ports.https, host, "/", trusted);
});

it("is of the default class, and leaves what is of another", async () => {
  const named = (ingressClassName?: string) => ({ ingressClassName, rules: [rule("a.example.test", { "/": "cart" })] });
  await apply(ingress("mine", named()), {
    ...ingress("theirs", { ...named("nginx"), rules: [rule("b.example.test", { "/": "cart" })] }),
  });
  expect(await kubectl(name, "get", "ingress", "mine", "-o=jsonpath={.spec.ingressClassName}")).toBe("traefik");
  await answers("cart", node, 80, "a.example.test");
  expect(await answer(node, 80, "b.example.test")).toBe("404");
  const { problems } = JSON.parse((await cli("status", name, "--json")).stdout) as Status;
  expect(problems.filter((problem) => problem.startsWith("kube-system/"))).toEqual([]);
});

it("is gone when it is switched off, and nothing else changes", async () => {
  const stack = await open(name, { pod: { enabled: false }, ports: [`${ports.http}:80`, `${ports.https}:443`] });
  expect((await changes((settings) => stack.up(settings))).changed).toEqual({
    update: ["images-import"], // which looks that the addons' programs are there
    delete: expect.arrayContaining(["ingress", "ingress-apply"]),
  });
  const classes = await kubectl(name, "get", "ingressclass,deploy,service", "-A", "-l=app.kubernetes.io/name=traefik");
  expect(classes).toBe("");
  await waitFor(
    "nobody answers",
    60,
    async () => (await answer(node, 80, host).catch(() => true)) === true || undefined,
  );
});
