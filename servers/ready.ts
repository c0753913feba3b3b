/**
 * What the server was when it was last ready: what an upgrade is measured against, and what one that fails goes back to.
 * @module
 */
import { compareBuild, minor } from "semver";
import type { Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import { hostPaths } from "../machines/paths.ts";
import type { MachineRef } from "../machines/ref.ts";
import { readJson, writeWhole } from "../system/files.ts";
import { distributionOf } from "./index.ts";

/** A server that was ready. */
export interface ReadyServer {
  /** As Kubernetes writes it, "v1.37.2"; none where it is not known. */
  version?: string;
  distribution: StackConfig["distribution"];
  /** The program by its path on the machine. */
  server: string;
  /** Its config file. */
  config: string;
  /** What is taken for kubectl, by its path on the machine; releases up to 0.2 noted none. */
  kubectl?: string;
  /** That its node never was: the first server of a cluster, so far. */
  awaitsNode?: true;
}

/** The server that was ready last, with its node; undefined if none was. */
export function lastReady(ref: Pick<MachineRef, "name" | "home">): ReadyServer | undefined {
  const noted = notedServer(ref);
  return noted?.awaitsNode ? undefined : noted;
}

/** The server whose API was there last; undefined if none was. */
export function notedServer({ name, home }: Pick<MachineRef, "name" | "home">): ReadyServer | undefined {
  const { ready } = hostPaths(name, home);
  return readJson<ReadyServer>(
    ready,
    "delete it: a failed upgrade has no server to go back to then, and no data is lost",
  );
}

/** Notes a server that is ready. */
export async function noteReady({ name, home }: MachineRef, server: ReadyServer): Promise<void> {
  await writeWhole(hostPaths(name, home).ready, JSON.stringify(server));
}

/**
 * What stands between the server that was ready last and the one that is configured: Kubernetes' version skew policy
 * lets a control plane go up by one minor version at a time (https://kubernetes.io/releases/version-skew-policy/), and
 * its data may be such as an older one cannot read.
 */
export function versionProblems(last: ReadyServer | undefined, config: StackConfig): Problem[] {
  if (last === undefined) return [];
  if (last.distribution !== config.distribution) {
    const message = `the cluster was made by ${last.distribution}, which keeps its state in another way; set that, or`;
    return [{ option: "distribution", value: config.distribution, message: `${message} destroy the cluster first` }];
  }
  const distribution = distributionOf(config);
  const [from, to] = [last.version, distribution.refOf(config).version];
  if (from === undefined || to === undefined) return [];
  const { option, value, brings, newer, next } = distribution.versionOption(config, from);
  if (compareBuild(to, from) < 0) {
    const message =
      `${brings}the cluster runs ${from}, and a downgrade is not possible: an older API server may not read what a ` +
      `newer one has stored. Take ${newer}, or destroy the cluster first`;
    return [{ option, value, message }];
  }
  if (minor(to) - minor(from) <= 1) return [];
  const message = `${brings}the cluster runs ${from}, and Kubernetes goes up by one minor version at a time; take ${next}`;
  return [{ option, value, message }];
}
