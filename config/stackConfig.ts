/**
 * Takes the project's options out of Pulumi's configuration, whose values are all texts: lists and objects are JSON in there.
 * What is no option is left for the schema to refuse by name.
 * @param name the default for the option `name`
 */
export function readStackConfig(all: Record<string, string>, project: string, name: string): Record<string, unknown> {
  const own = Object.entries(all).filter(([key]) => key.startsWith(`${project}:`));
  return { name, ...Object.fromEntries(own.map(([key, value]) => [key.slice(project.length + 1), parsed(value)])) };
}

/** A text that looks like JSON and is none stays a text, which the schema refuses where it allows none. */
function parsed(value: string): unknown {
  if (!/^[[{]/.test(value)) return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}
