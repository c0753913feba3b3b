import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { conflistPath } from "../config/conflist.ts";
import { renderKubeletConfig } from "../config/nodeYaml.ts";
import { hostPath, inSandbox } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import { pathOnHost } from "../toolchain/artifacts.ts";
import { repairsNow, writeOwnFiles } from "./files.ts";
import { CommandError, lastLines, run, worked } from "./run.ts";
import { execIn, type SandboxRef } from "./sandbox.ts";
import { ensureService, type ServiceState, serviceAnswers } from "./service.ts";
import { keepData, lastReady, noteReady, type ReadyServer, restoreData } from "./upgrade.ts";

export interface ServerParams extends SandboxRef {
  /** The server binary by its path in the sandbox. */
  server: string;
  /** What is taken for kubectl: a program by its path in the sandbox, with this as its first argument. */
  kubectl: string;
  /** See the option `distribution`. */
  distribution: StackConfig["distribution"];
  /** The version of Kubernetes, where it is known. */
  version?: string;
}

/** Seconds for the API server or the node to become ready; on two slow cores it takes about ten. */
const PATIENCE = 180;

/**
 * Writes the server's config (standard input), has the server run with it and waits until the API is ready: /readyz,
 * and the default service account is there. The node becomes Ready when it has a network; see {@link ensureNetwork}.
 * @throws Error with the end of the server's log if it does not become ready. If another one was ready before, that one
 *   runs again then, with its configuration, and, if it was of another version, with the data as they were
 */
export async function ensureServer(params: ServerParams, config: string): Promise<void> {
  const { version, distribution, server } = params;
  const [last, next]: [ReadyServer | undefined, ReadyServer] = [
    lastReady(params),
    { ...(version === undefined ? {} : { version }), distribution, server, config },
  ];
  const upgrades = last !== undefined && last.server !== server;
  if (upgrades) await keepData(params);
  try {
    await startServer(params, config);
  } catch (error) {
    if (last === undefined || isDeepStrictEqual(last, next)) throw error;
    if (upgrades) await restoreData(params);
    const again = await startServer({ ...params, server: last.server }, last.config).then(
      () => `the server of before${last.version === undefined ? "" : `, ${last.version},`} runs again, as it was`,
      (reason: Error) => `the server of before does not start either: ${reason.message}`,
    );
    throw new Error(`${(error as Error).message}\n${again}`, { cause: error });
  }
  await noteReady(params, next);
}

async function startServer(params: ServerParams, config: string): Promise<void> {
  const command = (verb: string) => [params.server, verb, "--config", inSandbox.nodeConfig];
  const official = params.distribution === "k3s";
  const kubelet = {
    path: `${inSandbox.nodeData}/agent/etc/kubelet.conf.d/10-gvisor-k3s.conf`,
    content: renderKubeletConfig(),
    mode: 0o600,
  };
  await writeOwnFiles(params, "server", [
    { path: inSandbox.nodeConfig, content: config, mode: 0o600 },
    ...(official ? [kubelet] : []),
  ]);
  const state = await ensureService(params, {
    name: "server",
    command: command("server"),
    ...(official ? {} : { check: command("check") }),
    config: `${config}${repairsNow()}`,
    stopSeconds: 15,
  });
  await reached(params, "defaultServiceAccount", state);
}

/** The admin's kubeconfig. */
export async function printKubeconfig(params: SandboxRef): Promise<string> {
  return await readFile(hostPath(params, inSandbox.kubeconfig), "utf8");
}

/**
 * Writes the CNI conflist (standard input) from within the sandbox, where containerd watches for it, and waits until
 * the node is Ready.
 */
export async function ensureNetwork(params: ServerParams, conflist: string): Promise<void> {
  await writeOwnFiles(params, "network", [{ path: conflistPath, content: conflist, mode: 0o644, watched: true }]);
  await reached(params, "nodeReady");
}

/** What the server notes of its start: its process, and when it came how far. See node/server/ready.go. */
interface Stages {
  pid?: number;
  defaultServiceAccount?: number;
  nodeReady?: number;
}

/**
 * Waits until the server that runs now has noted a stage. To ask the API server takes a process in the sandbox, which
 * has to start just when the server needs every CPU; so that is done only to tell what is missing when the time is up.
 */
async function reached(
  params: ServerParams,
  stage: "defaultServiceAccount" | "nodeReady",
  known?: ServiceState,
): Promise<void> {
  if (params.distribution === "k3s") {
    await serviceAnswers(params, "server", PATIENCE, () => asked(params, stage), known);
    return;
  }
  const file = hostPath(params, `${inSandbox.nodeData}/server/stages.json`);
  const noted = async ({ pid }: ServiceState) => {
    const stages = JSON.parse(await readFile(file, "utf8").catch(() => "{}")) as Stages;
    return (stages.pid === pid && stages[stage] !== undefined) || undefined;
  };
  await serviceAnswers(params, "server", PATIENCE, noted, known).catch(async (error: Error) => {
    const asked = await execIn(
      params,
      [params.server, "ready", "--config", inSandbox.nodeConfig, "--stage", stage === "nodeReady" ? "node" : "api"],
      { timeout: 30_000 },
    ).catch((reason: unknown) => reason);
    const missing = asked instanceof CommandError ? lastLines(asked.output, 1) : "";
    throw new Error([missing, error.message].filter(Boolean).join("\n"), { cause: error });
  });
}

/** Asks the API server itself how far it is: k3s notes nothing of the kind. */
async function asked(
  { name, home, runsc, kubectl }: ServerParams,
  stage: "defaultServiceAccount" | "nodeReady",
): Promise<string | undefined> {
  const kubeconfig = hostPath({ name, home, ...(runsc === undefined ? {} : { runsc }) }, inSandbox.kubeconfig);
  const question =
    stage === "nodeReady"
      ? ["wait", `node/${name}`, "--for=condition=Ready", "--timeout=2s"]
      : ["get", "serviceaccount", "default", "--output=name"];
  const answer = await worked(
    run(pathOnHost(kubectl), ["kubectl", `--kubeconfig=${kubeconfig}`, "--request-timeout=5s", ...question]),
  );
  if (answer === undefined) await delay(500); // each question is a process, beside a server that needs every CPU
  return answer;
}
