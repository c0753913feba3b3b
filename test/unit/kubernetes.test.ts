/** The versions of Kubernetes: what they are pinned by, and the option that chooses among them. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { serverOf, usualArtifacts } from "../../artifacts/artifacts.ts";
import { kubernetesMinors, newestKubernetes, nextTo, olderKubernetes, wayTo } from "../../config/kubernetes.ts";
import { parseStackConfig } from "../../config/schema.ts";
import { distributionOf } from "../../servers/index.ts";
import { builds, type GoBuild, kubernetesVersion, root } from "../../toolchain/builds.ts";

const folder = join(root, "node/server");

describe("each version of Kubernetes", () => {
  it("is one of those that are pinned, and the newest is what is built for everybody", () => {
    expect([...olderKubernetes, newestKubernetes]).toEqual(kubernetesMinors);
    const pinned = readdirSync(join(folder, "versions")).filter((file) => file.endsWith(".mod"));
    expect(pinned).toEqual(olderKubernetes.map((minor) => `${minor}.mod`));
    expect(usualArtifacts.filter((name) => name.startsWith("server"))).toEqual([serverOf(newestKubernetes)]);
  });

  it.each(kubernetesMinors)("%s has all of Kubernetes' parts in one version, its own", (minor) => {
    const version = kubernetesVersion(minor);
    expect(version.startsWith(`${minor}.`)).toBe(true);
    const [{ modfile = "go.mod" }] = builds[serverOf(minor)] as [GoBuild];
    expect(existsSync(join(folder, modfile.replace(/mod$/, "sum")))).toBe(true);
    const parts = [...readFileSync(join(folder, modfile), "utf8").matchAll(/=> (k8s\.io\/\S+) v(\S+)/g)];
    expect(parts.length).toBeGreaterThan(25);
    expect(parts.filter(([, , part]) => `1.${part!.slice(2)}` !== version)).toEqual([]);
    const told = (builds[serverOf(minor)] as GoBuild[]).map(({ variables }) => variables);
    for (const variables of told)
      expect(variables).toMatchObject({ "k8s.io/component-base/version.gitVersion": `v${version}` });
  });

  it.each([
    ["1.35", "1.37", ["1.36", "1.37"]],
    ["1.36", "1.37", ["1.37"]],
    ["1.37", "1.37", ["1.37"]],
    ["1.37", "1.35", ["1.35"]], // which is refused
    ["1.33", "1.36", ["1.35", "1.36"]], // as the first of it is
  ] as const)("is reached from %s, %s by way of %s", (from, to, way) => expect(wayTo(from, to)).toEqual(way));

  it("is followed by the next", () => expect([nextTo("v1.37.2"), nextTo("v1.9.11+k3s1")]).toEqual(["1.38", "1.10"]));
});

describe("the option kubernetes", () => {
  const parsed = (options: object) => parseStackConfig({ name: "dev", ...options });

  it("is the newest unless another is asked for, with its own kubectl", () => {
    expect(parsed({}).kubernetes).toBe(newestKubernetes);
    const config = parsed({ kubernetes: "1.36" });
    const { server, kubectl, version } = distributionOf(config).refOf(config);
    expect([server, kubectl]).toEqual([kubectl, server]);
    expect([server.includes("/server-1.36-"), version]).toEqual([true, `v${kubernetesVersion("1.36")}`]);
  });

  it("may be a number, which it is in YAML without quotes", () => {
    expect(parsed({ kubernetes: 1.36 }).kubernetes).toBe("1.36");
  });

  it.each(["1.34", "v1.36", "1.36.3", 1.4, true])("that is %s is refused with those that there are", (kubernetes) => {
    expect(() => parsed({ kubernetes })).toThrow(`allowed: ${kubernetesMinors.join(", ")}`);
  });

  it("is not for k3s, which has its own", () => {
    expect(() => parsed({ kubernetes: "1.36", distribution: "k3s" })).toThrow(
      'kubernetes = "1.36": it is for distribution: embedded; k3s.version says which Kubernetes k3s brings',
    );
  });
});
