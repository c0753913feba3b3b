/**
 * Where a node lives. {@link Machine} is all that steps, components and commands know of it: nobody else knows a path of
 * the host in a sandbox, a runsc command line or an option of SSH. A new kind of machine is one file beside this one,
 * and a line in machines/index.ts.
 *
 * The host never trusts what is on a machine: who is root there may have put a link, a FIFO, a device or a huge file in
 * the place of any file, and any answer may be a lie, endless, or never come. So every answer is bounded in size and
 * time, no path of it is opened by the host, and nothing that it says is run, followed or believed here.
 * @module
 */
import type { Readable } from "node:stream";
import type { Wanted } from "../artifacts/artifacts.ts";
import { isPlace } from "../config/paths.ts";
import type { Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import type { Output } from "../system/run.ts";
import type { Observed } from "./observe.ts";
import type { MachineRecord } from "./record.ts";
import type { MachineFile, MachineRef } from "./ref.ts";

/** How a program is run on a machine. */
export interface ExecOptions {
  /** What it reads on standard input; nothing by default. */
  input?: string | Uint8Array | Readable;
  /** A file of the host that it reads on standard input. */
  inputFile?: string;
  /** Milliseconds until it is ended; default a minute. */
  timeout?: number;
}

/** How a machine is started. */
export interface Start<Spec = unknown> {
  /** What the driver made of the options; see {@link Driver.specOf}. */
  spec: Spec;
  /** Who it is made for: another owner is refused. */
  owner: string;
  /** Which start this is at least; see `incarnationOf`. */
  incarnation: number;
  /** See `MachineRecord`. */
  repairs: number;
}

/** A machine with a node on it, or one that is to get one. */
export interface Machine {
  readonly ref: MachineRef;
  /** What it is called in messages: "the sandbox dev". */
  readonly title: string;

  /**
   * Runs a program there as root.
   * @throws CommandError if it fails, takes too long or prints too much; Error if the machine does not run
   */
  exec(args: readonly string[], options?: ExecOptions): Promise<Output>;
  /** Runs sandbox-init there: what does for the host what is to be done with files and services; see node/init. */
  init(args: readonly string[], options?: ExecOptions): Promise<Output>;
  /** The command line that runs a program there, on the standard input, output and error of who runs it. */
  command(args: readonly string[]): readonly string[];
  /** The same, where these are the user's terminal, which a sandbox is kept from: it gets one in its place. */
  terminalCommand(args: readonly string[]): Promise<readonly string[]>;

  /** Writes files, each whole or not at all; folders above them are made. */
  write(files: readonly MachineFile[]): Promise<void>;
  /**
   * What is in a file, also on a machine that does not run.
   * @param tail takes no more than so many bytes from its end; without it, a file of more than 16 MiB is refused
   * @returns undefined if there is none
   * @throws CommandError if it is no plain file
   */
  read(path: string, options?: { tail?: number }): Promise<string | undefined>;
  /**
   * What is in a file as soon as it is something else than what is known of it, or, when the time is up, as it is. It is
   * waited for on the machine: to ask again and again would take a process each time.
   * @param known undefined: there was no such file
   * @param seconds 0 to 60
   * @returns undefined if there is none
   */
  changed(path: string, known: string | undefined, seconds: number): Promise<string | undefined>;
  /** The names of the plain files in a folder; none if there is no such folder. */
  list(path: string): Promise<string[]>;
  /** Removes files, and folders with all that is in them. What is not there is no error. */
  remove(paths: readonly string[]): Promise<void>;
  /** Brings folders of the artifact cache to where the machine finds them. */
  upload(folders: readonly string[], say: (line: string) => void): Promise<void>;

  /**
   * Keeps others from changing the machine until this process ends, with all that it has started by `run`, or until
   * {@link Lock.release} is called. Who comes second waits, and says for whom.
   */
  lock(options: LockOptions): Promise<Lock>;

  /** What is known of it, asked anew; a machine that does not answer is told so, within seconds. */
  observe(): Promise<Observed>;
  /**
   * Makes it run as described: starts one that is new or dead, restarts one that was described otherwise, leaves alone
   * one that is as it should be. A first start that fails leaves nothing behind.
   * @throws Error that names what is in the way
   */
  start(start: Start): Promise<MachineRecord>;
  /**
   * Ends it and removes everything of it, there and here; what is dead, half-made or gone is no error.
   * @param known what a machine of a release up to 0.2 was started with, which then wrote no such thing down
   */
  stop(known?: { address: string; bridge: string }): Promise<void>;
  /** Removes what is noted here of a machine that is gone for good; only of those that are not made here. */
  forget?(): Promise<void>;
  /** Saves it and brings it back; only of those that are made here. */
  readonly keeper?: Keeper;

  /**
   * Makes an API server of the machine reachable from here.
   * @param server its address and port there, and its CA as PEM
   * @returns the address and port here, and the name that its certificate is for, if that is another one
   */
  reach(server: { address: string; port: number; ca: string }): Promise<Reached>;
}

/** What a machine is kept as: with its memory, so that its programs go on, or its disk alone, on which they start. */
export type KeptAs = "memory" | "files";

/** A file of what is kept. */
export interface KeptFile {
  size: number;
  sha256: string;
}

/** What was kept of a machine. */
export interface Kept {
  /** Milliseconds for which nothing ran on it. */
  frozen: number;
  /** By their paths in the folder. */
  files: Record<string, KeptFile>;
}

/** Saves a machine and brings it back. Each is done by who has the machine's lock, alone. */
export interface Keeper {
  /**
   * Has a machine that was never started begin with what another one had on its disk.
   * @param folder what was kept of that
   * @param from what it is called
   */
  plant(folder: string, kept: Kept, from: string): Promise<void>;
  /**
   * Ends what a killed command has left half-done: what it has begun to bring back is there whole or not at all. What
   * made way for it is put back, unless it answers.
   */
  mend(): Promise<void>;
  /**
   * Keeps what it has at one instant in a folder that is empty. It runs on, also where that fails or is killed.
   * @throws Error that says why nothing was kept
   */
  save(folder: string, as: KeptAs): Promise<Kept>;
  /**
   * Has it go on from what was kept; what it has now makes way, and is put back if that fails.
   * @param verified is waited for before anything is changed
   * @param answers waits until what is on it answers
   */
  restore(folder: string, kept: Kept, as: KeptAs, verified: Promise<void>, answers: () => Promise<void>): Promise<void>;
  /** Ends it, and keeps what it has in memory in a folder, or has its programs end in good order. */
  pause(folder: string, as: KeptAs): Promise<Kept>;
  /** Has it go on: with the memory that is in a folder, or by starting its programs again. */
  resume(folder: string, as: KeptAs): Promise<void>;
}

/** Where an API server is reached from here. */
export interface Reached {
  address: string;
  port: number;
  tlsServerName?: string;
}

/** What a machine is locked for; see {@link Machine.lock}. */
export interface LockOptions {
  /** What is done: nobody else may do the same. */
  what: string;
  /** Whether nobody else may do anything then. */
  alone: boolean;
  /** Whether the machine is removed then: what a killed step has left running in it is not waited for. */
  last?: boolean;
  /** sandbox-init on this machine, which makes the system call. */
  init: string;
  /** Takes a line when somebody else is waited for. */
  say: (line: string) => void;
}

/** See {@link Machine.lock}. */
export interface Lock {
  /** @param gone the machine is no more, so that nothing of the lock is to stay either */
  release(gone?: boolean): void | Promise<void>;
}

/** A kind of machine: what a file of this folder has to offer. */
export interface Driver<Spec = unknown> {
  /**
   * Whether what is on its disk outlives each of its starts. Of a machine that is made elsewhere nobody can know: it may
   * have been set up anew.
   */
  readonly durable: boolean;
  /** What finds the machine that the options describe. */
  refOf(config: StackConfig, home: string): MachineRef;
  /** What it is started with; a change of it is a change of the step that starts it. */
  specOf(config: StackConfig): Spec;
  /** A hash of all that cannot change while it runs; another one is a restart. */
  revisionOf(spec: Spec, ref: MachineRef): string;
  /** What makes it the same machine: a change of any replaces it, and what is on it is lost. */
  identityOf(config: StackConfig, ref: MachineRef): string[];
  /**
   * What stands in the way of it, as far as this machine tells.
   * @param owner who asks, as "PROJECT/STACK"; what is this one's makes way
   */
  problemsOf(config: StackConfig, ref: MachineRef, owner?: string): Problem[];
  /** The same, as far as the machine itself tells, of one that is there before a node is made on it. */
  problemsThere?(config: StackConfig, ref: MachineRef, observed: Observed): Problem[];
  /** What is to be built for it. */
  takesOf(spec: Spec): readonly Wanted[];
  /** What its gVisor's abilities depend on, as far as it is chosen here: a change of any asks for them anew. */
  gvisorOf(spec: Spec): string[];
  /**
   * What a machine is started with that is there only to be asked what it can do.
   * @throws Error if something for it is not built yet
   */
  trialOf?(spec: Spec): Spec;
  open(ref: MachineRef): Machine;
}

/** @throws Error if a path is none that the host may ask for; see `places` */
export function checkPlace(path: string): void {
  if (!isPlace(path)) throw new Error(`${path} is none of the places that are read or written from outside`);
}
