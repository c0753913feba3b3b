/** Writes the tables of the docs that follow from the code: `node docs/tables.ts`, or `make docs`. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { besidePeers, summary } from "../bench/table.ts";
import { describeRemedy, probedQuirks, type QuirkId, quirk, quirks } from "../config/quirks.ts";
import { stackSchema, unwrap } from "../config/schema.ts";
import { keptRuns, tableOf } from "../conformance/results.ts";
import { markdown, putTable } from "./markdown.ts";

const root = join(import.meta.dirname, "..");

/** The tables by the file that they are in; each stands between two comments with its name. */
const tables: Record<string, { name: string; table: () => string }> = {
  "README.md": { name: "bench", table: summary },
  "conformance/README.md": { name: "results", table: () => tableOf(keptRuns()) },
  "docs/peers.md": { name: "peers", table: besidePeers },
  "docs/options.md": { name: "options", table: optionsTable },
  "docs/quirks.md": { name: "quirks", table: quirksTable },
};

/** The files with tables in them. */
export const files = Object.keys(tables);

/** A file of {@link files} with its table as the code has it now. */
export function withTable(file: string): string {
  const { name, table } = tables[file]!;
  return putTable(readFileSync(join(root, file), "utf8"), name, table());
}

function optionsTable(): string {
  const rows = optionDocs().map(({ option, fallback, doc }) => [`\`${option}\``, fallback, doc]);
  return markdown(["Option", "Default", "What it does"], rows);
}

/** An option by its full name, its default as it is shown, and its doc. */
export interface OptionDoc {
  option: string;
  fallback: string;
  doc: string;
}

/** Every option that there is. */
export const optionDocs = (): OptionDoc[] => docsIn(stackSchema, "");

function docsIn(object: z.ZodObject, prefix: string): OptionDoc[] {
  return Object.entries(object.shape as Record<string, z.ZodType>).flatMap(([key, schema]) => {
    const inner = unwrap(schema);
    if (inner instanceof z.ZodObject && schema.description === undefined) return docsIn(inner, `${prefix}${key}.`);
    const doc = linked(schema.description ?? inner.description ?? "");
    const element = inner instanceof z.ZodArray ? unwrap(inner.element as z.ZodType) : undefined;
    const fields = element instanceof z.ZodObject ? docsIn(element, `${prefix}${key}[].`) : [];
    return [{ option: `${prefix}${key}`, fallback: defaultOf(schema), doc }, ...fields];
  });
}

/** A description's links are from the root of the project. */
function linked(description: string): string {
  return description.replaceAll("](docs/", "](");
}

function defaultOf(schema: z.ZodType): string {
  const parsed = schema.safeParse(undefined);
  return parsed.success && parsed.data !== undefined ? `\`${JSON.stringify(parsed.data)}\`` : "";
}

function quirksTable(): string {
  const rows = (Object.keys(quirks) as QuirkId[]).map((id) => {
    const { symptom, needs, probe, remedy, source } = quirk(id);
    const { remedy: words, by } = describeRemedy(remedy);
    return [
      probedQuirks.includes(id) ? `\`${id}\`` : id,
      symptom,
      needs,
      probe ? `\`${probe.join(" ")}\`` : "every gVisor has it",
      "blocked" in remedy || "missing" in remedy ? `${words}; ${by}` : words,
      source,
    ];
  });
  return markdown(["Quirk", "Symptom", "Needed by", "Probe", "Remedy", "Source"], rows);
}

if (import.meta.main) {
  for (const file of files) writeFileSync(join(root, file), withTable(file));
}
