/**
 * Running programs: one runner, whose error keeps the command, its output and how it ended.
 * @module
 */
import { closeSync, openSync, readFileSync } from "node:fs";
import type { Socket } from "node:net";
import type { Readable } from "node:stream";
import { setTimeout as delay, setImmediate as immediate } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";
import { ExecaError, execa, type Options } from "execa";

/** How a program ended badly, as execa tells it. Its own type is for ES modules only, and this one is in the library's. */
interface Failure {
  escapedCommand: string;
  exitCode?: number | undefined;
  signal?: string | undefined;
  stdout?: unknown;
  stderr?: unknown;
  originalMessage?: string | undefined;
  timedOut: boolean;
  isMaxBuffer: boolean;
}

/** A program that ended badly: what was run, how it ended and what it said. The command line can be pasted into a shell. */
export class CommandError extends Error {
  readonly command: string;
  readonly output: string;
  /** How it ended; undefined if it was not started, or was ended by a signal. */
  readonly exitCode: number | undefined;

  constructor(error: Failure, written = "") {
    const output = [error.stdout, error.stderr, written]
      .filter((text) => typeof text === "string" && text !== "")
      .join("\n");
    const first = `${ending(error)}: ${error.escapedCommand}`;
    super([first, indented(lastLines(output))].filter(Boolean).join("\n"), { cause: error });
    this.name = "CommandError";
    this.command = error.escapedCommand;
    this.output = output;
    this.exitCode = error.exitCode;
  }
}

/** How a program is run. */
export interface RunOptions {
  cwd?: string;
  env?: Record<string, string>;
  /** What the program reads on standard input; nothing by default. */
  input?: string | Uint8Array | Readable;
  /** A file that the program reads on standard input. */
  inputFile?: string;
  /** A file that takes what the program prints, so that it may outlive this one; the file's end is part of the error. */
  outputFile?: string;
  /** Milliseconds until the program is ended; no limit by default. */
  timeout?: number;
}

/** What a program printed. */
export interface Output {
  stdout: string;
  stderr: string;
}

/**
 * Bytes that a program may print, of each kind. What runs in a sandbox may print for ever; it is ended then, which is
 * an error.
 */
const MOST = 64 * 2 ** 20;

/** Files that every program inherits while it runs: locks, which are then held until the last of them has ended. */
export const inherited = new Set<number>();

/**
 * Runs a program without a shell and returns what it printed.
 * @throws CommandError if it cannot be started, ends with another code than 0, takes too long, or prints too much
 */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Output> {
  const { outputFile, ...rest } = options;
  const sink = outputFile === undefined ? undefined : openSync(outputFile, "a", 0o600);
  const input = options.input === undefined && options.inputFile === undefined ? "ignore" : "pipe";
  const output = sink ?? "pipe";
  const settings: Options = {
    ...rest,
    stdio: [input, output as "pipe", output as "pipe", ...([...inherited] as 3[])], // its types know the first few only
    maxBuffer: MOST,
  };
  try {
    const running = execa(program, args, settings);
    const { stdout: out, stderr: err } = running;
    running.nodeChildProcess.once("exit", () => {
      for (const pipe of [out, err]) void letGo(pipe);
    });
    const { stdout, stderr } = await running;
    return { stdout: String(stdout ?? ""), stderr: String(stderr ?? "") };
  } catch (error) {
    if (!(error instanceof ExecaError)) throw error;
    throw new CommandError(error, outputFile === undefined ? "" : readFileSync(outputFile, "utf8"));
  } finally {
    if (sink !== undefined) closeSync(sink);
  }
}

/**
 * Reads what a program that has ended has left in a pipe, and closes it: what it has left running, in a sandbox maybe, can
 * hold the other end for ever.
 */
export async function letGo(readable: Readable | null): Promise<void> {
  if (readable === null) return;
  const pipe = readable as Socket;
  let read = -1;
  for (let second = 0; second < 10 && !pipe.destroyed && pipe.bytesRead !== read; second++) {
    read = pipe.bytesRead;
    await delay(1000, undefined, { ref: false });
    await immediate(); // a process that was busy that long reads first
    await immediate();
  }
  pipe.destroy();
}

/** Like {@link run}, but the program's end is an answer: undefined if it failed. */
export function runsWell(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string | undefined> {
  return worked(run(program, args, options));
}

/** What a program printed; undefined if it failed. */
export async function worked(running: Promise<{ stdout: string }>): Promise<string | undefined> {
  return await running.then(
    ({ stdout }) => stdout,
    (error: unknown) => {
      if (error instanceof CommandError) return undefined;
      throw error;
    },
  );
}

function ending(error: Failure): string {
  if (error.originalMessage) return error.originalMessage;
  if (error.timedOut) return "took too long";
  if (error.isMaxBuffer) return `printed more than ${MOST / 2 ** 20} MiB`;
  if (error.signal) return `ended by ${error.signal}`;
  return `exit code ${error.exitCode}`;
}

/** A word as a shell reads it back. */
export function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** The most characters of a text that anybody is shown; what a sandbox prints may be one line without end. */
const SHOWN = 64 * 2 ** 10;

/** The end of a text, which is where programs say what went wrong, as a terminal may show it. */
export function lastLines(text: string, count = 20): string {
  return printable(text.slice(-SHOWN)).trimEnd().split("\n").slice(-count).join("\n");
}

/** A text that somebody in a sandbox may have written, as one line of what is told. */
export function oneLine(text: string): string {
  return printable(text.slice(0, SHOWN)).replaceAll(/\s*\n\s*/g, " ");
}

/** A text without control characters: what a sandbox prints must not steer the terminal that shows it. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is looked for
  return stripVTControlCharacters(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "");
}

function indented(text: string): string {
  return text === "" ? "" : text.replaceAll(/^/gm, "    ");
}
