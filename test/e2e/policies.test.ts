/** Network policies hold: for pods and through Services, under open connections, and whatever dies. */
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { imageName } from "../../artifacts/artifacts.ts";
import { waitFor } from "../../system/wait.ts";
import { endAll, inside, kill, killSandbox, kubectl, kubectlProcess, open, ownHome, shellImage } from "./harness.ts";

const home = await ownHome();
const name = "np-policies";
const image = "cases.test/shell:1";
const archive = join(home, "shell.tar");
const options = { pod: { enabled: false }, images: [archive], addons: { metricsServer: { enabled: false } } };

const endless = { reject: false, timeout: 0 } as const;

/** Seconds for what takes the cluster some rounds. */
const PATIENCE = 60;

/** A pod that answers at port 8080, by its label `app`, or one that has a shell and does nothing. */
const pod = (pod: string, labels: Record<string, string> = {}, container: object = {}) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name: pod, labels: { app: pod, ...labels } },
  spec: {
    terminationGracePeriodSeconds: 0,
    containers: [
      {
        name: "main",
        image: imageName("testpod"),
        imagePullPolicy: "Never",
        ports: [{ name: "web", containerPort: 8080 }],
        ...container,
      },
    ],
  },
});

const policy = (policy: string, spec: object) => ({
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name: policy },
  spec,
});

const apply = (...objects: object[]) =>
  kubectlProcess(name, ["apply", "-f", "-"], {
    input: JSON.stringify({ apiVersion: "v1", kind: "List", items: objects }),
  });

const of = (kind: string, object: string, path: string) => kubectl(name, "get", kind, object, `-o=jsonpath={${path}}`);
async function ready(...pods: string[]): Promise<void> {
  for (const one of pods) await kubectl(name, "wait", `pod/${one}`, "--for=condition=Ready", "--timeout=60s");
}

const addressOf = (pod: string) => of("pod", pod, ".status.podIP");

/** Milliseconds after which nobody is thought to answer. */
const SILENCE = 5000;

/** What a pod hears at an address, the answering pod's name, or "" if it is not let. */
async function hears(from: string, address: string): Promise<string> {
  const options = { reject: false, timeout: SILENCE };
  const { exitCode, stdout } = await kubectlProcess(
    name,
    ["exec", from, "--", "/testpod", "get", `http://${address}/`],
    options,
  );
  return exitCode === 0 ? String(stdout).trim().split(" ")[0]! : "";
}

const becomes = (what: string, from: string, address: string, heard: string) =>
  waitFor(what, PATIENCE, async () => (await hears(from, address)) === heard || undefined);

/** Only `friend` may ask `server`, at the port called "web". */
const onlyFriend = policy("only-friend", {
  podSelector: { matchLabels: { app: "server" } },
  policyTypes: ["Ingress"],
  ingress: [{ from: [{ podSelector: { matchLabels: { friend: "yes" } } }], ports: [{ port: "web" }] }],
});

let stack: Awaited<ReturnType<typeof open>>;
let server: string;
let service: string;

beforeAll(async () => {
  await shellImage(image, archive, "nc", "wc");
  stack = await open(name, options);
  await stack.up();
  await apply(pod("server"), pod("friend", { friend: "yes" }), pod("stranger"), {
    apiVersion: "v1",
    kind: "Service",
    metadata: { name: "server" },
    spec: { selector: { app: "server" }, ports: [{ port: 80, targetPort: "web" }] },
  });
  await ready("server", "friend", "stranger");
  server = `${await addressOf("server")}:8080`;
  service = await of("service", "server", ".spec.clusterIP");
});

afterAll(() => endAll(home, name));

it("without policies everybody reaches everybody, and the ports are on the node's bridge", async () => {
  await becomes("the server answers", "stranger", server, "server");
  await becomes("the Service is served", "stranger", service, "server");
  expect(await inside(name, "ls", "/run/netns")).not.toContain("cni0-filter");
});

it("lets in by label and by a port's name, at the pod and through its Service", async () => {
  await apply(onlyFriend);
  await becomes("the policy holds", "stranger", server, "");
  expect(await hears("friend", server)).toBe("server");
  expect(await hears("friend", service)).toBe("server");
  expect(await hears("stranger", service)).toBe("");
});

it("lets a pod in that gets the label", async () => {
  await kubectl(name, "label", "pod", "stranger", "friend=yes");
  await becomes("the stranger is a friend", "stranger", service, "server");
  await kubectl(name, "label", "pod", "stranger", "friend-");
  await becomes("the stranger is one again", "stranger", service, "");
});

it("follows changes beside so many Services that gVisor's list of addresses is too long for Go", async () => {
  const services = Array.from({ length: 110 }, (_, i) => ({
    apiVersion: "v1",
    kind: "Service",
    metadata: { name: `many-${i}`, labels: { many: "yes" } },
    spec: { selector: { app: "server" }, ports: [{ port: 80, targetPort: "web" }] },
  }));
  await apply(...services);
  await becomes("the last of them is served", "friend", await of("service", "many-109", ".spec.clusterIP"), "server");
  await kubectl(name, "label", "pod", "stranger", "friend=yes");
  await becomes("the stranger is a friend", "stranger", service, "server");
  await kubectl(name, "label", "pod", "stranger", "friend-");
  await becomes("the stranger is one again", "stranger", service, "");
  await apply(pod("late"));
  await ready("late");
  await kubectl(name, "delete", "service", "--selector=many=yes");
});

