import { existsSync } from "node:fs";
import { parseAllDocuments } from "yaml";
import { pathOnHost } from "../artifacts/artifacts.ts";
import { hostPaths } from "../machines/paths.ts";
import type { MachineRef } from "../machines/ref.ts";
import { openClient } from "../servers/index.ts";
import type { ClientRef } from "../servers/server.ts";
import { type Output, run } from "../system/run.ts";
import type { OnMachine, Step } from "./step.ts";

export interface ManifestParams extends OnMachine {
  server: ClientRef;
  /** The file's name without extension. */
  manifest: string;
  /** Whether the pods of its workloads are awaited; a control plane alone has none. */
  pods: boolean;
}

/** Seconds for a workload's pods to become ready: they start in about two, and a pull may come before. */
const ROLLOUT = 300;

/** What a manifest holds, as far as it matters here. */
interface Workload {
  kind?: string;
  metadata?: { name?: string; namespace?: string };
  spec?: { selector?: { matchLabels?: Record<string, string> } };
}

/** The part of a pod that tells what it waits for. */
interface PodStatus {
  metadata: { name: string };
  status: {
    phase?: string;
    conditions?: { status: string; message?: string }[];
    containerStatuses?: {
      state?: { waiting?: { reason?: string; message?: string } };
      lastState?: { terminated?: { message?: string } };
    }[];
  };
}

/**
 * Has the server apply a manifest (the content), and waits until its workloads are rolled out.
 * @throws Error with the API server's words on what it refuses, or with what the pods wait for
 */
export const ensureManifest: Step<ManifestParams> = {
  name: ({ manifest }) => `manifest-${manifest}`,
  async run({ server, manifest, pods }, { machine, content }) {
    await openClient(server).apply(machine, manifest, content);
    if (!pods) return;
    for (const workload of workloadsIn(content)) await rolledOut(machine.ref, server, workload);
  },
};

/** Takes a manifest away, and with it what the server has made of it. */
export const removeManifest: Step<ManifestParams> = {
  name: ({ manifest }) => `manifest-${manifest}`,
  run: ({ server, manifest }, { machine }) => openClient(server).withdraw(machine, manifest),
};

function workloadsIn(content: string): Workload[] {
  type Document = Workload & { items?: Workload[] };
  const documents = parseAllDocuments(content).map((document) => document.toJS() as Document | null);
  const objects = documents.flatMap((object) => (object === null ? [] : (object.items ?? [object])));
  return objects.filter(({ kind = "" }) => ["Deployment", "DaemonSet", "StatefulSet"].includes(kind));
}

/** Runs kubectl here, with the kubeconfig that was written for this machine. */
async function kubectl({ name, home }: MachineRef, server: ClientRef, args: string[]): Promise<Output> {
  const { kubeconfig } = hostPaths(name, home);
  if (!existsSync(kubeconfig)) throw new Error(`there is no ${kubeconfig}; run \`gvisor-k3s up\` again`);
  const timeout = (ROLLOUT + 60) * 1000;
  return await run(pathOnHost(server.kubectl), ["kubectl", `--kubeconfig=${kubeconfig}`, ...args], { timeout });
}

async function rolledOut(ref: MachineRef, server: ClientRef, { kind, metadata, spec }: Workload): Promise<void> {
  const { name, namespace = "default" } = metadata ?? {};
  const ask = (...args: string[]) => kubectl(ref, server, [`--namespace=${namespace}`, ...args]);
  await ask("rollout", "status", `${kind}/${name}`, `--timeout=${ROLLOUT}s`).catch(async (error: Error) => {
    const labels = Object.entries(spec?.selector?.matchLabels ?? {}).map(([key, value]) => `${key}=${value}`);
    const { stdout } = await ask("get", "pods", "--selector", labels.join(","), "--output=json");
    const { items } = JSON.parse(stdout) as { items: PodStatus[] };
    const pods = items.map((pod) => `${pod.metadata.name}: ${reasons(pod).join("; ") || pod.status.phase}`);
    throw new Error([error.message, ...pods].join("\n"), { cause: error });
  });
}

/** What a pod waits for. */
function reasons({ status: { containerStatuses = [], conditions = [] } }: PodStatus): string[] {
  const containers = containerStatuses.map(({ state, lastState }) =>
    [state?.waiting?.reason, state?.waiting?.message, lastState?.terminated?.message].filter(Boolean).join(": "),
  );
  const unmet = conditions.flatMap(({ status, message = "" }) => (status === "False" ? [message] : []));
  return [...containers, ...unmet].filter((text) => text !== "");
}
