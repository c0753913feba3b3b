/**
 * Pulumi's schema of the package (https://www.pulumi.com/docs/iac/extending-pulumi/schema/), of which its SDKs in every
 * language are made: the inputs of a cluster are the stack's options, as config/schema.ts has them. The cluster's parts
 * are components in TypeScript alone: each takes others, which no other language can hand over.
 * @module
 */
import { z } from "zod";
import { stackSchema } from "../config/schema.ts";

/** What JSON Schema says of a value, as far as it is looked at here. */
interface Json {
  type?: string;
  description?: string;
  default?: unknown;
  enum?: string[];
  items?: Json;
  anyOf?: Json[];
  properties?: Record<string, Json>;
  additionalProperties?: Json | false;
}

/** Pulumi's description of a type, and of a property. */
type TypeSpec = Record<string, unknown>;

const PACKAGE = "gvisor-k3s";
/** Where the SDK for Go is imported from; who publishes one gives it an address of their own. */
const GO_PACKAGE = "example.com/gvisor-k3s/sdk/go/gvisork3s";
const ANY: TypeSpec = { $ref: "pulumi.json#/Any" };

/** The whole schema. */
export function packageSchema(version: string): object {
  const types: Record<string, TypeSpec> = {};
  const options = z.toJSONSchema(stackSchema, { io: "input", unrepresentable: "any" }) as unknown as Json;
  const inputProperties = propertiesOf(options, [], types);
  // They may be given as a file, too.
  const registries = inputProperties.registries!;
  inputProperties.registries = {
    description: registries.description,
    oneOf: [{ type: "string" }, { $ref: registries.$ref }],
    secret: true, // its passwords are
  };
  const text = { type: "string" };
  const podName = { ...text, description: "Its name." };
  const podState = {
    phase: { ...text, description: "Its phase." },
    logs: { ...text, description: "What it has printed." },
  };
  const podProperties = { name: podName, ...podState };
  const testPod = { type: "object", properties: podProperties, required: Object.keys(podProperties) };
  const { enabled: _, ...podOptions } = propertiesOf(options.properties!.pod!, ["pod"], types);
  const properties = {
    // Not `secret`, which the provider makes it anyhow: an SDK for Java with a component that has such does not compile.
    kubeconfig: { ...text, description: "The kubeconfig, a secret." },
    kubeconfigPath: { ...text, description: "The kubeconfig's file." },
    address: { ...text, description: "The node's address, which the host reaches; an external cluster has none." },
    quirks: { type: "array", items: text, description: "The ids of what the sandbox's gVisor lacks." },
    testPod: {
      ...named("TestPodState", { ...testPod, description: "The test pod." }, types),
      description: "The test pod, if there is one.",
    },
  };
  return {
    name: PACKAGE,
    version,
    displayName: "gVisor k3s",
    description: "A working Kubernetes node inside a gVisor sandbox.",
    keywords: ["kubernetes", "gvisor", "k3s", "category/infrastructure", "kind/component"],
    license: "Apache-2.0",
    language: {
      go: { importBasePath: GO_PACKAGE, respectSchemaVersion: true },
      nodejs: { respectSchemaVersion: true },
      python: { respectSchemaVersion: true, pyproject: { enabled: true } },
    },
    types,
    resources: {
      [`${PACKAGE}:index:Cluster`]: {
        isComponent: true,
        description: "A cluster with all its parts, described by the options of a stack.",
        inputProperties,
        properties,
        required: ["kubeconfig", "kubeconfigPath"],
      },
      [`${PACKAGE}:index:TestPod`]: {
        isComponent: true,
        description: "A pod that shows that a cluster works: it is awaited until it is Ready.",
        inputProperties: {
          kubeconfig: { ...text, secret: true, description: "A kubeconfig that may create pods and read their logs." },
          ...podOptions,
        },
        requiredInputs: ["kubeconfig"],
        properties: { podName, ...podState },
        required: ["podName", "phase", "logs"],
      },
    },
  };
}

/** `control-plane` is ControlPlane, and `1.37` is V1_37. */
function pascal(words: readonly string[]): string {
  const name = words
    .flatMap((word) => word.split(/[^A-Za-z0-9.]+/))
    .map((word) => word.charAt(0).toUpperCase() + word.slice(1))
    .join("")
    .replaceAll(".", "_");
  return /^\d/.test(name) ? `V${name}` : name;
}

function propertiesOf(object: Json, path: readonly string[], types: Record<string, TypeSpec>) {
  const entries = Object.entries(object.properties!).filter(([, schema]) => Object.keys(schema).length > 0);
  return Object.fromEntries(
    entries.map(([key, schema]): [string, TypeSpec] => {
      const own = [...path, key];
      const { default: fallback, description: words = `The options \`${own.join(".")}.*\`.` } = schema;
      const isGroup = schema.properties !== undefined;
      const description =
        fallback === undefined || isGroup ? words : `${words} Default: \`${JSON.stringify(fallback)}\`.`;
      const type = typeOf(schema, own, types);
      // Pulumi's SDKs know defaults of scalars alone.
      const isPlain = ["string", "number", "boolean"].includes(typeof fallback) && !("oneOf" in type);
      return [key, { ...type, description, ...(isPlain ? { default: fallback } : {}) }];
    }),
  );
}

/** A value's type; those that have a name are added to the package's. */
function typeOf(schema: Json, path: readonly string[], types: Record<string, TypeSpec>): TypeSpec {
  const given = schema.anyOf?.filter(({ type }) => type !== "null"); // without a value it is null where it may be
  if (given?.length === 1) return typeOf(given[0]!, path, types);
  if (given?.every(({ type }) => type !== undefined && type !== "object"))
    return { oneOf: given.map((one) => typeOf(one, path, types)) };
  switch (schema.type) {
    case "string": {
      if (schema.enum === undefined) return { type: "string" };
      const values = schema.enum.map((value) => ({ name: pascal([value]), value }));
      // Any string is let through, for this project's own checks to answer: a number of a YAML file is one of 1.37, too.
      return { oneOf: [{ type: "string" }, named(pascal(path), { type: "string", enum: values }, types)] };
    }
    case "integer":
    case "number":
    case "boolean":
      return { type: schema.type };
    case "array":
      return { type: "array", items: typeOf(schema.items!, path, types) };
    case "object": {
      if (schema.additionalProperties)
        return { type: "object", additionalProperties: typeOf(schema.additionalProperties, path, types) };
      const properties = propertiesOf(schema, path, types);
      return named(`${pascal(path)}Options`, { type: "object", properties }, types);
    }
    default:
      return ANY;
  }
}

function named(name: string, type: TypeSpec, types: Record<string, TypeSpec>): TypeSpec {
  const token = `${PACKAGE}:index:${name}`;
  types[token] = type;
  return { $ref: `#/types/${token}` };
}
