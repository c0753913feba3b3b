import { isIPv4 } from "node:net";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { podSubnet } from "../../config/conflist.ts";
import { addressAt, contains, linkAddresses, overlap, parseNetwork } from "../../config/network.ts";
import { addresses, cidrOf, cidrs, dotted } from "./arbitraries.ts";

const networks = cidrs().map((cidr) => parseNetwork(cidr)!);

describe("parseNetwork", () => {
  it("reads every network and takes it apart into what it was made of", () => {
    fc.assert(
      fc.property(addresses, fc.integer({ min: 0, max: 32 }), (address, prefix) => {
        const cidr = cidrOf(address, prefix);
        const network = parseNetwork(cidr)!;
        expect(network).toEqual({ cidr, first: network.first, size: 2 ** (32 - prefix) });
        expect(dotted(network.first)).toBe(cidr.split("/")[0]);
      }),
    );
  });

  it("refuses a network with a bit set behind the prefix", () => {
    fc.assert(
      fc.property(addresses, fc.integer({ min: 0, max: 31 }), (address, prefix) => {
        const bits = 2 ** (32 - prefix);
        expect(parseNetwork(`${dotted(address)}/${prefix}`) === undefined).toBe(address % bits !== 0);
      }),
    );
  });

  it.each([
    "",
    "10.0.0.0",
    "10.0.0.0/",
    "10.0.0.0/33",
    "10.0.0.0/-1",
    "10.0.0.0/08",
    "10.0.0.0/8.0",
    "10.0.0.0/ 8",
    "10.0.0/8",
    "010.0.0.0/8",
    "256.0.0.0/8",
    "fd00::/8",
    "10.0.0.0/8/8",
    "/8",
  ])("refuses %j", (text) => expect(parseNetwork(text)).toBeUndefined());

  it("takes no text for a network that is not an address, a slash and a number", () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.tuple(fc.ipV4(), fc.string()).map((parts) => parts.join("/")),
          fc.ipV4Extended(),
        ),
        (text) => {
          const [address = "", prefix = ""] = text.split("/");
          if (parseNetwork(text) !== undefined)
            expect([isIPv4(address), String(Number(prefix))]).toEqual([true, prefix]);
        },
      ),
    );
  });
});

describe("addresses", () => {
  it("lie in their network from the first to the last, and the neighbours do not", () => {
    fc.assert(
      fc.property(networks, fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }), (network, where) => {
        const inside = Math.floor(where * network.size);
        expect([0, inside, network.size - 1].map((offset) => contains(network, addressAt(network, offset)))).toEqual([
          true,
          true,
          true,
        ]);
        if (network.first > 0) expect(contains(network, dotted(network.first - 1))).toBe(false);
        if (network.first + network.size < 2 ** 32)
          expect(contains(network, dotted(network.first + network.size))).toBe(false);
      }),
    );
  });

  it("of another kind lie in no network", () => {
    for (const text of ["", "host", "::ffff:10.0.0.1", "10.0.0"])
      expect(contains(parseNetwork("0.0.0.0/0")!, text)).toBe(false);
  });
});

describe("two networks", () => {
  it("overlap exactly when one holds the other's first address, whichever is asked", () => {
    // Random networks hardly ever meet; one that is made around or within the other does, and so does its neighbour
    // not.
    const pairs = fc
      .tuple(addresses, fc.integer({ min: 1, max: 32 }), fc.integer({ min: 1, max: 32 }), fc.boolean())
      .map(([address, a, b, flip]) => {
        const other = flip ? (address + 2 ** (32 - a)) % 2 ** 32 : address;
        return [parseNetwork(cidrOf(address, a))!, parseNetwork(cidrOf(other, b))!] as const;
      });
    fc.assert(
      fc.property(fc.oneof(pairs, fc.tuple(networks, networks)), ([a, b]) => {
        const held = contains(a, addressAt(b, 0)) || contains(b, addressAt(a, 0));
        expect([overlap(a, b), overlap(b, a)]).toEqual([held, held]);
      }),
    );
  });
});

it("the pods of the node lie in the cluster's network, as a /24", () => {
  fc.assert(
    fc.property(cidrs(8, 24), (cidr) => {
      const pods = parseNetwork(podSubnet(cidr))!;
      expect(pods).toMatchObject({ first: parseNetwork(cidr)!.first, size: 256 });
    }),
  );
});

it("the host takes the first address of the link, the node the second", () => {
  expect(linkAddresses("10.107.0.8/30")).toEqual({ host: "10.107.0.9", node: "10.107.0.10", prefix: 30 });
  expect(linkAddresses("192.168.255.0/24")).toEqual({ host: "192.168.255.1", node: "192.168.255.2", prefix: 24 });
});
