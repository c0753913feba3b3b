import { incarnationAfter, type MachineRecord } from "./record.ts";
import type { Drift } from "./written.ts";

/** What is known of a machine before anything is done to it. */
export interface Observed {
  /** What is written down of it; nothing if no node was made on it. */
  record?: MachineRecord;
  /**
   * absent: there is none, or nothing on it. stopped: its process is gone. silent: its process is there and does not
   * answer. running: it answers.
   */
  state: "absent" | "stopped" | "silent" | "running";
  /** The start that is noted here of a machine that has lost everything, because it was set up anew. */
  noted?: number;
  /** The files that are not as they were written. */
  drift: Drift[];
  /** See `repairsOf`. */
  repairs: Record<string, number>;
  /** What a machine that is not made here tells of itself. */
  there?: There;
  /** Its process now, and how often its supervisor has started it again, or its way out, since `up` did. */
  healed?: { pid: number; starts: number; egressStarts: number | null };
  /** Bytes that it uses of the host's memory, and may use at most; null where nothing is counted, or nothing limits it. */
  memory?: { used: number | null; limit: number | null };
  /** Whether the way to its API server is gone, so that nothing can be asked there. */
  cutOff?: boolean;
  /** What of it is not as it should be, in words; none: all that is asked of here is well. */
  problems: string[];
}

/** A machine that is a gVisor sandbox itself, as it is found. */
export interface There {
  /** As `uname -m` tells it. */
  arch: string;
  isGvisor: boolean;
  /** Programs that a node needs and that are not there. */
  missing: string[];
  /** Folders of a container runtime or a node. */
  taken: string[];
  /** MiB that are free for the node. */
  free: number;
  /** The networks that it is on, and the gateways that it goes by; only those of a machine that is elsewhere are asked. */
  networks?: string[];
  /** Whether a node of this name is there that nothing is noted of here. */
  stranger: boolean;
}

/**
 * The start of the machine that the next `up` is for: the one that runs, or the one that it will start. It is an input
 * of everything that lives in the machine's memory, so a preview shows what will be done again.
 * @param revision what it is to be started with
 */
export function incarnationOf({ record, state, noted = 0 }: Observed, revision: string): number {
  return record === undefined ? noted + 1 : incarnationAfter(record, state === "running", revision);
}
