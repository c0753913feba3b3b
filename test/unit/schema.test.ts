import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { contains, overlap, parseNetwork } from "../../config/network.ts";
import { InputError } from "../../config/problems.ts";
import { defaultSubnet, parseStackConfig } from "../../config/schema.ts";

function refusal(input: unknown): string[] {
  try {
    parseStackConfig(input);
  } catch (error) {
    if (error instanceof InputError) return error.message.split("\n").slice(1);
    throw error;
  }
  return [];
}

describe("parseStackConfig", () => {
  it("needs nothing but a name", () => {
    const config = parseStackConfig({ name: "dev" });
    expect(config.containerd.snapshotter).toBe("overlayfs");
    expect(config.node.clusterDns).toBe("10.43.0.10");
    expect(config.sandbox.subnet).toBe(defaultSubnet("dev"));
  });

  it("reports every problem at once, each with the option and what is allowed", () => {
    expect(refusal({ name: "Dev_", sandbox: { foo: 1, memory: 4 }, containerd: { snapshotter: "zfs" }, bar: 1 })).toEqual([
      '  - name = "Dev_": up to 12 lower-case letters, digits and dashes are allowed, a letter first, no dash last',
      "  - sandbox.memory = 4: a value of type string is allowed",
      "  - sandbox.foo: there is no such option; allowed here: subnet, memory, cpus, platform, runsc",
      '  - containerd.snapshotter = "zfs": allowed: overlayfs, native',
      "  - bar: there is no such option; allowed here: name, distribution, sandbox, runtime, containerd, node, network, images, pod",
    ]);
  });

  it.each([
    [{ sandbox: { subnet: "10.42.0.0/24" } }, "node.clusterCidr", "it overlaps sandbox.subnet (10.42.0.0/24)"],
    [{ node: { httpsListenPort: 10250 } }, "node.httpsListenPort", "the port is in use by the node's kubelet"],
    [{ node: { clusterDns: "10.44.0.1" } }, "node.clusterDns", "it must lie in node.serviceCidr"],
    [{ sandbox: { memory: "1Mi" } }, "sandbox.memory", "at least 512Mi"],
    [{ containerd: { shim: "/x" } }, "containerd.shim", "set containerd.containerd as well"],
    [{ distribution: "k3s" }, "distribution", "not available in this version"],
    [{ node: { kubeletArgs: ["--v=2"] } }, "node.kubeletArgs[0]", "name=value without leading dashes"],
  ])("refuses %j", (input, option, message) => {
    const lines = refusal({ name: "d", ...input });
    expect(lines).toHaveLength(1);
    expect(lines[0]).toContain(option);
    expect(lines[0]).toContain(message);
  });

  it("gives every name a subnet of the pool that overlaps no default network", () => {
    const pool = parseNetwork("10.107.0.0/16")!;
    fc.assert(
      fc.property(fc.stringMatching(/^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$/), (name) => {
        const subnet = parseNetwork(parseStackConfig({ name }).sandbox.subnet)!;
        expect(overlap(subnet, pool)).toBe(true);
        expect(subnet.size).toBe(4);
      }),
    );
  });
});

describe("networks", () => {
  it("overlap exactly when one holds an address of the other", () => {
    const network = fc.tuple(fc.nat(2 ** 32 - 1), fc.integer({ min: 1, max: 32 })).map(([address, prefix]) => {
      const size = 2 ** (32 - prefix);
      const first = address - (address % size);
      return parseNetwork(`${[24, 16, 8, 0].map((shift) => Math.floor(first / 2 ** shift) % 256).join(".")}/${prefix}`)!;
    });
    fc.assert(
      fc.property(network, network, (a, b) => {
        const firstOf = (n: typeof a) => n.cidr.split("/")[0]!;
        expect(overlap(a, b)).toBe(contains(a, firstOf(b)) || contains(b, firstOf(a)));
      }),
    );
  });
});
