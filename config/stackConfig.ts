import { existsSync, readFileSync } from "node:fs";
import { parse } from "yaml";

/**
 * Takes the project's options out of Pulumi's configuration. A program gets all values of it as texts, in which lists
 * and objects are JSON; a stack's settings file may hold them either way. What is no option is left for the schema to
 * refuse by name.
 * @param name the default for the option `name`
 */
export function readStackConfig(all: Record<string, unknown>, project: string, name: string): Record<string, unknown> {
  const own = Object.entries(all).filter(([key]) => key.startsWith(`${project}:`));
  return withFiles({
    name,
    ...Object.fromEntries(own.map(([key, value]) => [key.slice(project.length + 1), parsed(value)])),
  });
}

/** Options with what they give as a file's path in its place. */
export function withFiles(options: Record<string, unknown>): Record<string, unknown> {
  const { registries } = options;
  return typeof registries === "string" && existsSync(registries)
    ? { ...options, registries: fileContent(registries) }
    : options;
}

/** A file that is no YAML is given as its path, which the schema refuses. */
function fileContent(path: string): unknown {
  try {
    return parse(readFileSync(path, "utf8")) ?? {};
  } catch {
    return path;
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
