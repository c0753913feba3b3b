/**
 * A machine in memory, for tests of steps and of faults: it has files, services and programs, and can end whoever works
 * on it between any two of its operations, as a kill would. Nothing of this process's own is touched.
 * @module
 */
import { createHash } from "node:crypto";
import type { Output } from "../system/run.ts";
import { checkPlace, type ExecOptions, type Lock, type Machine, type Reached, type Start } from "./machine.ts";
import type { Observed } from "./observe.ts";
import type { MachineRecord } from "./record.ts";
import type { MachineFile, MachineRef } from "./ref.ts";
import type { ServiceState } from "./services.ts";
import type { Hashes } from "./written.ts";

/** Thrown in the place of an operation that the one who works on the machine does not live to see. */
export class Killed extends Error {
  constructor(operation: number) {
    super(`killed at operation ${operation}`);
    this.name = "Killed";
  }
}

/** A service of a fake machine, as sandbox-init would run it. */
export interface FakeService {
  command: string[];
  state: ServiceState;
  /** What `service await` tells of it. */
  ready: boolean;
  revision: string;
}

/** What a test decides on. */
export interface FakeBehaviour {
  /**
   * Called when a service is started, or started with another description.
   * @returns whether it becomes ready
   */
  starts?: (service: { name: string; command: string[] }, machine: FakeMachine) => boolean;
  /** What a program prints, by its path; undefined leaves it to the machine. */
  runs?: (args: readonly string[], input: string) => string | undefined;
}

/** See the module. */
export class FakeMachine implements Machine {
  readonly ref: MachineRef;
  readonly title = "the fake machine";
  /** The files by their paths; folders are there as far as files are in them. */
  readonly files = new Map<string, string>();
  readonly services = new Map<string, FakeService>();
  readonly behaviour: FakeBehaviour;
  /** Every operation, in words. */
  readonly operations: string[] = [];
  /** What was brought to it. */
  readonly uploaded: string[] = [];
  /** What {@link observe} tells. */
  observed: Observed = { state: "absent", drift: [], repairs: {}, problems: [] };
  #killBefore = Number.POSITIVE_INFINITY;
  #killAfter = Number.POSITIVE_INFINITY;
  #pids = 100;

  constructor(ref: MachineRef, behaviour: FakeBehaviour = {}) {
    this.ref = ref;
    this.behaviour = behaviour;
  }

  /**
   * Ends whoever works on the machine at an operation, counted from now: 0 is the next one.
   * @param done whether the operation itself is done, and only its outcome not seen
   */
  killAt(operation: number, done: boolean): void {
    const at = this.operations.length + operation;
    this.#killBefore = done ? Number.POSITIVE_INFINITY : at;
    this.#killAfter = done ? at : Number.POSITIVE_INFINITY;
  }

  /** Lets everybody live again. */
  spare(): void {
    this.#killBefore = this.#killAfter = Number.POSITIVE_INFINITY;
  }

