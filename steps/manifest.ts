import { createHash } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { parseAllDocuments } from "yaml";
import { hostPath, inSandbox, sandboxPaths } from "../config/paths.ts";
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

/**
 * Seconds for the server to apply a manifest, retries included, and for its pods to become ready: they start in about
 * two, and a pull may come before.
 */
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
  apiVersion?: string;
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
 * Writes a manifest (standard input) where the server applies it, and waits until it is applied and its workloads are
 * rolled out.
 * @throws Error with the API server's words on what it refuses, or with what the pods wait for
 */
export async function ensureManifest(params: ManifestParams, content: string): Promise<void> {
  if (params.distribution === "k3s") await applyWithKubectl(params, content);
  else await applyByServer(params, content);
  if (!params.pods) return;
  for (const object of objectsOf(content)) await rolledOut(params, object);
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
 * k3s has such a folder too, and never deletes what a file that left it brought (k3s's docs, "Auto-deploying
 * manifests"), so kubectl does it: what was applied last is kept, and what is in it and not in the new content is
 * deleted. Empty content deletes all.
 */
async function applyWithKubectl(params: ManifestParams, content: string): Promise<void> {
  const last = join(sandboxPaths(params.name, params.home).state, "manifests", fileOf(params.manifest));
  if (content !== "")
    await kubectlOf(params, ["apply", "--server-side", "--force-conflicts", "--filename=-"], { input: content });
  const stays = new Set(objectsOf(content).map(identity));
  const gone = objectsOf(await readFile(last, "utf8").catch(() => "")).filter((object) => !stays.has(identity(object)));
  if (gone.length > 0)
    await kubectlOf(params, ["delete", "--ignore-not-found", "--filename=-"], {
      input: JSON.stringify({ apiVersion: "v1", kind: "List", items: gone }),
    });
  await mkdir(dirname(last), { recursive: true, mode: 0o700 });
  await writeFile(last, content, { mode: 0o600 });
}

function objectsOf(content: string): KubernetesObject[] {
  const documents = parseAllDocuments(content).map(
    (document) => document.toJS() as (KubernetesObject & { items?: KubernetesObject[] }) | null,
  );
  return documents.flatMap((object) => (object === null ? [] : (object.items ?? [object])));
}

/** What makes an object the same one: not its version, of which an API group has several for one object. */
function identity({ apiVersion = "", kind, metadata }: KubernetesObject): string {
  const group = apiVersion.includes("/") ? apiVersion.split("/")[0] : "";
  return [group, kind, metadata?.namespace ?? "default", metadata?.name].join("/");
}

function kubectlOf(params: ManifestParams, args: string[], options: RunOptions = {}) {
  return run(
    pathOnHost(params.kubectl),
    ["kubectl", `--kubeconfig=${hostPath(params, inSandbox.kubeconfig)}`, ...args],
    options,
  );
}

/** Takes a manifest away, and with it what the server has made of it. */
export async function removeManifest(params: ManifestParams): Promise<void> {
  if (params.distribution === "k3s") {
    await applyWithKubectl(params, "");
    return;
  }
  await initIn(params, ["remove", `${folder}/${fileOf(params.manifest)}`]);
  await waitFor(`the server removes what ${fileOf(params.manifest)} brought`, APPLY, async () =>
    (await states(params))[fileOf(params.manifest)] ? undefined : true,
  );
}

async function states(params: ManifestParams): Promise<Record<string, ManifestState>> {
  const noted = await readFile(hostPath(params, `${folder}.json`), "utf8").catch(() => "{}");
  return (JSON.parse(noted) as Record<string, ManifestState> | null) ?? {};
}

async function rolledOut(params: ManifestParams, object: KubernetesObject): Promise<void> {
  const { kind, metadata: { name, namespace = "default" } = {}, spec } = object;
  if (!["Deployment", "DaemonSet", "StatefulSet"].includes(kind ?? "")) return;
  const kubectl = (...args: string[]) => kubectlOf(params, [`--namespace=${namespace}`, ...args]);
  await kubectl("rollout", "status", `${kind}/${name}`, `--timeout=${ROLLOUT}s`).catch(async (error: Error) => {
    const selector = Object.entries(spec?.selector?.matchLabels ?? {})
      .map(([key, value]) => `${key}=${value}`)
      .join(",");
    const { stdout } = await kubectl("get", "pods", "--selector", selector, "--output=json");
    const pods = (JSON.parse(stdout) as { items: PodStatus[] }).items.map(
      (pod) => `${pod.metadata.name}: ${reasons(pod).join("; ") || pod.status.phase}`,
    );
    throw new Error([error.message, ...pods].join("\n"), { cause: error });
  });
}

/** What a pod waits for. */
function reasons({ status: { containerStatuses = [], conditions = [] } }: PodStatus): string[] {
  const containers = containerStatuses.map(({ state, lastState }) =>
    [state?.waiting?.reason, state?.waiting?.message, lastState?.terminated?.message].filter(Boolean).join(": "),
  );
  return [...containers, ...conditions.flatMap(({ status, message }) => (status === "False" ? [message] : []))].filter(
    (text) => text !== undefined && text !== "",
  ) as string[];
}
