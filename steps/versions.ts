/**
 * The parameters of steps as earlier releases wrote them into the stack's state. What undoes a resource is run with what
 * the state holds, so a cluster of an earlier release is removed with its parameters.
 * @module
 */
import { openMachine } from "../machines/index.ts";
import type { MachineRef } from "../machines/ref.ts";
import type { SshTarget } from "../machines/sshConnection.ts";
import type { ServerRef } from "../servers/server.ts";

/** The version of the parameters that this release writes. */
export const VERSION = 2;

/** What releases up to 0.2 gave to their steps, as far as it is needed to undo them. */
interface First {
  name: string;
  home: string;
  runsc?: string;
  ssh?: SshTarget;
  /** Of what was done on a machine that is a sandbox already. */
  address?: string;
  bridge?: string;
  /** Of a manifest. */
  kubectl?: string;
  distribution?: ServerRef["distribution"];
  manifest?: string;
  /** Of what was copied to another machine. */
  to?: { ssh: SshTarget; name: string; home: string };
}

/**
 * A step and its parameters as this release knows them.
 * @throws Error if the step cannot be run with parameters of that version
 */
export function currentForm(step: string, params: object): { step: string; params: object } {
  const { version = 1 } = params as { version?: number };
  if (version === VERSION) return { step, params };
  if (version > VERSION) throw new Error(`its parameters are of a newer gvisor-k3s (version ${version}); use that one`);
  const undo = firstForms[step];
  if (undo === undefined) throw new Error("its parameters are of an older gvisor-k3s; run `gvisor-k3s up` again");
  return undo(params as First);
}

const refOf = ({ name, home, runsc }: First): MachineRef => {
  return { kind: runsc === undefined ? "inside" : "managed", name, home };
};

const firstForms: Record<string, (params: First) => { step: string; params: object }> = {
  "sandbox-remove": (first) => ({ step: "sandbox-remove", params: { machine: { ...refOf(first), kind: "managed" } } }),
  "inside-remove": (first) => {
    const { address, bridge } = first;
    return {
      step: "sandbox-remove",
      params: { machine: { ...refOf(first), kind: "inside" }, known: { address, bridge } },
    };
  },
  "manifest-remove": (first) => {
    const { kubectl, distribution, manifest } = first;
    const server = { distribution, kubectl };
    return { step: "manifest-remove", params: { machine: refOf(first), server, manifest, pods: false } };
  },
  "tunnel-remove": (first) => ({ step: "tunnel-remove", params: first }),
  "build-remove": ({ to }) => ({ step: "build-remove", params: { machine: to && { kind: "ssh", ...to } } }),
};

/** Ends the SSH tunnel of a cluster that a release up to 0.2 made, and forgets what is noted of it here. */
export async function removeTunnel({ name, home }: Pick<First, "name" | "home">): Promise<void> {
  await openMachine({ kind: "ssh", name, home }).forget!();
}

/** Removes what a release up to 0.2 has copied to another machine, unless a node of this one is there. */
export async function removeBuilt({ machine }: { machine?: MachineRef }): Promise<void> {
  if (machine) await openMachine(machine).stop();
}
