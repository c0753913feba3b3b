/**
 * The clusters of this machine; apart from what needs Pulumi, because shells ask for them as one types.
 * @module
 */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { homeFolder, inSandbox, sandboxPaths } from "../config/paths.ts";
import { isAlive, readRecord } from "../steps/record.ts";

/** One of this home's clusters. */
export interface Listed {
  name: string;
  /** Of one on another machine, whether it runs is for `status` to ask. */
  state: "running" | "stopped" | "remote";
  kubeconfigPath: string;
}

/** The clusters of this home, by what is on this machine; one whose `up` failed before anything was made is none. */
export function list(): Listed[] {
  const folder = join(homeFolder(), "sandboxes");
  return (existsSync(folder) ? readdirSync(folder) : []).sort().map((name) => {
    const paths = sandboxPaths(name);
    const inside = existsSync(inSandbox.kubeconfig) && !existsSync(paths.kubeconfig);
    const remote = existsSync(paths.machine);
    return {
      name,
      state: remote ? "remote" : isAlive(readRecord(paths)) ? "running" : "stopped",
      kubeconfigPath: inside ? inSandbox.kubeconfig : paths.kubeconfig,
    };
  });
}
