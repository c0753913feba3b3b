import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { conflistPath } from "../config/conflist.ts";
import { inSandbox, sandboxPaths } from "../config/paths.ts";
import { CommandError, lastLines } from "./run.ts";
import { execIn, initIn, type SandboxRef } from "./sandbox.ts";
import { ensureService, serviceAnswers } from "./service.ts";

export interface ServerParams extends SandboxRef {
  /** The server binary by its path in the sandbox. */
  server: string;
}

/** Seconds for the API server or the node to become ready; on two slow cores it takes about ten. */
const PATIENCE = 180;

/**
 * Writes the server's config (standard input), has the server run with it and waits until the API is ready: /readyz, and the default
 * service account is there. The node becomes Ready when it has a network; see {@link ensureNetwork}.
 */
export async function ensureServer(params: ServerParams, config: string): Promise<void> {
  const file = join(sandboxPaths(params.name, params.home).state, inSandbox.nodeConfig);
  await mkdir(dirname(file), { recursive: true, mode: 0o755 });
  await writeFile(file, config, { mode: 0o600 });
  await execIn(params, [params.server, "check", "--config", inSandbox.nodeConfig]);
  await ensureService(params, "server", [params.server, "server", "--config", inSandbox.nodeConfig], config, 15);
  await isReady(params, "api");
}

/** The admin's kubeconfig. */
export async function printKubeconfig(params: SandboxRef): Promise<string> {
  return await readFile(sandboxPaths(params.name, params.home).kubeconfig, "utf8");
}

/** Writes the CNI conflist (standard input) from within the sandbox, where containerd watches for it, and waits until the node is Ready. */
export async function ensureNetwork(params: ServerParams, conflist: string): Promise<void> {
  await initIn(params, ["write", conflistPath, "644"], { input: conflist });
  await isReady(params, "node");
}

async function isReady(params: ServerParams, stage: "api" | "node"): Promise<void> {
  let missing = "";
  const ready = async () => {
    try {
      // The binary is large to start, so one start of it waits for a while.
      await execIn(params, [params.server, "ready", "--config", inSandbox.nodeConfig, "--stage", stage, "--wait", "5"], { timeout: 30_000 });
      return true;
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
      missing = lastLines(error.output, 1);
      return undefined;
    }
  };
  await serviceAnswers(params, "server", PATIENCE, ready).catch((error: Error) => {
    throw new Error([missing, error.message].filter(Boolean).join("\n"), { cause: error });
  });
}
