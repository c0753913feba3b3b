import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { parseAllDocuments } from "yaml";
import { hostPath, inSandbox } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import { pathOnHost } from "../toolchain/artifacts.ts";
import { type RunOptions, run } from "./run.ts";
import { initIn, type SandboxRef } from "./sandbox.ts";
import { waitFor } from "./wait.ts";

export interface ManifestParams extends SandboxRef {
  /** What is taken for kubectl: a program by its path in the sandbox, with this as its first argument. */
  kubectl: string;
  /** See the option `distribution`. */
  distribution: StackConfig["distribution"];
  /** The file's name without extension. */
  manifest: string;
  /** Whether the pods of its workloads are awaited; a control plane alone has none. */
  pods: boolean;
}

/** Seconds for the server to apply a manifest, retries included, and for its pods to become ready: they start in about two, and a pull may come before. */
const [APPLY, ROLLOUT] = [60, 300];

const folder = `${inSandbox.nodeData}/server/manifests`;
const fileOf = (manifest: string) => `${manifest}.yaml`;

/** What the server notes of a manifest; see `manifestState` in node/server/manifests.go. */
interface ManifestState {
  digest: string;
  problem?: string;
  /** To try again is of no use. */
  final?: boolean;
}

/** What a manifest holds, as far as it matters here. */
interface KubernetesObject {
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
    containerStatuses?: { state?: { waiting?: { reason?: string; message?: string } }; lastState?: { terminated?: { message?: string } } }[];
  };
}

/**
 * Writes a manifest (standard input) where the server applies it, and waits until it is applied and its workloads are rolled out.
 * @throws Error with the API server's words on what it refuses, or with what the pods wait for
 */
export async function ensureManifest(params: ManifestParams, content: string): Promise<void> {
  if (params.distribution === "k3s") await applyWithKubectl(params, content);
  else await applyByServer(params, content);
  if (!params.pods) return;
  for (const document of parseAllDocuments(content)) await rolledOut(params, document.toJS() as KubernetesObject | null);
}

/** Our server applies what lies in its folder, and deletes what leaves it. */
async function applyByServer(params: ManifestParams, content: string): Promise<void> {
  await initIn(params, ["write", `${folder}/${fileOf(params.manifest)}`, "600"], { input: content });
  const digest = createHash("sha256").update(content).digest("hex");
  let problem: string | undefined;
  await waitFor(
    `the server applies ${fileOf(params.manifest)}`,
    APPLY,
    async () => {
      const state = (await states(params))[fileOf(params.manifest)];
      if (state?.digest !== digest) return undefined;
      problem = state.problem;
      if (state.final) throw new Error(problem);
      return problem === undefined || undefined;
    },
    () => problem ?? "",
  );
}

/**
 * k3s has such a folder too, and never deletes what left it (k3s's docs, "Auto-deploying manifests"), so kubectl does it: what it applied carries
 * the manifest's label, and what has the label and is in the file no more is pruned.
 */
async function applyWithKubectl(params: ManifestParams, content: string): Promise<void> {
  await kubectlOf(params, ["apply", "--server-side", "--force-conflicts", `--applyset=${applySet(params)}`, "--prune", "--filename=-"], { input: content, env: { KUBECTL_APPLYSET: "true" } });
}

/** What kubectl remembers the manifest's objects by, in the default namespace: an explicit one would have to be every object's. */
const applySet = ({ manifest }: ManifestParams) => `configmaps/gvisor-k3s-${manifest}`;

function kubectlOf(params: ManifestParams, args: string[], options: RunOptions = {}) {
  return run(pathOnHost(params.kubectl), ["kubectl", `--kubeconfig=${hostPath(params, inSandbox.kubeconfig)}`, ...args], options);
}

/** Takes a manifest away, and with it what the server has made of it. */
export async function removeManifest(params: ManifestParams, content: string): Promise<void> {
  if (params.distribution === "k3s") {
    await kubectlOf(params, ["delete", "--ignore-not-found", "--filename=-"], { input: content });
    await kubectlOf(params, ["delete", "--ignore-not-found", applySet(params)]);
    return;
  }
  await initIn(params, ["remove", `${folder}/${fileOf(params.manifest)}`]);
  await waitFor(`the server removes what ${fileOf(params.manifest)} brought`, APPLY, async () => ((await states(params))[fileOf(params.manifest)] ? undefined : true));
}

async function states(params: ManifestParams): Promise<Record<string, ManifestState>> {
  const noted = await readFile(hostPath(params, `${folder}.json`), "utf8").catch(() => "{}");
  return (JSON.parse(noted) as Record<string, ManifestState> | null) ?? {};
}

async function rolledOut(params: ManifestParams, object: KubernetesObject | null): Promise<void> {
  if (!["Deployment", "DaemonSet", "StatefulSet"].includes(object?.kind ?? "")) return;
  const { kind, metadata: { name, namespace = "default" } = {}, spec } = object!;
  const kubectl = (...args: string[]) => kubectlOf(params, [`--namespace=${namespace}`, ...args]);
  await kubectl("rollout", "status", `${kind}/${name}`, `--timeout=${ROLLOUT}s`).catch(async (error: Error) => {
    const selector = Object.entries(spec?.selector?.matchLabels ?? {}).map(([key, value]) => `${key}=${value}`).join(",");
    const { stdout } = await kubectl("get", "pods", "--selector", selector, "--output=json");
    const pods = (JSON.parse(stdout) as { items: PodStatus[] }).items.map((pod) => `${pod.metadata.name}: ${reasons(pod).join("; ") || pod.status.phase}`);
    throw new Error([error.message, ...pods].join("\n"), { cause: error });
  });
}

/** What a pod waits for. */
function reasons({ status: { containerStatuses = [], conditions = [] } }: PodStatus): string[] {
  const containers = containerStatuses.map(({ state, lastState }) => [state?.waiting?.reason, state?.waiting?.message, lastState?.terminated?.message].filter(Boolean).join(": "));
  return [...containers, ...conditions.flatMap(({ status, message }) => (status === "False" ? [message] : []))].filter((text) => text !== undefined && text !== "") as string[];
}
