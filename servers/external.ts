/**
 * A cluster that is there already: kind's, k3d's, a cloud's, another stack's. Nothing is installed in it.
 * @module
 */
import { readFileSync } from "node:fs";
import { externalKubeconfig, kubeconfigProblems } from "../config/external.ts";
import type { Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";

/** Its kubeconfig, with the context that is asked for as its current one; the file is the user's own, and trusted. */
export function kubeconfigOfExternal(external: StackConfig["external"]): string {
  return externalKubeconfig(readFileSync(external.kubeconfig!, "utf8"), external);
}

/** What is wrong with the kubeconfig. */
export function externalProblems(external: StackConfig["external"]): Problem[] {
  return kubeconfigProblems(external, (file) => readFileSync(file, "utf8"));
}
