import { readFileSync } from "node:fs";
import type { Memory } from "./results.ts";

/** What a sandbox and everything in it uses, read from its cgroup on the host. */
export function readUsage(name: string): { memory: Memory; cpuSeconds: number } {
  const read = (controller: string, file: string) =>
    readFileSync(`/sys/fs/cgroup/${controller}/gvisor-k3s/${name}/${file}`, "utf8");
  // The cgroups below, which pods have natively, are in the totals.
  const stat = (key: string) =>
    Number(read("memory", "memory.stat").match(new RegExp(`^total_${key} (\\d+)$`, "m"))![1]);
  const usage = Number(read("memory", "memory.usage_in_bytes"));
  const fileCache = stat("active_file") + stat("inactive_file");
  return {
    memory: { usage, fileCache, used: usage - fileCache, anonymous: stat("rss"), shared: stat("shmem") },
    cpuSeconds: Number(read("cpuacct", "cpuacct.usage")) / 1e9,
  };
}
