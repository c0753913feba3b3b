/** Tables in Markdown, and their places in a text. */

/**
 * Puts a table in its place in a text.
 * @throws Error if the text has no such place
 */
export function putTable(text: string, name: string, table: string): string {
  const [begin, end] = [new RegExp(`<!-- ${name}: [^>]*-->\n`).exec(text), text.indexOf(`<!-- end of ${name} -->`)];
  if (!begin || end < begin.index)
    throw new Error(`there is no place for the table ${name}: <!-- ${name}: … --> … <!-- end of ${name} -->`);
  return `${text.slice(0, begin.index)}${begin[0]}${table}\n${text.slice(end)}`;
}

/** A table in Markdown; its first column is text, and the others are numbers where `numbers` says so. */
export function markdown(head: string[], rows: string[][], numbers = false): string {
  const line = (cells: string[]) =>
    `| ${cells.map((cell) => cell.replaceAll("|", "\\|").replaceAll("\n", " ")).join(" | ")} |`;
  return [
    line(head),
    `|${head.map((_, column) => (numbers && column > 0 ? "---:|" : "---|")).join("")}`,
    ...rows.map(line),
  ].join("\n");
}
