import { BlockList, isIPv4 } from "node:net";

/** An IPv4 network in CIDR notation, taken apart. */
export interface Network {
  cidr: string;
  /** The first address as a number. */
  first: number;
  /** The number of addresses. */
  size: number;
}

/** Reads an IPv4 CIDR; undefined if it is none, or if bits are set behind the prefix. */
export function parseNetwork(cidr: string): Network | undefined {
  const [address = "", prefix = "", ...rest] = cidr.split("/");
  if (rest.length > 0 || !isIPv4(address) || !/^(\d|[12]\d|3[0-2])$/.test(prefix)) return undefined;
  const first = toNumber(address);
  const size = 2 ** (32 - Number(prefix));
  return first % size === 0 ? { cidr, first, size } : undefined;
}

/** The address at an offset from the network's first one. */
export function addressAt(network: Network, offset: number): string {
  const address = network.first + offset;
  return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");
}

export function contains(network: Network, address: string): boolean {
  if (!isIPv4(address)) return false;
  const list = new BlockList();
  list.addSubnet(addressAt(network, 0), 32 - Math.log2(network.size), "ipv4");
  return list.check(address, "ipv4");
}

export function overlap(a: Network, b: Network): boolean {
  return a.first < b.first + b.size && b.first < a.first + a.size;
}

function toNumber(address: string): number {
  return address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

/** The host's and the node's address on the link between them, of the network that the link is given. */
export function linkAddresses(subnet: string): { host: string; node: string; prefix: number } {
  const network = parseNetwork(subnet)!;
  return { host: addressAt(network, 1), node: addressAt(network, 2), prefix: 32 - Math.log2(network.size) };
}

/** What a node has to know of the network that the nodes of its cluster share. */
export interface Mesh {
  /** The cluster's name. */
  cluster: string;
  /** The network in which its server has its address. */
  server: string;
}
