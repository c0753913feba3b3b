/** Writes the README's table of options from the schema: `node docs/options.ts` prints it, with `--write` it goes into the README. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { stackSchema, unwrap } from "../config/schema.ts";

const readme = join(import.meta.dirname, "../README.md");
const [begin, end] = ["<!-- options: written by `make options` -->", "<!-- end of options -->"];

/** The table as Markdown: a row for each option, with its default. */
export function optionsTable(): string {
  return ["| Option | Default | What it does |", "|---|---|---|", ...rows(stackSchema, "")].join("\n");
}

/** The README with the table in its place. */
export function withOptions(text: string): string {
  const [from, to] = [text.indexOf(begin), text.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`README.md has no place for the options: ${begin} … ${end}`);
  return `${text.slice(0, from)}${begin}\n${optionsTable()}\n${text.slice(to)}`;
}

function rows(object: z.ZodObject, prefix: string): string[] {
  return Object.entries(object.shape as Record<string, z.ZodType>).flatMap(([key, schema]) => {
    const inner = unwrap(schema);
    if (inner instanceof z.ZodObject) return rows(inner, `${prefix}${key}.`);
    return [`| \`${prefix}${key}\` | ${defaultOf(schema)} | ${(schema.description ?? inner.description ?? "").replaceAll("|", "\\|")} |`];
  });
}

function defaultOf(schema: z.ZodType): string {
  const parsed = schema.safeParse(undefined);
  return parsed.success && parsed.data !== undefined ? `\`${JSON.stringify(parsed.data)}\`` : "";
}

if (import.meta.main) {
  if (process.argv[2] === "--write") writeFileSync(readme, withOptions(readFileSync(readme, "utf8")));
  else console.log(optionsTable());
}
