import type { Machine } from "../machines/machine.ts";
import type { MachineRef } from "../machines/ref.ts";

/** What every step that does something on a machine takes. */
export interface OnMachine {
  machine: MachineRef;
}

/** What a step is given beside its parameters. */
export interface Context {
  /** The machine of its parameters. */
  machine: Machine;
  /** The file that it is about; "" if there is none. */
  content: string;
  /** Which start of the machine it is done for. */
  incarnation: number;
  /** How often what it makes was found not as it was made: what reads its files is started again when it changes. */
  repairs: number;
  /** How often that was found of what it rests on, which may have failed meanwhile. */
  below?: number;
  /** Takes a line of what goes on. */
  say: (line: string) => void;
}

/**
 * A step of the stack. It is idempotent: it makes the described state so, and says what it found. Killed anywhere, it is
 * done again by the next run, which waits for what the killed one has left running.
 */
export interface Step<P, R = void> {
  /** What it does, for who waits for it: another one of this name does not run beside it. */
  name: (params: P) => string;
  /** Whether nothing else may be done on the machine meanwhile. */
  alone?: boolean;
  /** What it returns becomes the command's output. */
  run: (params: P, context: Context) => Promise<R>;
}
