/** Pods on the nodes of a cluster, and which of them hears whom. */
import { imageName } from "../../artifacts/artifacts.ts";
import { waitFor } from "../../system/wait.ts";
import { kubectl, kubectlProcess } from "./harness.ts";

/** Seconds for what takes the cluster some rounds. */
export const PATIENCE = 60;

/** What makes pods on a cluster, and asks them. */
export function reaching(name: string) {
  /** A pod on a node, which answers with its name at port 8080. */
  const pod = (pod: string, node: string, more: object = {}) => ({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: pod, labels: { app: pod } },
    spec: {
      nodeName: node,
      terminationGracePeriodSeconds: 0,
      containers: [{ name: "main", image: imageName("testpod"), imagePullPolicy: "Never", ...more }],
    },
  });

  const service = (service: string, nodePort: number, spec: object = {}) => ({
    apiVersion: "v1",
    kind: "Service",
    metadata: { name: `${service}s` },
    spec: { type: "NodePort", selector: { app: service }, ports: [{ port: 80, targetPort: 8080, nodePort }], ...spec },
  });

  const apply = (...objects: object[]) =>
    kubectlProcess(name, ["apply", "-f", "-"], {
      input: JSON.stringify({ apiVersion: "v1", kind: "List", items: objects }),
    });

  const of = (kind: string, object: string, path: string) =>
    kubectl(name, "get", kind, object, `-o=jsonpath={${path}}`);
  const addressOf = (pod: string) => of("pod", pod, ".status.podIP");
  const nodeAddress = (node: string) => of("node", node, ".status.addresses[0].address");

  async function ready(...pods: string[]): Promise<void> {
    for (const one of pods) await kubectl(name, "wait", `pod/${one}`, "--for=condition=Ready", "--timeout=60s");
  }

  /** What a pod hears at an address: the name of the pod that answers, or "" if nobody does. */
  async function hears(pod: string, address: string): Promise<string> {
    const asking = ["exec", pod, "--", "/testpod", "get", `http://${address}/`];
    const { exitCode, stdout } = await kubectlProcess(name, asking, { reject: false, timeout: 10_000 });
    return exitCode === 0 ? String(stdout).split(" ")[0]! : "";
  }

  const becomes = (what: string, pod: string, address: string, whom: string) =>
    waitFor(what, PATIENCE, async () => (await hears(pod, address)) === whom || undefined);

  return { pod, service, apply, of, addressOf, nodeAddress, ready, hears, becomes };
}
