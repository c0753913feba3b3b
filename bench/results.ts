/** What bench/results.json holds. Times are in seconds, memory is in bytes. */
export type Side = "gvisor" | "native";

/**
 * The memory of everything in the sandbox's cgroup on the host: for gVisor that is runsc's processes, with the node's
 * memory in them.
 */
export interface Memory {
  /** The cgroup's usage. */
  usage: number;
  /** File cache that the kernel may drop; files in memory (tmpfs, gVisor's memory of its processes) are none. */
  fileCache: number;
  /** What counts: usage without that. */
  used: number;
  /** Of it, anonymous memory: natively the processes', in gVisor that of runsc itself. */
  anonymous: number;
  /** Of it, files in memory: in gVisor the memory of its processes. */
  shared: number;
}

/** One node, from nothing to its removal. */
export interface Run {
  round: number;
  side: Side;
  /** The whole command. */
  up: number;
  /** Since the start of the command. */
  stages: Record<string, number>;
  /** What each of the stack's resources took. */
  resources: Record<string, number>;
  /** CPU time of everything in the cgroup until the pod ran. */
  cpuSeconds: number;
  /** CPUs in use while nothing happens. */
  idleCpu: number;
  /** With the test pod alone. */
  memory: Memory;
  unchangedUp: number[];
  preview: number[];
  /** From the creation of each pod to its being Ready, in order. */
  pods?: number[];
  memoryWithPods?: Memory;
}

/** A control plane without a kubelet, from nothing; times are since the start of `up`. */
export interface ControlPlaneRun {
  /** The gVisor, by its date. */
  generation: string;
  /** The API server answers /readyz. */
  apiReady: number;
  /** And the default service account is there, which is what `up` waits for. */
  ready: number;
  memory: Memory;
}

/** A server that was started with this GOGC. */
export interface GogcRun {
  gogc: number;
  /** Until the node was Ready again. */
  ready: number;
  /** From the server's start to the end of the wait after it. */
  cpuSeconds: number;
  memory: Memory;
}

/** One cluster that was kept, taken back, and forked. */
export interface SnapshotRun {
  mode: "control-plane" | "node";
  /** The whole of each command: it ends when what is asked for is there, a restore when the API answers. */
  save: number;
  restore: number;
  fork: number;
  /** For how long nothing ran in it. */
  frozen: number;
  /** Of what was kept, in bytes. */
  size: number;
  /** From the restore's begin until the pod ran again. */
  pods?: number;
}

export interface Results {
  date: string;
  /** The bench itself. */
  seconds: number;
  machine: {
    system: string;
    kernel: string;
    cpu: string;
    cores: number;
    memoryGiB: number /** When the bench began: other work on the machine. */;
    load: number;
  };
  versions: Record<string, string>;
  /** Pods started, and seconds waited before memory is read. */
  method: { pods: number; settle: number };
  runs: Run[];
  controlPlanes: ControlPlaneRun[];
  snapshots: SnapshotRun[];
  gogc: GogcRun[];
}
