import { meshOf } from "./mesh.ts";
import { defaultSubnet, type StackConfig } from "./schema.ts";

/** A node that joins a cluster's server. */
export interface JoiningNode {
  /** Its name in the cluster, which is its machine's too. */
  name: string;
  /** The pool that it is of. */
  pool: string;
  labels: Record<string, string>;
  taints: string[];
  /** Whether its pods move to others before its kubelet is exchanged. */
  drain: boolean;
  /** The options of the cluster, with what is the node's own in its place. */
  config: StackConfig;
}

/** The options of each node's machine: the server's first, whose name is the cluster's. */
export function nodesOf<Config extends StackConfig>(config: Config): [server: Config, ...joined: Config[]] {
  return [config, ...joiningNodes(config).map((node) => ({ ...config, ...node.config }))];
}

/** The nodes of a cluster beside the server's, in the order of their pools. */
export function joiningNodes(config: StackConfig): JoiningNode[] {
  const taken = [config.sandbox.subnet];
  return config.nodes.flatMap(
    ({ name: pool, count, memory, cpus, kubernetes = config.kubernetes, k3s, ssh, ...more }) =>
      Array.from({ length: count }, (_, i) => {
        const name = `${config.name}-${pool}-${i + 1}`;
        const subnet = defaultSubnet(name, taken);
        taken.push(subnet);
        const sandbox = { ...config.sandbox, subnet, memory, cpus };
        const where = ssh === undefined ? {} : { target: "ssh" as const, ssh };
        const release = { ...config.k3s, ...k3s };
        const own = {
          name,
          sandbox,
          kubernetes,
          k3s: release,
          nodes: [],
          ports: [],
          joins: meshOf(config)!,
        };
        return { ...more, name, pool, config: { ...config, ...own, ...where } };
      }),
  );
}
