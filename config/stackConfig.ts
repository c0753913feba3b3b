import { parse } from "yaml";

/** Returns what is in a file; undefined if there is none. */
export type ReadFile = (path: string) => string | undefined;

/**
 * Takes the project's options out of Pulumi's configuration. A program gets all values of it as texts, in which lists
 * and objects are JSON; a stack's settings file may hold them either way. What is no option is left for the schema to
 * refuse by name.
 * @param name the default for the option `name`
 * @param read reads the files that options name in place of their content
 */
export function readStackConfig(
  all: Record<string, unknown>,
  project: string,
  name: string,
  read: ReadFile,
): Record<string, unknown> {
  const own = Object.entries(all).filter(([key]) => key.startsWith(`${project}:`));
  const options = own.map(([key, value]) => [key.slice(project.length + 1), parsed(value)] as const);
  return withFiles({ name, ...Object.fromEntries(options) }, read);
}

/** Options with what they give as a file's path in its place. */
export function withFiles(options: Record<string, unknown>, read: ReadFile): Record<string, unknown> {
  const { registries: path } = options;
  const text = typeof path === "string" ? read(path) : undefined;
  if (text === undefined) return options;
  try {
    return { ...options, registries: (parse(text) as unknown) ?? {} };
  } catch {
    return options; // the schema refuses the path of what is no YAML
  }
}

/** A text that looks like JSON and is none stays a text, which the schema refuses where it allows none. */
function parsed(value: unknown): unknown {
  if (typeof value !== "string" || !/^[[{]/.test(value)) return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}
