import { dirname } from "node:path";
import type { Wanted } from "../artifacts/artifacts.ts";
import { SANDBOX_PATH } from "../config/ociSpec.ts";
import { inSandbox } from "../config/paths.ts";
import { GOGC } from "../config/systemPod.ts";
import type { Machine } from "../machines/machine.ts";
import { ensureService, serviceGives, serviceLog } from "../machines/services.ts";
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
      env: [path, `GOGC=${GOGC}`, ...env],
      config: `${config}${credentials}${repairs}`,
      stopSeconds: 10,
    });
    // It listens once its plugins are loaded, or are not.
    await serviceGives(machine, "containerd", { socket: inSandbox.containerdSocket }, PATIENCE);
    const limits = init && [init, "limits", `${inSandbox.containerdSocket}.ttrpc`];
    const both = await Promise.allSettled([
      needCriPlugin(machine, ctr),
      limits && ensureService(machine, { name: "limits", command: limits, config: "", stopSeconds: 5 }),
    ]);
    for (const one of both) if (one.status === "rejected") throw one.reason;
  },
};

/** @throws Error with what containerd says of its CRI plugin, if that did not load */
async function needCriPlugin(machine: Machine, ctr: string): Promise<void> {
  const question = machine.exec([ctr, "--connect-timeout=20s", "plugins", "list"], { timeout: PATIENCE * 1000 });
  const { stdout: plugins } = await question.catch(async (error: Error) => {
    throw new Error(`${error.message}\n${await serviceLog(machine, "containerd")}`, { cause: error });
  });
  const failed = plugins
    .split("\n")
    .map((row) => row.trim().split(/\s+/))
    .filter(([type, id, , status]) => type?.includes(".cri") && id && status === "error");
  if (failed.length === 0) return;
  const { stdout } = await machine.exec([ctr, "plugins", "list", "--detailed", ...failed.map(([, id]) => `id==${id}`)]);
  throw new Error(`containerd's CRI plugin did not load:\n${stdout}`);
}
