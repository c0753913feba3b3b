import { closeSync, openSync, readFileSync } from "node:fs";
import type { Readable } from "node:stream";
import { execa, ExecaError, type Options } from "execa";

/**
 * A program that ended badly: what was run, how it ended and what it said. The command line can be pasted into a shell.
 */
export class CommandError extends Error {
  readonly command: string;
  readonly output: string;

  constructor(error: ExecaError, written = "") {
    const output = [error.stdout, error.stderr, written]
      .filter((text) => typeof text === "string" && text !== "")
      .join("\n");
    super(
      [
        `${error.originalMessage ? error.originalMessage : ending(error)}: ${error.escapedCommand}`,
        indented(lastLines(output)),
      ]
        .filter(Boolean)
        .join("\n"),
      { cause: error },
    );
    this.name = "CommandError";
    this.command = error.escapedCommand;
    this.output = output;
  }
}

export interface RunOptions {
  cwd?: string;
  env?: Record<string, string>;
  /** What the program reads on standard input; nothing by default. */
  input?: string | Uint8Array | Readable;
  /** A file that the program reads on standard input. */
  inputFile?: string;
  /**
   * A file that takes what the program prints, so that it may outlive this one; the file's end is part of the error.
   */
  outputFile?: string;
  /** Milliseconds until the program is ended; no limit by default. */
  timeout?: number;
}

/**
 * Runs a program without a shell and returns what it printed.
 * @throws CommandError if it cannot be started, ends with another code than 0, or takes too long
 */
export async function run(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<{ stdout: string; stderr: string }> {
  const { outputFile, ...rest } = options;
  const sink = outputFile === undefined ? undefined : openSync(outputFile, "a", 0o600);
  // execa takes any descriptor, and its types only the first few
  const output = sink === undefined ? {} : { stdout: sink as 1, stderr: sink as 1 };
  const settings: Options = {
    ...rest,
    ...(options.input === undefined && options.inputFile === undefined ? { stdin: "ignore" } : {}),
    ...output,
  };
  try {
    const { stdout, stderr } = await execa(program, args, settings);
    return { stdout: String(stdout ?? ""), stderr: String(stderr ?? "") };
  } catch (error) {
    if (!(error instanceof ExecaError)) throw error;
    throw new CommandError(error, outputFile === undefined ? "" : readFileSync(outputFile, "utf8"));
  } finally {
    if (sink !== undefined) closeSync(sink);
  }
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

function ending(error: ExecaError): string {
  if (error.timedOut) return "took too long";
  if (error.signal) return `ended by ${error.signal}`;
  return `exit code ${error.exitCode}`;
}

/** The end of a text, which is where programs say what went wrong. */
export function lastLines(text: string, count = 20): string {
  return text.trimEnd().split("\n").slice(-count).join("\n");
}

function indented(text: string): string {
  return text === "" ? "" : text.replaceAll(/^/gm, "    ");
}
