import { dirname } from "node:path";
import type { Wanted } from "../artifacts/artifacts.ts";
import { SANDBOX_PATH } from "../config/ociSpec.ts";
import { inSandbox } from "../config/paths.ts";
import type { Machine } from "../machines/machine.ts";
import { ensureService, serviceLog, serviceStates } from "../machines/services.ts";
import { worked } from "../system/run.ts";
import { waitFor } from "../system/wait.ts";
import { provideTo } from "./runtime.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

export interface ContainerdParams extends OnMachine {
  /** What is to be there: containerd with its shim and ctr, the CNI plugins, and programs of the user's. */
  takes: { artifacts: Wanted[]; own: { source: string; name: string }[] };
  /** containerd by its path on the machine. */
  containerd: string;
  /** Its shim by its path on the machine. */
  shim: string;
  /** ctr by its path on the machine. */
  ctr: string;
  /** sandbox-init by its path on the machine, which has the limits of containers hold; undefined in an earlier release. */
  init?: string;
  /** A part of its config that is secret: passwords for registries. */
  credentials?: string;
  /** What it has in its environment beside what every program has, as NAME=value: proxies. */
  env: string[];
}

/** Seconds for containerd to answer. */
const PATIENCE = 60;

/** How often containerd may end while it is waited for. */
const ATTEMPTS = 3;

/**
 * Writes containerd's config (the content) and has containerd run with it.
 * @throws Error with the end of containerd's log if it does not answer or its CRI plugin did not load
 */
export const ensureContainerd: Step<ContainerdParams> = {
  name: () => "containerd",
  async run({ takes, containerd, shim, ctr, init, credentials = "version = 3\n", env }, context) {
    const { machine, content: config, repairs, say } = context;
    await provideTo(machine, takes, say);
    const files = [
      { path: inSandbox.containerdConfig, content: config, mode: 0o644 },
      { path: inSandbox.containerdCredentials, content: credentials, mode: 0o600 },
    ];
    await writeFiles(context, "containerd", files, ["containerd", "limits"]);
    // First on PATH, so that a shim of another version is never taken.
    const path = `PATH=${[dirname(shim), SANDBOX_PATH].join(":")}`;
    await ensureService(machine, {
      name: "containerd",
      command: [containerd, "--config", inSandbox.containerdConfig],
      env: [path, ...env],
      config: `${config}${credentials}${repairs}`,
      stopSeconds: 10,
    });
    await needCriPlugin(machine, ctr, await answer(machine, ctr));
    if (init === undefined) return;
    const limits = [init, "limits", `${inSandbox.containerdSocket}.ttrpc`];
    await ensureService(machine, { name: "limits", command: limits, config: "", stopSeconds: 5 });
  },
};

/** What containerd tells of its plugins, once it answers. */
async function answer(machine: Machine, ctr: string): Promise<string> {
  const before = (await serviceStates(machine)).containerd?.restarts ?? 0;
  const lastState = () => serviceLog(machine, "containerd");
  return await waitFor(
    "containerd answers",
    PATIENCE,
    async () => {
      // ctr waits by itself for a socket that is about to appear.
      const question = [ctr, "--connect-timeout=2s", "plugins", "list"];
      const plugins = await worked(machine.exec(question, { timeout: 20_000 }));
      if (plugins !== undefined) return plugins;
      const { restarts, lastExit } = (await serviceStates(machine)).containerd ?? { restarts: 0, lastExit: "" };
      if (restarts - before < ATTEMPTS) return undefined;
      throw new Error(`containerd keeps ending, the last time with ${lastExit}\n${await lastState()}`);
    },
    lastState,
  );
}

/** @throws Error with what containerd says of its CRI plugin, if that did not load */
async function needCriPlugin(machine: Machine, ctr: string, plugins: string): Promise<void> {
  const failed = plugins
    .split("\n")
    .map((row) => row.trim().split(/\s+/))
    .filter(([type, id, , status]) => type?.includes(".cri") && id && status === "error");
  if (failed.length === 0) return;
  const { stdout } = await machine.exec([ctr, "plugins", "list", "--detailed", ...failed.map(([, id]) => `id==${id}`)]);
  throw new Error(`containerd's CRI plugin did not load:\n${stdout}`);
}
