import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { files, withTable } from "../../docs/tables.ts";

const root = join(import.meta.dirname, "../..");
const read = (file: string) => readFileSync(join(root, file), "utf8");

it.each(files)("the table in %s is what the code says; `make docs` writes it anew", (file) => {
  expect(read(file)).toBe(withTable(file));
});

const texts = globSync(["*.md", "{docs,bench,conformance,standins}/*.md"], { cwd: root });

describe.each(texts)("the links of %s", (text) => {
  it("lead to what is there", () => {
    const links = [...read(text).matchAll(/\]\(([^)\s]+)\)/g)].map(([, link]) => link!);
    expect(links.filter((link) => !/^https?:/.test(link)).filter((link) => !leads(text, link))).toEqual([]);
  });
});

/** Whether a link in a text leads to a file, and to a heading in it. */
function leads(text: string, link: string): boolean {
  const [file, anchor] = link.split("#");
  const target = file ? join(dirname(text), file) : text;
  return existsSync(join(root, target)) && (anchor === undefined || anchorsOf(target).includes(anchor));
}

/** The anchors that GitHub gives to headings. */
function anchorsOf(file: string): string[] {
  const headings = [...read(file).matchAll(/^#+ (.*)$/gm)].map(([, heading]) => heading!.toLowerCase());
  return headings.map((heading) => heading.replaceAll(/[^\p{L}\p{N} _-]/gu, "").replaceAll(" ", "-"));
}

it("the README is for the first five minutes", () => {
  expect(read("README.md").split("\n").length).toBeLessThanOrEqual(120);
});
