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

/**
 * Waits until a service answers.
 * @param ready answers with something once the service does
 * @throws Error with the end of the service's log, at once if the service keeps ending
 */
export async function serviceAnswers<T>(ref: SandboxRef, name: string, seconds: number, ready: () => Promise<T | undefined>): Promise<T> {
  let before: number | undefined;
  return await waitFor(
    `${name} answers`,
    seconds,
    async () => {
      const answer = await ready();
      if (answer !== undefined) return answer;
      const { restarts = 0, lastExit = "" } = (await serviceStates(ref))[name] ?? {};
      before ??= restarts;
      if (restarts - before >= ATTEMPTS) throw new Error(`${name} keeps ending, the last time with ${lastExit}\n${serviceLog(ref, name)}`);
      return undefined;
    },
    () => serviceLog(ref, name),
  );
}
