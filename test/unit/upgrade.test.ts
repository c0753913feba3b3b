import { describe, expect, it } from "vitest";
import { parseStackConfig, type StackConfig } from "../../config/schema.ts";
import { distributionOf } from "../../servers/index.ts";
import { type ReadyServer, versionProblems } from "../../servers/ready.ts";

const k3s = (version: string): StackConfig => parseStackConfig({ name: "up", distribution: "k3s", k3s: { version } });
const embedded = parseStackConfig({ name: "up" });
const minor = (kubernetes: string): StackConfig => parseStackConfig({ name: "up", kubernetes });
const ran = (version: string | undefined, distribution: ReadyServer["distribution"] = "k3s"): ReadyServer => ({
  ...(version ? { version } : {}),
  distribution,
  server: "/opt/server",
  config: "",
});
const messages = (...args: Parameters<typeof versionProblems>) =>
  versionProblems(...args).map(({ option, message }) => `${option}: ${message}`);

describe("an upgrade", () => {
  it.each([
    ["v1.36.4+k3s1", "v1.36.4+k3s1"],
    ["v1.36.4+k3s1", "v1.36.4+k3s2"],
    ["v1.36.4+k3s1", "v1.36.10+k3s1"],
    ["v1.36.4+k3s1", "v1.37.0+k3s1"],
    [undefined, "v1.30.0+k3s1"],
  ])("from %s to %s is allowed", (from, to) => expect(versionProblems(ran(from), k3s(to))).toEqual([]));

  it.each([
    ["v1.36.4+k3s2", "v1.36.4+k3s1"],
    ["v1.36.10+k3s1", "v1.36.9+k3s1"],
    ["v1.37.0+k3s1", "v1.36.9+k3s1"],
  ])("from %s to %s is a downgrade, which is refused with the reason", (from, to) => {
    expect(messages(ran(from), k3s(to))).toEqual([
      `k3s.version: the cluster runs ${from}, and a downgrade is not possible: an older API server may ` +
        `not read what a newer one has stored. Take ${from} or newer, or destroy the cluster first`,
    ]);
  });

  it("over more than one minor version names the one that comes first", () => {
    expect(messages(ran("v1.34.1+k3s1"), k3s("v1.36.0+k3s1"))).toEqual([
      "k3s.version: the cluster runs v1.34.1+k3s1, and Kubernetes goes up by one minor version at a " +
        "time; take a v1.35 first",
    ]);
  });

  it("of the server that is built here is one of this project", () => {
    const version = distributionOf(embedded).refOf(embedded).version!;
    expect(versionProblems(ran(version, "embedded"), embedded)).toEqual([]);
    expect(messages(ran("v1.37.99", "embedded"), embedded)[0]).toMatch(
      `kubernetes: that is ${version} here; the cluster runs v1.37.99, and a downgrade is not possible`,
    );
  });

  it("of the server that is built here goes up by one minor version, and nowhere else", () => {
    const from = (version: string, to: string) => messages(ran(version, "embedded"), minor(to));
    expect(from("v1.35.0", "1.36")).toEqual([]);
    expect(from("v1.36.3", "1.37")).toEqual([]);
    expect(from("v1.37.2", "1.36")[0]).toMatch(/^kubernetes: .* a downgrade is not possible.* Take 1\.37 or newer, or/);
    expect(from("v1.35.4", "1.37")[0]).toMatch(
      /one minor version at a time; take 1\.36 first, or run `gvisor-k3s upgrade NAME --to 1\.37`/,
    );
    expect(from("v1.33.0", "1.35")[0]).toMatch(
      /take 1\.34 first, by a gvisor-k3s that brings it: this one has 1\.35, 1\.36, 1\.37$/,
    );
  });

  it("to another distribution is refused", () => {
    expect(messages(ran("v1.36.4", "embedded"), k3s("v1.36.4+k3s1"))).toEqual([
      "distribution: the cluster was made by embedded, which keeps its state in another way; set that, " +
        "or destroy the cluster first",
    ]);
  });

  it("of a cluster that was never ready is none", () => {
    expect(versionProblems(undefined, embedded)).toEqual([]);
  });
});
