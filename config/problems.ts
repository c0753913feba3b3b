/** One thing that is wrong with the user's input. */
export interface Problem {
  /** The option by its full name, such as "sandbox.subnet". */
  option: string;
  /** What was given; left out where showing it would tell nothing. */
  value?: unknown;
  /** What is wrong, what is allowed and what to do, as one or more sentences. */
  message: string;
}

/** Thrown once for all the problems of an input; its message lists every one. */
export class InputError extends Error {
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[]) {
    const lines = problems.map((problem) => `  - ${problem.option}${shown(problem.value)}: ${problem.message}`);
    super(
      [
        `${problems.length} ${problems.length === 1 ? "problem" : "problems"} with the configuration; ` +
          "nothing was changed:",
        ...lines,
      ].join("\n"),
    );
    this.name = "InputError";
    this.problems = problems;
  }
}

function shown(value: unknown): string {
  return value === undefined ? "" : ` = ${JSON.stringify(value)}`;
}

/** Throws an {@link InputError} if there is any problem. */
export function refuse(problems: readonly Problem[]): void {
  if (problems.length > 0) throw new InputError(problems);
}
