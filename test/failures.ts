import { stripVTControlCharacters } from "node:util";
import type { Reporter, TestModule } from "vitest/node";

/** How many characters of a failure's cause are told. */
const WIDTH = 240;

/** Says last, in a line each, what has failed: of a long log, some show nothing but its end. */
export class Failures implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const failed = modules.flatMap((module) => [
      ...module.errors().map((error) => line(module.moduleId, "", error.message)),
      ...[...module.children.allSuites()].flatMap((suite) =>
        suite.errors().map((error) => line(module.moduleId, suite.name, error.message)),
      ),
      ...[...module.children.allTests("failed")].map((test) =>
        line(module.moduleId, test.name, test.result().errors?.[0]?.message ?? ""),
      ),
    ]);
    if (failed.length > 0) console.log(`\n${failed.join("\n")}\n`);
  }
}

function line(path: string, name: string, message: string): string {
  const file = path.split("/").at(-1)!.replace(".test.ts", "");
  const text = stripVTControlCharacters(message).replace(" // Object.is equality", "").replaceAll(/\s+/g, " ").trim();
  return `× ${file}: ${name.slice(0, 40)}: ${text.length > WIDTH ? `…${why(text)}` : text}`;
}

/** The part of a long text that says why: what Pulumi tells of the steps that failed, or the end of it all. */
function why(text: string): string {
  const from = text.indexOf("Diagnostics: ");
  return from < 0 ? text.slice(-WIDTH) : text.slice(from, from + WIDTH);
}
