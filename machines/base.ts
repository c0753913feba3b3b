import { createHash } from "node:crypto";
import { join } from "node:path";
import { provide, wanted } from "../artifacts/artifacts.ts";
import { CommandError, type Output, run } from "../system/run.ts";
import { checkPlace, type ExecOptions } from "./machine.ts";
import type { MachineRecord } from "./record.ts";
import { readRecord } from "./record.ts";
import type { MachineFile, MachineRef } from "./ref.ts";
import { type Hashes, writtenFiles } from "./written.ts";

/** Milliseconds that a program on a machine may take, unless it is given more. */
const PATIENCE = 60_000;

/** Milliseconds that a machine may take to tell how it is. */
export const ANSWER = 15_000;

/** sandbox-init's exit code where there is no such file. */
const ABSENT = 3;

/**
 * What all kinds of machines have in common: sandbox-init does there what is to be done, and each kind only knows how a
 * program is run there.
 */
export abstract class BaseMachine {
  readonly ref: MachineRef;

  constructor(ref: MachineRef) {
    this.ref = ref;
  }

  abstract command(args: readonly string[]): readonly string[];

  async terminalCommand(args: readonly string[]): Promise<readonly string[]> {
    return this.command(args);
  }

  /** sandbox-init by its path on the machine. */
  protected initPath(): string {
    return this.record().programs.init;
  }

  /** What is written down of it; one of which nothing is cannot be asked anything. */
  protected record(): MachineRecord {
    const { name, home } = this.ref;
    const record = readRecord(name, home);
    if (record === undefined) throw new Error(`${name} does not run; run \`gvisor-k3s up\` first`);
    return record;
  }

  async exec(args: readonly string[], options: ExecOptions = {}): Promise<Output> {
    const [program, ...rest] = this.command(args);
    return await run(program!, rest, { timeout: PATIENCE, ...options });
  }

  async init(args: readonly string[], options: ExecOptions = {}): Promise<Output> {
    return await this.exec([this.initPath(), ...args], options);
  }

  async write(files: readonly MachineFile[]): Promise<void> {
    for (const { path } of files) checkPlace(path);
    if (files.length > 0) await this.init(["files", "put"], { input: JSON.stringify(files.map(encoded)) });
  }

  async read(path: string, { tail }: { tail?: number } = {}): Promise<string | undefined> {
    checkPlace(path);
    const limit = tail === undefined ? [] : ["--tail", String(tail)];
    return await orAbsent(this.init(["files", "get", path, ...limit], { timeout: ANSWER }));
  }

  async changed(path: string, known: string | undefined, seconds: number): Promise<string | undefined> {
    checkPlace(path);
    const hash = known === undefined ? [] : [createHash("sha256").update(known).digest("hex")];
    const timeout = seconds * 1000 + ANSWER;
    return await orAbsent(this.init(["files", "changed", path, String(seconds), ...hash], { timeout }));
  }

  async list(path: string): Promise<string[]> {
    checkPlace(path);
    return JSON.parse((await this.init(["files", "list", path], { timeout: ANSWER })).stdout) as string[];
  }

  async remove(paths: readonly string[]): Promise<void> {
    for (const path of paths) checkPlace(path);
    await this.init(["files", "remove"], { input: JSON.stringify(paths) });
  }

  /** The hashes of the files that something is noted of. */
  protected async hashes(): Promise<Hashes> {
    const files = writtenFiles(this.ref);
    const { stdout } = await this.init(["files", "hash"], { input: JSON.stringify(files), timeout: ANSWER });
    return JSON.parse(stdout) as Hashes;
  }
}

/** A file as sandbox-init takes it. */
export function encoded({ path, content, mode }: MachineFile): { path: string; mode: string; content: string } {
  return { path, mode: mode.toString(8), content: Buffer.from(content).toString("base64") };
}

/** What a command printed that ends with a code of its own where there is no such file. */
export async function orAbsent(reading: Promise<Output>): Promise<string | undefined> {
  try {
    return (await reading).stdout;
  } catch (error) {
    if (error instanceof CommandError && error.exitCode === ABSENT) return undefined;
    throw error;
  }
}

/** What does on the host what is to be done beside a sandbox, as it is built today. */
export const hostToday = async (say: (line: string) => void): Promise<string> =>
  join(await provide(wanted({ name: "host" }), say), "gvisor-k3s-host");

/** The folder of the locks of a machine that is on this host: a name is one machine here, whatever its home. */
export const lockFolder = (name: string) => join("/run/lock/gvisor-k3s", name);
