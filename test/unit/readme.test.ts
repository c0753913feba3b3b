import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { withOptions } from "../../docs/options.ts";

it("the README's table of options is what the schema says; `make options` writes it anew", () => {
  const readme = readFileSync(join(import.meta.dirname, "../../README.md"), "utf8");
  expect(withOptions(readme)).toBe(readme);
});
