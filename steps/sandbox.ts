import type { MachineRecord } from "../machines/record.ts";
import type { OnMachine, Step } from "./step.ts";

/** What starts the machine; see `Start`. */
export interface SandboxParams extends OnMachine {
  owner: string;
  spec: unknown;
}

/** Makes the machine run as described. */
export const startSandbox: Step<SandboxParams, MachineRecord> = {
  name: () => "start",
  alone: true,
  run: ({ spec, owner }, { machine, incarnation, repairs }) => machine.start({ spec, owner, incarnation, repairs }),
};

/** What ends the machine, and, of one of a release up to 0.2, what it was started with. */
export interface RemoveParams extends OnMachine {
  known?: { address: string; bridge: string };
}

/** Ends the machine and removes everything of it; one that is dead, half-made or gone is no error. */
export const removeSandbox: Step<RemoveParams> = {
  name: () => "remove",
  alone: true,
  run: ({ known }, { machine }) => machine.stop(known),
};
