/**
 * The network that the nodes of a cluster share.
 * @module
 */
import type { Mesh } from "./network.ts";
import { type StackConfig, SUBNET_POOL } from "./schema.ts";

/** What a cluster's nodes share; undefined of a cluster of one. */
export function meshOf({ joins, nodes, name, sandbox }: StackConfig): Mesh | undefined {
  return joins ?? (nodes.length > 0 ? { cluster: name, server: sandbox.subnet } : undefined);
}

/** A node's end of its link to the others; a machine that is not made here may have a device of the first name. */
export const meshDevice = ({ target }: Pick<StackConfig, "target">) => (target === "ssh" ? "gk-nodes" : "eth1");

/** Bytes that a packet may have on it: there is no wire whose frames are short. */
export const MESH_MTU = 65000;

/** Where the nodes have their addresses. */
export const meshNetworks = ({ server }: Mesh) => [...new Set([SUBNET_POOL.cidr, server])];
