/** What the property tests draw from: networks, and every valid configuration there is. */
import fc from "fast-check";
import { blockersAmong, probedQuirks } from "../../config/quirks.ts";
import { NODE_PORTS, type StackConfigInput } from "../../config/schema.ts";

/** An address as a number, in the usual notation. */
export const dotted = (address: number) =>
  [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join(".");

/** The network of a prefix that an address lies in, as a CIDR. */
export const cidrOf = (address: number, prefix: number) =>
  `${dotted(address - (address % 2 ** (32 - prefix)))}/${prefix}`;

export const addresses = fc.nat(2 ** 32 - 1);

/** Any network whose prefix is in the range. */
export const cidrs = (min = 0, max = 32) =>
  fc.tuple(addresses, fc.integer({ min, max })).map(([address, prefix]) => cidrOf(address, prefix));

/** The prefixes that the options of the three networks allow, as the README states them. */
export const PREFIXES = { subnet: [24, 30], clusterCidr: [8, 24], serviceCidr: [12, 28] } as const;

/** Three networks, each in a /8 of its own, which is never that of a default: they share no address. */
const threeNetworks = fc
  .uniqueArray(fc.integer({ min: 11, max: 126 }), { minLength: 3, maxLength: 3 })
  .chain(([a, b, c]) => {
    const within = (octet: number, [min, max]: readonly [number, number]) =>
      fc
        .tuple(fc.nat(2 ** 24 - 1), fc.integer({ min, max }))
        .map(([rest, prefix]) => cidrOf(octet * 2 ** 24 + rest, prefix));
    return fc.record({
      subnet: within(a!, PREFIXES.subnet),
      clusterCidr: within(b!, PREFIXES.clusterCidr),
      serviceCidr: within(c!, PREFIXES.serviceCidr),
    });
  });

/** Texts of what TOML, YAML and JSON have to quote or escape. */
const text = fc.string({
  unit: fc.constantFrom(
    ..."aZ09 .,:;=-_#'\"`\\/[]{}<>|&*!%@?~\n\r\t\u0000\u0007\u007f\u2028é漢",
    "😀",
    "null",
    "true",
    "0x1",
  ),
  maxLength: 20,
});
/** A lower-case letter and then such letters, digits and dashes, which is what most names here are. */
const word = (maxLength: number) =>
  fc
    .tuple(
      fc.constantFrom(..."abnoy"),
      fc.string({ unit: fc.constantFrom(..."abefnosy019-"), maxLength: maxLength - 1 }),
    )
    .map((parts) => parts.join(""));
const path = text.map((rest) => `/${rest}`);
const componentArguments = fc.array(
  fc.tuple(word(10), text).map(([name, value]) => `${name}=${value}`),
  { maxLength: 3 },
);
const rule = fc.oneof(
  fc.record({ dropNamespace: fc.constantFrom("cgroup" as const, "user" as const) }),
  fc.record({ dropMaskedPath: path }),
  fc.record({ dropMount: path }),
  fc.record({ unset: word(20) }),
  fc.record({ set: word(20), value: fc.jsonValue().map((value) => JSON.parse(JSON.stringify(value))) }),
);
/** A part of the options whose every key may be left out. */
const some = <T extends object>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
  fc.record(model, { requiredKeys: [] }) as fc.Arbitrary<Partial<T>>;

export const names = word(12).map((name) => name.replace(/-+$/, ""));

/** Quirks that a sandbox may have, in any order. */
export const quirkLists = fc.shuffledSubarray(probedQuirks);

/** Every valid configuration, with any of its options left out. */
export const validConfigs: fc.Arbitrary<StackConfigInput> = threeNetworks.chain(
  ({ subnet, clusterCidr, serviceCidr }) =>
    fc.record(
      {
        name: names,
        // A list with a blocker is valid for a control plane only.
        mode: fc.constant("control-plane" as const),
        quirks: fc.oneof(
          fc.constant("auto" as const),
          fc.shuffledSubarray(probedQuirks.filter((id) => blockersAmong([id]).length === 0)),
        ),
        distribution: fc.constant("embedded" as const),
        sandbox: some({
          subnet: fc.constant(subnet),
          memory: fc.option(
            fc.oneof(
              fc.integer({ min: 512, max: 2 ** 20 }).map((n) => `${n}Mi`),
              fc.integer({ min: 1, max: 1024 }).map((n) => `${n}Gi`),
            ),
          ),
          cpus: fc.option(fc.double({ min: 0.1, max: 512, noNaN: true })),
          platform: fc.constantFrom("systrap" as const, "kvm" as const, "ptrace" as const),
          network: fc.constantFrom("sandbox" as const, "host" as const),
          runsc: path,
        }),
        runtime: fc
          .tuple(
            some({ rules: fc.array(rule, { maxLength: 3 }) }),
            fc.oneof(
              some({ patches: fc.array(text, { maxLength: 3 }) }),
              some({ name: fc.constantFrom("runc" as const, "crun" as const), path }),
            ), // only a runc that is built is patched
          )
          .map(([own, program]) => ({ ...own, ...program })),
        containerd: fc
          .tuple(
            some({
              snapshotter: fc.constantFrom("auto" as const, "overlayfs" as const, "native" as const),
              logLevel: fc.constantFrom("debug" as const, "warn" as const),
            }),
            fc.oneof(fc.constant({}), fc.record({ containerd: path, shim: path })), // both or neither
          )
          .map(([own, set]) => ({ ...own, ...set })),
        node: some({
          httpsListenPort: fc
            .integer({ min: 1, max: 65535 })
            .filter((port) => !(Object.values(NODE_PORTS) as number[]).includes(port)),
          clusterDomain: fc.array(names, { minLength: 1, maxLength: 3 }).map((labels) => labels.join(".")),
          clusterCidr: fc.constant(clusterCidr),
          labels: fc.dictionary(text, text, { maxKeys: 3 }),
          pruneImagesAt: fc.option(fc.integer({ min: 1, max: 99 })),
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
        network: some({ bridge: word(15), mtu: fc.integer({ min: 1280, max: 65521 }) }),
        images: fc.array(path, { maxLength: 3 }),
        pod: some({
          enabled: fc.boolean(),
          namespace: names,
          image: fc.constant("registry.example:5000/team/app:1.2"),
          args: fc.array(text, { maxLength: 3 }),
        }),
      },
      { requiredKeys: ["name"] },
    ),
);
