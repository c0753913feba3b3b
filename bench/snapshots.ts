/** How long it takes to keep a cluster, to take it back, and to have another one begin with it. */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { execa } from "execa";
import { artifactFolder } from "../artifacts/artifacts.ts";
import { hostPaths } from "../machines/paths.ts";
import type { MachineRef } from "../machines/ref.ts";
import type { SnapshotRun } from "./results.ts";

/** Seconds for a pod to run again. */
const PATIENCE = 60;

/** What the other cluster is called. */
export const FORK = "bench-fork";

/** What a command printed, and how many seconds it took. */
interface Command {
  seconds: number;
  stdout: string;
}

/**
 * Measures a cluster that runs.
 * @param cli runs a command of this project's
 * @param pod whether there is one, which is waited for
 */
export async function measureSnapshots(
  { name, home }: MachineRef,
  cli: (...args: string[]) => Promise<Command>,
  pod: boolean,
): Promise<Omit<SnapshotRun, "mode">> {
  const node = join(artifactFolder({ name: "server" }), "gvisor-k3s-node");
  const restarts = async () => {
    const status = "-o=jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
    const args = ["kubectl", `--kubeconfig=${hostPaths(name, home).kubeconfig}`, "get", "pod", "testpod", status];
    const { stdout } = await execa(node, args, { reject: false });
    return stdout;
  };
  const saved = await cli("snapshot", "save", name, "bench", "--json");
  const before = pod ? await restarts() : "";
  const restored = await cli("snapshot", "restore", name, "bench");
  const back = performance.now();
  let pods: number | undefined;
  if (pod) {
    for (let now = before; now === before || !now.endsWith(" true"); now = await restarts()) {
      if (performance.now() - back > PATIENCE * 1000) throw new Error(`testpod is not back: ${now}, before ${before}`);
      await sleep(50);
    }
    pods = restored.seconds + (performance.now() - back) / 1000;
  }
  const forked = await cli("fork", name, FORK, "--from", "bench");
  await cli("destroy", FORK);
  await cli("snapshot", "delete", name, "bench");
  const { frozen, files } = JSON.parse(saved.stdout.slice(saved.stdout.indexOf("{"))) as {
    frozen: number;
    files: Record<string, { size: number }>;
  };
  const size = Object.values(files).reduce((sum, file) => sum + file.size, 0);
  return {
    save: saved.seconds,
    frozen: frozen / 1000,
    size,
    restore: restored.seconds,
    fork: forked.seconds,
    ...(pods === undefined ? {} : { pods }),
  };
}
