/**
 * Runs commands one after another and prints how each ended, as JSON by the commands' names: what a test has done
 * within a sandbox, where no second program can be started from outside.
 *
 *     node inSequence.ts '[["name", "program", "argument", …], …]'
 * @module
 */
import { execa } from "execa";

const ended: Record<string, { exitCode: number | undefined; all: string }> = {};
for (const [name, program, ...args] of JSON.parse(process.argv[2]!) as [string, string, ...string[]][]) {
  const { exitCode, all } = await execa(program, args, { all: true, reject: false, stdin: "ignore" });
  ended[name] = { exitCode, all };
}
console.log(JSON.stringify(ended));
