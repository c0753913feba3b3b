import { createHash } from "node:crypto";
import { SANDBOX_ENVIRONMENT } from "../config/ociSpec.ts";
import { inSandbox } from "../config/paths.ts";
import { initIn, type SandboxRef, serviceLog } from "./sandbox.ts";
import { waitFor } from "./wait.ts";

/** How often a service may end while it is waited for before its start counts as failed. */
const ATTEMPTS = 3;

/**
 * Has a service run with this command and this configuration: it is started, restarted if either changed, or left alone.
 * @param config the content of the file that the service reads; a change of it is a restart
 */
export async function ensureService(ref: SandboxRef, name: string, command: string[], config: string, stopSeconds: number): Promise<void> {
  const service = { name, command, env: SANDBOX_ENVIRONMENT, log: `${inSandbox.logs}/${name}.log`, stopSeconds, revision: createHash("sha256").update(config).digest("hex") };
  await initIn(ref, ["service", "put"], { input: JSON.stringify(service), timeout: (stopSeconds + 10) * 1000 });
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

/** Milliseconds between two looks at whether a service that is waited for still runs; each look is a process in the sandbox. */
const LOOK = 2000;

/**
 * Waits until a service answers.
 * @param ready answers with something once the service does; it gets the service's state
 * @throws Error with the end of the service's log, at once if the service keeps ending
 */
export async function serviceAnswers<T>(ref: SandboxRef, name: string, seconds: number, ready: (state: ServiceState) => Promise<T | undefined> | T | undefined): Promise<T> {
  let state: ServiceState | undefined;
  let before: number | undefined;
  let looked = 0;
  return await waitFor(
    `${name} answers`,
    seconds,
    async () => {
      if (state === undefined || Date.now() - looked > LOOK) {
        state = (await serviceStates(ref))[name] ?? { pid: 0, restarts: 0, lastExit: "" };
        looked = Date.now();
        before ??= state.restarts;
        if (state.restarts - before >= ATTEMPTS) throw new Error(`${name} keeps ending, the last time with ${state.lastExit}\n${serviceLog(ref, name)}`);
      }
      return await ready(state);
    },
    () => serviceLog(ref, name),
  );
}