  async #operate<T>(what: string, act: () => T): Promise<T> {
    const number = this.operations.length;
    if (number >= this.#killBefore) throw new Killed(number);
    this.operations.push(what);
    const result = act();
    if (number >= this.#killAfter) throw new Killed(number);
    return result;
  }

  async exec(args: readonly string[], { input = "" }: ExecOptions = {}): Promise<Output> {
    return await this.#operate(args.join(" "), () => {
      const said = this.behaviour.runs?.(args, String(input)) ?? this.#run(args);
      return { stdout: said, stderr: "" };
    });
  }

  #run([program, ...args]: readonly string[]): string {
    switch (program) {
      case "/bin/sh":
        return this.#entries(args.at(-1)!).join("\n"); // the one script of steps/data.ts
      case "/bin/rm":
        this.#removeTree(args.at(-1)!);
        return "";
      case "/bin/cp":
        this.#copyTree(args[1]!, args[2]!);
        return "";
      case "/bin/mv":
        this.#moveTree(args[1]!, args[2]!);
        return "";
      case "/bin/sync":
        return "";
      default:
        throw new Error(`the fake machine has no ${program}`);
    }
  }

  #entries(folder: string): string[] {
    const names = [...this.files.keys()]
      .filter((path) => path.startsWith(`${folder}/`))
      .map((path) => path.slice(folder.length + 1).split("/")[0]!);
    return [...new Set(names)];
  }

  #below(folder: string): [path: string, content: string][] {
    return [...this.files].filter(([path]) => path === folder || path.startsWith(`${folder}/`));
  }

  #removeTree(folder: string): void {
    for (const [path] of this.#below(folder)) this.files.delete(path);
  }

  #copyTree(from: string, to: string): void {
    const all = this.#below(from);
    if (all.length === 0) throw new Error(`cp: can't stat '${from}': No such file or directory`);
    for (const [path, content] of all) this.files.set(to + path.slice(from.length), content);
  }

  #moveTree(from: string, to: string): void {
    if (this.#below(to).length > 0) throw new Error(`mv: can't rename '${from}': Directory not empty`);
    this.#copyTree(from, to);
    this.#removeTree(from);
  }

  async init(args: readonly string[], { input = "" }: ExecOptions = {}): Promise<Output> {
    return await this.#operate(`sandbox-init ${args.join(" ")}`, () => {
      return { stdout: this.#init(args, String(input)), stderr: "" };
    });
  }

  #init([verb, what, name = ""]: readonly string[], input: string): string {
    if (verb === "facade") return "";
    if (verb === "probe") return this.behaviour.runs?.(["probe"], input) ?? "[]";
    if (verb !== "service") throw new Error(`the fake sandbox-init has no ${verb}`);
    if (what === "put") this.#put(JSON.parse(input) as { name: string; command: string[]; revision: string });
    if (what === "stop") this.services.delete(name);
    if (what === "await") {
      const { ready, state } = this.services.get(name) ?? {
        ready: false,
        state: { pid: 0, restarts: 0, lastExit: "" },
      };
      return JSON.stringify(
        ready ? { reached: true, state } : { reached: false, why: "it keeps ending", state, log: "" },
      );
    }
    return JSON.stringify(Object.fromEntries([...this.services].map(([service, { state }]) => [service, state])));
  }

  #put(service: { name: string; command: string[]; revision: string }): void {
    const { name, command, revision } = service;
    const current = this.services.get(name);
    if (current?.revision === revision && current.command.join() === command.join()) return;
    const state = { pid: this.#pids++, restarts: 0, lastExit: "" };
    const started: FakeService = { command, revision, state, ready: false };
    this.services.set(name, started);
    started.ready = this.behaviour.starts?.({ name, command }, this) ?? true;
  }

  command(args: readonly string[]): readonly string[] {
    return args;
  }

  async terminalCommand(args: readonly string[]): Promise<readonly string[]> {
    return args;
  }

  async write(files: readonly MachineFile[]): Promise<void> {
    await this.#operate(`write ${files.map(({ path }) => path).join(" ")}`, () => {
      for (const { path, content } of files) {
        checkPlace(path);
        this.files.set(path, content);
      }
    });
  }

  async read(path: string): Promise<string | undefined> {
    checkPlace(path);
    return await this.#operate(`read ${path}`, () => this.files.get(path));
  }

  /** What it has: nothing changes while nobody does anything. */
  async changed(path: string): Promise<string | undefined> {
    return await this.read(path);
  }

  async list(path: string): Promise<string[]> {
    return await this.#operate(`list ${path}`, () => this.#entries(path));
  }

  async remove(paths: readonly string[]): Promise<void> {
    await this.#operate(`remove ${paths.join(" ")}`, () => {
      for (const path of paths) this.#removeTree(path);
    });
  }

  async upload(folders: readonly string[]): Promise<void> {
    this.uploaded.push(...folders);
  }

  async lock(): Promise<Lock> {
    return { release: () => undefined };
  }

  async observe(): Promise<Observed> {
    return this.observed;
  }

  async start({ owner, incarnation, repairs }: Start): Promise<MachineRecord> {
    return await this.#operate("start", () => {
      const { kind } = this.ref;
      const programs = { init: "/sandbox-init" };
      const process = { pid: 1, startTime: "1" };
      const record: MachineRecord = {
        version: 2,
        kind,
        owner,
        incarnation,
        revision: "",
        repairs,
        programs,
        ...process,
      };
      this.observed = { ...this.observed, state: "running", record };
      return record;
    });
  }

  async stop(): Promise<void> {
    await this.#operate("stop", () => {
      this.files.clear();
      this.services.clear();
      this.observed = { state: "absent", drift: [], repairs: {}, problems: [] };
    });
  }

  async reach({ address, port }: { address: string; port: number }): Promise<Reached> {
    return { address, port };
  }

  /** The hashes of its files, as sandbox-init tells them. */
  hashes(paths: readonly string[]): Hashes {
    return Object.fromEntries(
      paths.map((path) => {
        const content = this.files.get(path);
        const sha256 = content === undefined ? undefined : createHash("sha256").update(content).digest("hex");
        return [path, sha256 === undefined ? { absent: true } : { sha256 }];
      }),
    );
  }
}