it("holds for a pod from its first packet on", async () => {
  const { spec, ...early } = pod("early", {}, { args: ["get", `http://${server}/`] });
  await apply({ ...early, spec: { ...spec, restartPolicy: "Never" } });
  await kubectl(name, "wait", "pod/early", "--for=jsonpath={.status.phase}=Failed", "--timeout=60s");
  expect(await kubectl(name, "logs", "early")).toMatch(/deadline|timeout/i);
});

it("ends a connection that is open when the policy changes", async () => {
  const shell = { image, ports: [] };
  await apply(pod("hearer", {}, shell), pod("talker", {}, shell));
  await ready("hearer", "talker");
  const hearing = kubectlProcess(
    name,
    ["exec", "hearer", "--", "sh", "-c", "sleep 10000 | nc -l -p 9000 > /heard"],
    endless,
  );
  const lines = "touch /heard; wc -l < /heard"; // which is there when the other command has begun
  const heard = async () => Number(await kubectl(name, "exec", "hearer", "--", "sh", "-c", lines));
  const address = await addressOf("hearer");
  const loop = `until while echo said; do sleep 1; done | nc ${address} 9000; do sleep 1; done`;
  const talking = kubectlProcess(name, ["exec", "talker", "--", "sh", "-c", loop], endless);
  await waitFor("the connection is open", PATIENCE, async () => (await heard()) > 2 || undefined);
  await apply(policy("shut", { podSelector: { matchLabels: { app: "hearer" } }, policyTypes: ["Ingress"] }));
  await waitFor("nothing is heard any more", PATIENCE, async () => {
    const before = await heard();
    await kubectl(name, "exec", "talker", "--", "sleep", "4"); // the other process says as much meanwhile
    return (await heard()) === before || undefined;
  });
  await kubectl(name, "delete", "networkpolicy", "shut");
  const before = await heard();
  await waitFor("the same connection goes on", PATIENCE, async () => (await heard()) > before || undefined);
  for (const process of [talking, hearing]) process.kill();
  await Promise.allSettled([talking, hearing]);
});

it("keeps a pod from the outside, and from names, until it may have them", async () => {
  const shut = policy("shut", { podSelector: { matchLabels: { app: "stranger" } }, policyTypes: ["Egress"] });
  const resolve = ["exec", "stranger", "--", "/testpod", "resolve", "server"];
  const asks = async () =>
    (await kubectlProcess(name, resolve, { reject: false, timeout: SILENCE })).exitCode === 0 || undefined;
  await waitFor("names are there", PATIENCE, asks);
  await apply(shut);
  await waitFor("names are gone", PATIENCE, async () => !(await asks()) || undefined);
  const dns = { podSelector: { matchLabels: { "k8s-app": "kube-dns" } }, namespaceSelector: {} };
  await apply(
    policy("names", {
      podSelector: { matchLabels: { app: "stranger" } },
      policyTypes: ["Egress"],
      egress: [{ to: [dns], ports: [{ protocol: "UDP", port: 53 }] }],
    }),
  );
  await waitFor("names are there again", PATIENCE, asks);
  await kubectl(name, "delete", "networkpolicy", "shut", "names");
});

it("holds after the proxy was killed, and after the sandbox was", async () => {
  await kill(name, "proxy");
  await becomes("the friend is heard again", "friend", service, "server");
  expect(await hears("stranger", server)).toBe("");
  await killSandbox(name);
  await stack.up();
  await ready("server", "friend", "stranger");
  server = `${await addressOf("server")}:8080`;
  await becomes("the friend is heard", "friend", service, "server");
  expect(await hears("stranger", server)).toBe("");
  expect(await hears("stranger", service)).toBe("");
});

it("gives the pods back to the bridge with the last policy", async () => {
  await kubectl(name, "delete", "networkpolicy", "--all");
  await becomes("the pod is open", "stranger", server, "server");
  await waitFor("the filter has no ports", PATIENCE, async () =>
    (await inside(name, "nsenter", "--net=/run/netns/cni0-filter", "ip", "link")).includes("veth") ? undefined : true,
  );
  await kubectl(name, "delete", "pod", "friend");
  await apply(pod("friend"));
  await ready("friend");
  expect(await hears("friend", server)).toBe("server");
});

it("takes none where they are to be refused", async () => {
  stack = await open(name, { ...options, network: { policies: "refuse" } });
  await stack.up();
  const refused = "this cluster takes no network policies";
  await waitFor("a policy is refused", PATIENCE, async () => {
    const asked = await apply(onlyFriend).then(
      () => "",
      (error: Error) => error.message,
    );
    await kubectl(name, "delete", "networkpolicy", "--all");
    return asked.includes(refused) || undefined;
  });
  stack = await open(name, options);
  await stack.up();
  await apply(onlyFriend);
});
