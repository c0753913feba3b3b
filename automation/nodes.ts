/**
 * The nodes of a cluster, each with the options of its machine.
 * @module
 */
import { nodesOf } from "../config/nodes.ts";
import { refuse } from "../config/problems.ts";
import type { NamedConfig } from "./options.ts";

/**
 * The options of one node's machine.
 * @param name default: the server's
 * @throws InputError that lists the nodes if there is none of that name
 */
export function nodeOf(config: NamedConfig, name: string = config.name): NamedConfig {
  const nodes = nodesOf(config);
  const found = nodes.find((node) => node.name === name);
  if (found === undefined) {
    const names = nodes.map((node) => node.name).join(", ");
    refuse([{ option: "--node", value: name, message: `there is no such node; there are ${names}` }]);
  }
  return found!;
}
