import { createHash } from "node:crypto";
import { SANDBOX_ENVIRONMENT } from "../config/ociSpec.ts";
import { inSandbox } from "../config/paths.ts";
import { initIn, type SandboxRef, serviceLog } from "./sandbox.ts";
import { waitFor } from "./wait.ts";

/** How often a service may end while it is waited for before its start counts as failed. */
const ATTEMPTS = 3;

export interface ServiceParams {
  name: string;
  command: string[];
  /**
   * What tells whether another start could work. A service that runs is not ended if it fails; where none runs, the
   * start itself tells the same.
   */
  check?: string[];
  /** What it has in its environment beside what every program in the sandbox has, as NAME=value. */
  env?: string[];
  /** The content of the file that the service reads; a change of it is a restart. */
  config: string;
  /** How long the service has to end. */
  stopSeconds: number;
}

/** Has a service run as described: it is started, restarted if the description changed, or left alone. */
export async function ensureService(
  ref: SandboxRef,
  { name, command, check = [], env = [], config, stopSeconds }: ServiceParams,
): Promise<ServiceState> {
  const service = {
    name,
    check,
    command,
    env: [...SANDBOX_ENVIRONMENT, ...env],
    log: `${inSandbox.logs}/${name}.log`,
    stopSeconds,
    revision: createHash("sha256").update(config).digest("hex"),
  };
  const { stdout } = await initIn(ref, ["service", "put"], {
    input: JSON.stringify(service),
    timeout: (stopSeconds + 10) * 1000,
  });
  return (JSON.parse(stdout) as Record<string, ServiceState>)[name]!;
}

/** What sandbox-init tells of a service; see `State` in node/init/supervisor.go. */
export interface ServiceState {
  /** 0 while it waits to be started again. */
  pid: number;
  restarts: number;
  lastExit: string;
}

/** The state of every service by name. */
export async function serviceStates(ref: SandboxRef): Promise<Record<string, ServiceState>> {
  return JSON.parse((await initIn(ref, ["service", "status"])).stdout) as Record<string, ServiceState>;
}

/**
 * Milliseconds between two looks at whether a service that is waited for still runs; each look is a process in the
 * sandbox.
 */
const LOOK = 2000;

/**
 * Waits until a service answers.
 * @param ready answers with something once the service does; it gets the service's state
 * @param known the service's state, where it was just told
 * @throws Error with the end of the service's log, at once if the service keeps ending
 */
export async function serviceAnswers<T>(
  ref: SandboxRef,
  name: string,
  seconds: number,
  ready: (state: ServiceState) => Promise<T | undefined> | T | undefined,
  known?: ServiceState,
): Promise<T> {
  let state = known;
  let before = known?.restarts;
  let looked = Date.now();
  return await waitFor(
    `${name} answers`,
    seconds,
    async () => {
      if (state === undefined || Date.now() - looked > LOOK) {
        state = (await serviceStates(ref))[name] ?? { pid: 0, restarts: 0, lastExit: "" };
        looked = Date.now();
        before ??= state.restarts;
        if (state.restarts - before >= ATTEMPTS)
          throw new Error(`${name} keeps ending, the last time with ${state.lastExit}\n${serviceLog(ref, name)}`);
      }
      return await ready(state);
    },
    () => serviceLog(ref, name),
  );
}
