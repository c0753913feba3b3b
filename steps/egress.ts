/**
 * A sandbox's way out: a process on the host that makes connections for it, so that the host needs neither forwarding
 * nor address translation.
 * @module
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, openSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { sandboxPaths } from "../config/paths.ts";
import { isAlive, nextIncarnation, processStart, readRecord, writeRecord } from "./record.ts";
import { lastLines } from "./run.ts";
import { egressArgument, killProcesses, tapAddresses } from "./sandbox.ts";
import { waitFor } from "./wait.ts";

export interface EgressParams {
  name: string;
  home: string;
  /** The program, on the host. */
  program: string;
  /** The pods' network. */
  pods: string;
  /** The start of the sandbox that it is for: another start has another tap. */
  sandbox: number;
}

/** A hash of everything that it is started with. */
export function egressRevision(params: EgressParams): string {
  return createHash("sha256")
    .update(JSON.stringify([params, tapAddresses]))
    .digest("hex");
}

/** Has the egress run as described: starts one that is new or dead, replaces one that was described otherwise. */
export async function ensureEgress(params: EgressParams): Promise<void> {
  const paths = sandboxPaths(params.name, params.home);
  const revision = egressRevision(params);
  const previous = readRecord({ record: paths.egress });
  if (isAlive(previous) && previous?.revision === revision) return;
  const incarnation = nextIncarnation({ record: paths.egress }, revision);
  await removeEgress(params);
  const { device, gateway, node, prefix, mtu } = tapAddresses;
  const log = join(paths.logs, "egress.log");
  const output = openSync(log, "w", 0o600);
  const args = [
    egressArgument(paths),
    `-tap=${device}`,
    `-address=${gateway}/${prefix}`,
    `-node=${node}`,
    `-pods=${params.pods}`,
    `-mtu=${mtu}`,
  ];
  const child = spawn(params.program, args, { detached: true, stdio: ["ignore", output, output], env: {} });
  closeSync(output);
  child.unref();
  const { pid } = child;
  if (pid === undefined) throw new Error(`${params.program} cannot be started`);
  const said = () => readFileSync(log, "utf8");
  await waitFor(
    "the egress is ready",
    10,
    () => {
      if (processStart(pid) === undefined) throw new Error(`the egress ended\n${lastLines(said())}`);
      return said().includes("ready on") || undefined;
    },
    said,
  );
  await writeRecord(paths.egress, { incarnation, revision, pid, startTime: processStart(pid)! });
}

/** Ends the egress; one that is gone is no error. */
export async function removeEgress({ name, home }: Pick<EgressParams, "name" | "home">): Promise<void> {
  const paths = sandboxPaths(name, home);
  await killProcesses(egressArgument(paths));
  await rm(paths.egress, { force: true });
}
