import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { files, withTable } from "../../docs/tables.ts";

it.each(files)("the table in %s is what the code says; `make docs` writes it anew", (file) => {
  expect(readFileSync(join(import.meta.dirname, "../..", file), "utf8")).toBe(withTable(file));
});
