/**
 * What the server was when it was last ready: what an upgrade is measured against, and what one that fails goes back
 * to.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { compareBuild, minor } from "semver";
import { inSandbox, sandboxPaths } from "../config/paths.ts";
import type { Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import { moduleVersion } from "../toolchain/artifacts.ts";
import { execIn, initIn, type SandboxRef } from "./sandbox.ts";
import { serviceStates } from "./service.ts";

/** A server that was ready. */
export interface ReadyServer {
  /** As Kubernetes writes it, "v1.37.2"; none where it is not known. */
  version?: string;
  distribution: StackConfig["distribution"];
  /** The program by its path in the sandbox. */
  server: string;
  config: string;
}

const fileOf = ({ name, home }: Pick<SandboxRef, "name" | "home">) =>
  join(sandboxPaths(name, home).state, "server.json");

/** The cluster's data, and a copy of it while an upgrade is under way. */
const [data, copy] = [`${inSandbox.nodeData}/server/db`, `${inSandbox.nodeData}/server/db.before-upgrade`];

/** The server that was ready last; undefined if none was. */
export function lastReady(ref: Pick<SandboxRef, "name" | "home">): ReadyServer | undefined {
  return existsSync(fileOf(ref)) ? (JSON.parse(readFileSync(fileOf(ref), "utf8")) as ReadyServer) : undefined;
}

/** Notes a server that is ready. What was kept for the way back is of no more use. */
export async function noteReady(ref: SandboxRef, ready: ReadyServer): Promise<void> {
  await writeFile(fileOf(ref), JSON.stringify(ready), { mode: 0o600 });
  await execIn(ref, ["/bin/rm", "-rf", copy]);
}

/** Ends the server, and copies the cluster's data, which another version may write in another way. */
export async function keepData(ref: SandboxRef): Promise<void> {
  await stopServer(ref);
  await execIn(ref, ["/bin/rm", "-rf", copy]);
  await execIn(ref, ["/bin/cp", "-a", data, copy]);
}

/** Ends the server, and brings the copied data back. */
export async function restoreData(ref: SandboxRef): Promise<void> {
  await stopServer(ref);
  await execIn(ref, ["/bin/rm", "-rf", data]);
  await execIn(ref, ["/bin/mv", copy, data]);
}

async function stopServer(ref: SandboxRef): Promise<void> {
  if ((await serviceStates(ref)).server) await initIn(ref, ["service", "stop", "server"], { timeout: 40_000 });
}

/** The version of Kubernetes that a configuration asks for; undefined with a k3s of the user's own. */
export function configuredVersion({
  distribution,
  k3s,
}: Pick<StackConfig, "distribution" | "k3s">): string | undefined {
  if (distribution === "embedded") return `v${moduleVersion("node/server", "k8s.io/kubernetes")}`;
  return k3s.path === undefined ? k3s.version : undefined;
}

/**
 * What stands between the server that was ready last and the one that is configured: Kubernetes' version skew policy
 * lets a control plane go up by one minor version at a time (https://kubernetes.io/releases/version-skew-policy/), and
 * its data may be such as an older one cannot read.
 */
export function versionProblems(
  last: ReadyServer | undefined,
  config: Pick<StackConfig, "distribution" | "k3s">,
): Problem[] {
  if (last === undefined) return [];
  if (last.distribution !== config.distribution) {
    return [
      {
        option: "distribution",
        value: config.distribution,
        message:
          `the cluster was made by ${last.distribution}, which keeps its state in another way; set that, ` +
          "or destroy the cluster first",
      },
    ];
  }
  const [from, to] = [last.version, configuredVersion(config)];
  if (from === undefined || to === undefined) return [];
  const at =
    config.distribution === "k3s"
      ? { option: "k3s.version", value: to }
      : { option: "distribution", value: "embedded" };
  const brings = config.distribution === "k3s" ? "" : `this gvisor-k3s brings ${to}; `;
  if (compareBuild(to, from) < 0)
    return [
      {
        ...at,
        message:
          `${brings}the cluster runs ${from}, and a downgrade is not possible: an older API server may not ` +
          `read what a newer one has stored. Take ${from} or newer, or destroy the cluster first`,
      },
    ];
  if (minor(to) - minor(from) > 1)
    return [
      {
        ...at,
        message:
          `${brings}the cluster runs ${from}, and Kubernetes goes up by one minor version at a time; take ` +
          `a v1.${minor(from) + 1} first`,
      },
    ];
  return [];
}
