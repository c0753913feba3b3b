import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";
import { SANDBOX_PATH } from "../config/ociSpec.ts";
import { hostPath, inSandbox } from "../config/paths.ts";
import { pathInSandbox } from "../toolchain/artifacts.ts";
import { repairsNow, writeOwnFiles } from "./files.ts";
import { worked } from "./run.ts";
import { execIn, type SandboxRef } from "./sandbox.ts";
import { ensureService, serviceAnswers } from "./service.ts";

export interface ContainerdParams extends SandboxRef {
  /** containerd by its path in the sandbox. */
  containerd: string;
  /** Its shim by its path in the sandbox. */
  shim: string;
  /** A part of its config that is secret: passwords for registries. */
  credentials?: string;
  /** What it has in its environment beside what every program in the sandbox has, as NAME=value: proxies. */
  env: string[];
}

/** ctr by its path in the sandbox. */
export const ctr = () => pathInSandbox({ name: "containerd" }, "ctr");

/**
 * Writes containerd's config (standard input) and has containerd run with it.
 * @throws Error with the end of containerd's log if it does not answer or its CRI plugin did not load
 */
export async function ensureContainerd(params: ContainerdParams, config: string): Promise<void> {
  for (const folder of [inSandbox.registries, inSandbox.cniConfig])
    await mkdir(hostPath(params, folder), { recursive: true, mode: 0o755 });
  const credentials = params.credentials ?? "version = 3\n";
  await writeOwnFiles(params, "containerd", [
    { path: inSandbox.containerdConfig, content: config, mode: 0o644 },
    { path: inSandbox.containerdCredentials, content: credentials, mode: 0o600 },
  ]);
  const command = [params.containerd, "--config", inSandbox.containerdConfig];
  // First on PATH, so that a shim of another version is never taken.
  const path = `PATH=${[dirname(params.shim), SANDBOX_PATH].join(":")}`;
  const state = await ensureService(params, {
    name: "containerd",
    command,
    env: [path, ...params.env],
    config: `${config}${credentials}${repairsNow()}`,
    stopSeconds: 10,
  });
  const plugins = await serviceAnswers(
    params,
    "containerd",
    60,
    () =>
      // ctr waits by itself for a socket that is about to appear.
      worked(execIn(params, [ctr(), "--connect-timeout=2s", "plugins", "list"], { timeout: 20_000 })),
    state,
  );
  const failed = plugins
    .split("\n")
    .map((row) => row.trim().split(/\s+/))
    .filter(([type, id, , status]) => type?.includes(".cri") && id && status === "error");
  if (failed.length > 0) {
    const { stdout } = await execIn(params, [
      ctr(),
      "plugins",
      "list",
      "--detailed",
      ...failed.map(([, id]) => `id==${id}`),
    ]);
    throw new Error(`containerd's CRI plugin did not load:\n${stdout}`);
  }
}
