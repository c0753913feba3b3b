import { setTimeout as sleep } from "node:timers/promises";
import { pathInSandbox } from "../artifacts/artifacts.ts";
import { SANDBOX_ENVIRONMENT } from "../config/ociSpec.ts";
import { inSandbox } from "../config/paths.ts";
import type { Machine } from "../machines/machine.ts";
import { readUsage } from "./cgroup.ts";
import type { GogcRun } from "./results.ts";

/** Go's default and the server's own choice (node/server/main.go), in turn. */
const VALUES = [100, 40, 100, 40];

/** Starts the server of a node anew with one GOGC after another. */
export async function measureGogc(machine: Machine, settle: number): Promise<GogcRun[]> {
  const server = pathInSandbox({ name: "server" }, "gvisor-k3s-node");
  const runs: GogcRun[] = [];
  for (const [i, gogc] of VALUES.entries()) {
    const before = readUsage(machine.ref.name).cpuSeconds;
    const start = performance.now();
    const service = {
      name: "server",
      command: [server, "server", "--config", inSandbox.nodeConfig],
      env: [...SANDBOX_ENVIRONMENT, `GOGC=${gogc}`],
      log: `${inSandbox.logs}/server.log`,
      stopSeconds: 15,
      revision: `bench ${i}`,
    };
    await machine.init(["service", "put"], { input: JSON.stringify(service), timeout: 60_000 });
    await machine.exec([server, "ready", "--config", inSandbox.nodeConfig, "--stage", "node", "--wait", "60"], {
      timeout: 90_000,
    });
    const ready = (performance.now() - start) / 1000;
    await sleep(settle * 1000);
    const { memory, cpuSeconds } = readUsage(machine.ref.name);
    runs.push({ gogc, ready, cpuSeconds: cpuSeconds - before, memory });
  }
  return runs;
}
