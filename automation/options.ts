/**
 * A cluster's options, as far as they are known without Pulumi, which takes longer to load than some commands take.
 * @module
 */
import { parseStackConfig, type StackConfig } from "../config/schema.ts";
import { readStackConfig } from "../config/stackConfig.ts";
import { readFile } from "../system/files.ts";
import { ownProject, readYaml, settingsFile } from "./project.ts";

/** A cluster's options, and what commands call it where that is not its option `name`: its stack. */
export type NamedConfig = StackConfig & { stack?: string };

/** What commands call a cluster. */
export const commandName = ({ name, stack = name }: NamedConfig): string => stack;

/**
 * The options of a stack; undefined if some of them are secret, which Pulumi alone can read.
 * @throws InputError that lists everything that is wrong with them by themselves
 */
export function plainConfig(name: string): NamedConfig | undefined {
  const { config = {} } = readYaml(settingsFile(name)) as { config?: Record<string, unknown> };
  return Object.values(config).some(isSecure) ? undefined : configIn(name, config);
}

/** The options of a stack in Pulumi's configuration of it. */
export function configIn(name: string, all: Record<string, unknown>): NamedConfig {
  return { ...parseStackConfig(readStackConfig(all, ownProject(), name, readFile)), stack: name };
}

/** Whether a value, or one within it, is encrypted: Pulumi writes `{secure: …}` in its place. */
function isSecure(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  return "secure" in value || Object.values(value).some(isSecure);
}
