/**
 * The project as Pulumi knows it, and where a stack's options lie.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";

/** The folder of this checkout or package. */
export const root = join(import.meta.dirname, "..");

/** The name of the project, with which the options' names begin. */
export function ownProject(): string {
  return String(readYaml(join(root, "Pulumi.yaml")).name);
}

/** The folder of the stacks' states, where these lie in the home folder. */
export const stacksFolder = (home: string): string => join(home, "pulumi/.pulumi/stacks", ownProject());

/** Whose the cluster of a stack of this project is; see `MachineRecord.owner`. */
export const ownerOf = (stack: string): string => `${ownProject()}/${stack}`;

/** A stack's options: in the folder that the command runs in, or beside the program. */
export function settingsFile(stack: string): string {
  const files = [process.cwd(), root].map((folder) => join(folder, `Pulumi.${stack}.yaml`));
  return files.find((file) => existsSync(file)) ?? files[1]!;
}

/** What is in a YAML file; nothing if there is none. */
export function readYaml(file: string): Record<string, unknown> {
  return existsSync(file) ? ((parse(readFileSync(file, "utf8")) as Record<string, unknown> | null) ?? {}) : {};
}
