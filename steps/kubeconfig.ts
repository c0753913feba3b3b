import { inSandbox } from "../config/paths.ts";
import type { Machine } from "../machines/machine.ts";
import { hostPaths } from "../machines/paths.ts";
import { noteWritten } from "../machines/written.ts";
import { type Credentials, credentialsIn, decoded, renderKubeconfig } from "../servers/kubeconfig.ts";
import { keepWhole } from "../system/files.ts";
import type { OnMachine, Step } from "./step.ts";

export interface KubeconfigParams extends OnMachine {
  /** The API server's address and port on the machine. */
  address: string;
  port: number;
}

/** Writes the admin's kubeconfig for this machine, and prints it. */
export const writeKubeconfig: Step<KubeconfigParams, string> = {
  name: () => "kubeconfig",
  async run({ address, port }, { machine, repairs }) {
    const own = await machine.read(inSandbox.kubeconfig);
    if (own === undefined) throw new Error(`there is no ${inSandbox.kubeconfig} on ${machine.title}`);
    const text = await reachableKubeconfig(machine, credentialsIn(own), address, port);
    await noteWritten(machine.ref, "kubeconfig", [], repairs);
    return text;
  },
};

/** The kubeconfig with which an API server is reached from here, whose way is opened first; it is written beside. */
export async function reachableKubeconfig(
  machine: Machine,
  credentials: Credentials,
  address: string,
  port: number,
): Promise<string> {
  const { name, home } = machine.ref;
  const reached = await machine.reach({ address, port, ca: decoded(credentials.ca) });
  const text = renderKubeconfig(name, credentials, reached);
  await keepWhole(hostPaths(name, home).kubeconfig, text);
  return text;
}
