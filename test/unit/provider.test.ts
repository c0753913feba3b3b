import { describe, expect, it } from "vitest";
import { optionDocs } from "../../docs/tables.ts";
import { packageSchema } from "../../provider/schema.ts";

interface Spec {
  $ref?: string;
  type?: string;
  oneOf?: Spec[];
  items?: Spec;
  additionalProperties?: Spec;
  properties?: Record<string, Spec>;
  description?: string;
  default?: unknown;
  enum?: { name: string; value: string }[];
  secret?: boolean;
}
const { types, resources } = packageSchema("1.2.3") as {
  types: Record<string, Spec>;
  resources: Record<string, { inputProperties: Record<string, Spec>; properties: Record<string, Spec> }>;
};
const { inputProperties, properties } = resources["gvisor-k3s:index:Cluster"]!;
const named = (ref = "") => types[ref.replace("#/types/", "")];

/** The property by an option's full name, and whatever it may be; `[]` is what a list has. */
function option(name: string): Spec | undefined {
  const [first, ...rest] = name.split(/\.|(?=\[\])/);
  let spec = inputProperties[first!];
  for (const key of rest) spec = key === "[]" ? spec?.items : named(spec?.$ref)?.properties?.[key];
  return spec;
}

/** All that is in a description of a type. */
const within = (spec: Spec): Spec[] => [
  spec,
  ...[...(spec.oneOf ?? []), spec.items, spec.additionalProperties, ...Object.values(spec.properties ?? {})].flatMap(
    (part) => (part ? within(part) : []),
  ),
];
const everything = [...Object.values({ ...inputProperties, ...properties }), ...Object.values(types)].flatMap(within);

describe("Pulumi's schema of the package", () => {
  it.each(optionDocs().map(({ option }) => option))("has the option %s, with what it does", (name) => {
    expect(option(name)?.description).toMatch(/\S/);
  });

  it("has a type for whatever it refers to", () => {
    const refs = everything.flatMap(({ $ref }) => ($ref?.startsWith("#/types/") ? [$ref] : []));
    expect(refs.length).toBeGreaterThan(20);
    expect(refs.filter((ref) => named(ref) === undefined)).toEqual([]);
    expect(everything.filter((spec) => spec.$ref === "pulumi.json#/Any")).toHaveLength(1); // of OCI rules
  });

  it("has defaults where SDKs know them, and names that are some in every language", () => {
    expect(option("node.httpsListenPort")).toMatchObject({ type: "integer", default: 6443 });
    expect(everything.filter((spec) => spec.oneOf && "default" in spec)).toEqual([]);
    const names = everything.flatMap((spec) => spec.enum ?? []).map(({ name }) => name);
    expect(names).toEqual(expect.arrayContaining(["ControlPlane", "V1_37"]));
    expect(names.filter((name) => !/^[A-Z][A-Za-z0-9_]*$/.test(name))).toEqual([]);
  });

  it("takes any text for one of several, and a number of CPUs that may be none", () => {
    expect(option("mode")!.oneOf).toEqual([{ type: "string" }, { $ref: "#/types/gvisor-k3s:index:Mode" }]);
    expect(option("mode")!.description).toContain('Default: `"node"`.');
    expect(option("sandbox.cpus")).toMatchObject({ type: "number" });
  });

  it("has the test pod as a component of its own, on any cluster", () => {
    const { inputProperties, properties } = resources["gvisor-k3s:index:TestPod"]!;
    expect(inputProperties.kubeconfig!.secret).toBe(true);
    expect(Object.keys(inputProperties).sort()).toEqual(["args", "image", "kubeconfig", "namespace"]);
    expect(Object.keys(properties).sort()).toEqual(["logs", "phase", "podName"]);
  });

  it("has secrets", () => {
    expect(inputProperties.registries!.secret).toBe(true);
  });
});
