/** What the property tests draw from: networks, and every valid configuration there is. */
import fc from "fast-check";
import { NODE_PORTS, type StackConfigInput } from "../../config/schema.ts";

/** An address as a number, in the usual notation. */
export const dotted = (address: number) => [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");

/** The network of a prefix that an address lies in, as a CIDR. */
export const cidrOf = (address: number, prefix: number) => dotted(address - (address % 2 ** (32 - prefix))) + `/${prefix}`;

export const addresses = fc.nat(2 ** 32 - 1);

/** Any network whose prefix is in the range. */
export const cidrs = (min = 0, max = 32) => fc.tuple(addresses, fc.integer({ min, max })).map(([address, prefix]) => cidrOf(address, prefix));

/** The prefixes that the options of the three networks allow, as the README states them. */
export const PREFIXES = { subnet: [24, 30], clusterCidr: [8, 24], serviceCidr: [12, 28] } as const;

/** Three networks, each in a /8 of its own, which is never that of a default: they share no address. */
const threeNetworks = fc.uniqueArray(fc.integer({ min: 11, max: 126 }), { minLength: 3, maxLength: 3 }).chain(([a, b, c]) => {
  const within = (octet: number, [min, max]: readonly [number, number]) =>
    fc.tuple(fc.nat(2 ** 24 - 1), fc.integer({ min, max })).map(([rest, prefix]) => cidrOf(octet * 2 ** 24 + rest, prefix));
  return fc.record({ subnet: within(a!, PREFIXES.subnet), clusterCidr: within(b!, PREFIXES.clusterCidr), serviceCidr: within(c!, PREFIXES.serviceCidr) });
});

const path = fc.string({ unit: "grapheme" }).map((text) => `/${text}`);
const componentArguments = fc.array(fc.tuple(fc.stringMatching(/^[a-z][a-z0-9-]{0,9}$/), fc.string({ unit: "grapheme" })).map(([name, value]) => `${name}=${value}`), { maxLength: 3 });
const rule = fc.oneof(
  fc.record({ dropNamespace: fc.constantFrom("cgroup" as const, "user" as const) }),
  fc.record({ dropMaskedPath: path }),
  fc.record({ dropMount: path }),
  fc.record({ unset: fc.string({ minLength: 1 }) }),
  fc.record({ set: fc.string({ minLength: 1 }), value: fc.jsonValue().map((value) => JSON.parse(JSON.stringify(value))) }),
);
/** A part of the options whose every key may be left out. */
const some = <T extends object>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }) => fc.record(model, { requiredKeys: [] }) as fc.Arbitrary<Partial<T>>;

export const names = fc.stringMatching(/^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$/);

/** Every valid configuration, with any of its options left out. */
export const validConfigs: fc.Arbitrary<StackConfigInput> = threeNetworks.chain(({ subnet, clusterCidr, serviceCidr }) =>
  fc.record(
    {
      name: names,
      distribution: fc.constant("embedded" as const),
      sandbox: some({
        subnet: fc.constant(subnet),
        memory: fc.option(fc.oneof(fc.integer({ min: 512, max: 2 ** 20 }).map((n) => `${n}Mi`), fc.integer({ min: 1, max: 1024 }).map((n) => `${n}Gi`))),
        cpus: fc.option(fc.double({ min: 0.1, max: 512, noNaN: true })),
        platform: fc.constantFrom("systrap" as const, "kvm" as const, "ptrace" as const),
        runsc: path,
      }),
      runtime: some({ patches: fc.array(fc.string()), rules: fc.array(rule, { maxLength: 3 }), runc: path }),
      containerd: fc.tuple(
        some({ snapshotter: fc.constantFrom("overlayfs" as const, "native" as const), logLevel: fc.constantFrom("debug" as const, "warn" as const) }),
        fc.oneof(fc.constant({}), fc.record({ containerd: path, shim: path })), // both or neither
      ).map(([own, set]) => ({ ...own, ...set })),
      node: some({
        httpsListenPort: fc.integer({ min: 1, max: 65535 }).filter((port) => !(Object.values(NODE_PORTS) as number[]).includes(port)),
        clusterDomain: fc.stringMatching(/^[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?$/),
        clusterCidr: fc.constant(clusterCidr),
        labels: fc.dictionary(fc.string(), fc.string({ unit: "grapheme" }), { maxKeys: 3 }),
        kubeletArgs: componentArguments,
        apiServerArgs: componentArguments,
        controllerManagerArgs: componentArguments,
        schedulerArgs: componentArguments,
      }).chain((node) =>
        // The DNS address has to lie in the network of the Services, so the two come together.
        fc.oneof(
          fc.constant(node),
          fc.nat(15).map((offset) => {
            const last = Number(serviceCidr.split("/")[0]!.split(".")[3]);
            return { ...node, serviceCidr, clusterDns: serviceCidr.replace(/\d+\/\d+$/, String(last + offset)) };
          }),
        ),
      ),
      network: some({ bridge: fc.stringMatching(/^[a-z][a-z0-9-]{0,14}$/), mtu: fc.integer({ min: 1280, max: 65521 }) }),
      images: fc.array(path),
      pod: some({ enabled: fc.boolean(), namespace: fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/), image: fc.constant("registry.example:5000/team/app:1.2"), args: fc.array(fc.string()) }),
    },
    { requiredKeys: ["name"] },
  ),
);
