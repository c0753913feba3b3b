/**
 * The services that sandbox-init keeps running on a machine.
 * @module
 */
import { createHash } from "node:crypto";
import { SANDBOX_ENVIRONMENT } from "../config/ociSpec.ts";
import { inSandbox } from "../config/paths.ts";
import { lastLines } from "../system/run.ts";
import type { Machine } from "./machine.ts";

/** What keeps the end of a node's link to the others, where the node is on another machine. */
export const LINK_SERVICE = "link";

/** How often a service may end while it is waited for before its start counts as failed. */
const ATTEMPTS = 3;

/** Seconds that a machine has beyond a service's own, to tell of it. */
const MARGIN = 20;

/** Bytes of a service's log that its last lines are taken from. */
const TAIL = 16 * 1024;

/** A program that is kept running. */
export interface Service {
  name: string;
  command: string[];
  /**
   * What tells whether another start could work. A service that runs is not ended if it fails; where none runs, the
   * start itself tells the same.
   */
  check?: string[];
  /** What it has in its environment beside what every program in the sandbox has, as NAME=value. */
  env?: string[];
  /** The content of the files that the service reads at its start; a change of it is a restart. */
  config: string;
  /** How long the service has to end. */
  stopSeconds: number;
  /** Seconds after which it is started again for its own sake; 0 for never. */
  restartEvery?: number;
}

/** What sandbox-init tells of a service; see `State` in node/init/service/supervisor.go. */
export interface ServiceState {
  /** 0 while it waits to be started again. */
  pid: number;
  restarts: number;
  lastExit: string;
}

/** Has a service run as described: it is started, restarted if the description changed, or left alone. */
export async function ensureService(machine: Machine, service: Service): Promise<void> {
  const { name, command, check = [], env = [], config, stopSeconds, restartEvery = 0 } = service;
  const described = {
    name,
    check,
    command,
    env: [...SANDBOX_ENVIRONMENT, ...env],
    log: logOf(name),
    stopSeconds,
    restartEvery,
    revision: createHash("sha256").update(config).digest("hex"),
  };
  const timeout = (stopSeconds + MARGIN) * 1000;
  await machine.init(["service", "put"], { input: JSON.stringify(described), timeout });
}

/** Ends a service, and forgets it; one that is not there is no error. */
export async function stopService(machine: Machine, name: string, seconds: number): Promise<void> {
  await machine.init(["service", "stop", name], { timeout: (seconds + MARGIN) * 1000 });
}

/** The state of every service by name. */
export async function serviceStates(machine: Machine): Promise<Record<string, ServiceState>> {
  const { stdout } = await machine.init(["service", "status"], { timeout: MARGIN * 1000 });
  const told = Object.entries(JSON.parse(stdout) as Record<string, ServiceState>);
  return Object.fromEntries(
    told.map(([name, { pid, restarts, lastExit }]) => [
      lastLines(name, 1),
      { pid: Number(pid), restarts: Number(restarts), lastExit: lastLines(String(lastExit ?? ""), 1) },
    ]),
  );
}

/** How a service shows that it is ready: by a field of a file that it writes, or by a socket that it listens on. */
export type Sign = { file: string; key: string } | { socket: string };

/** What `service await` of sandbox-init tells. */
interface Awaited {
  reached: boolean;
  why?: string;
  log?: string;
}

/**
 * Waits, on the machine itself, until a service has given a sign.
 * @throws Error with the end of the service's log, at once if the service keeps ending
 */
export async function serviceGives(machine: Machine, name: string, sign: Sign, seconds: number): Promise<void> {
  const { stdout } = await machine.init(["service", "await", name], {
    input: JSON.stringify({ ...sign, seconds, attempts: ATTEMPTS }),
    timeout: (seconds + MARGIN) * 1000,
  });
  const { reached, why, log } = JSON.parse(stdout) as Awaited;
  if (reached) return;
  // Both are what somebody in the sandbox may have written.
  throw new Error([`${name} does not answer: ${lastLines(why ?? "")}`, endOf(name, log)].filter(Boolean).join("\n"));
}

/** Where a service's output is, on the machine. */
export const logOf = (service: string) => `${inSandbox.logs}/${service}.log`;

function endOf(service: string, log = ""): string {
  return log === "" ? "" : `the last lines of ${logOf(service)}:\n${lastLines(log)}`;
}

/** The last lines of a service's log before it ended last: what follows is of another start, and tells nothing of why. */
export async function lastWords(machine: Machine, service: string): Promise<string> {
  const log = (await machine.read(logOf(service), { tail: 8 * TAIL }).catch(() => undefined)) ?? "";
  const end = log.lastIndexOf(`sandbox-init: ${service} ended: `); // see node/init/service/supervisor.go
  return end === -1 ? await serviceLog(machine, service) : endOf(service, lastLines(log.slice(0, end), 30));
}

/** The last lines of a service's log. */
export async function serviceLog(machine: Machine, service: string): Promise<string> {
  const log = await machine.read(logOf(service), { tail: TAIL }).catch((error: Error) => error.message);
  return log === undefined ? `there is no ${logOf(service)}` : endOf(service, lastLines(log, 15));
}
