/**
 * Values for every field of an API object, made from the API's own OpenAPI schema: what is asked of a server by somebody
 * who tries everything.
 * @module
 */

/** As much of OpenAPI as Kubernetes' documents use. */
export interface Schema {
  $ref?: string;
  allOf?: Schema[];
  oneOf?: Schema[];
  type?: string;
  format?: string;
  enum?: unknown[];
  default?: unknown;
  required?: string[];
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
  items?: Schema;
}

export type Schemas = Record<string, Schema>;

/** A value for one field, and where it is. */
export interface Field {
  path: string;
  value: unknown;
}

/** Values by the names of fields whose meaning the schema does not tell, so that more of them pass the API's checks. */
const known: Record<string, unknown> = {
  image: "example.test/shell:1",
  mountPath: "/mnt",
  devicePath: "/dev/mnt",
  path: "/mnt",
  port: 8080,
  containerPort: 8080,
  hostPort: 18080,
  ip: "10.1.2.3",
  fieldPath: "metadata.name",
  resource: "limits.cpu",
  topologyKey: "kubernetes.io/hostname",
  expirationSeconds: 600,
  runAsUser: 1000,
  priority: 0,
  restartPolicy: "Always",
  schedulerName: "default-scheduler", // of another one nobody would take the pod
};

/**
 * An object with one field set for each field that the schema has, down to a depth; what the schema requires beside it
 * is set too.
 */
export function everyField(schemas: Schemas, name: string, depth: number): Field[] {
  const within = (schema: Schema, left: number, seen: readonly string[]): Field[] => {
    const { type, items, properties, required = [] } = resolve(schema);
    const own = nameOf(schema);
    if (type === "array" && items)
      return within(items, left, seen).map(({ path, value }) => ({ path: `[]${path}`, value: [value] }));
    if (!properties || left === 0 || seen.includes(own)) return [];
    return Object.entries(properties).flatMap(([key, property]) => {
      const beside = Object.fromEntries(
        required.filter((other) => other !== key).map((other) => [other, sample(properties[other]!, other)]),
      );
      const deeper = within(property, left - 1, [...seen, own]);
      const values = deeper.length > 0 ? deeper : [{ path: "", value: sample(property, key) }];
      return values.map(({ path, value }) => ({ path: `.${key}${path}`, value: { ...beside, [key]: value } }));
    });
  };

  const resolve = (schema: Schema): Schema => {
    const [first] = schema.allOf ?? [];
    if (first) return resolve(first);
    return schema.$ref === undefined ? schema : schemas[nameOf(schema)]!;
  };

  const sample = (schema: Schema, key: string): unknown => {
    if (key in known) return known[key];
    const { type, format, enum: allowed, items, properties, additionalProperties, required = [] } = resolve(schema);
    if (allowed?.length) return allowed[0];
    if (nameOf(schema).endsWith("Quantity")) return "16Mi";
    if (format === "int-or-string") return 8080;
    if (format === "date-time") return "2026-01-01T00:00:00Z";
    if (type === "string") return "a";
    if (type === "boolean") return true;
    if (type === "integer" || type === "number") return 1;
    if (type === "array") return items ? [sample(items, key)] : [];
    if (properties) return Object.fromEntries(required.map((other) => [other, sample(properties[other]!, other)]));
    return typeof additionalProperties === "object" ? { a: sample(additionalProperties, key) } : {};
  };

  return within({ $ref: name }, depth, []);
}

function nameOf(schema: Schema): string {
  return (schema.$ref ?? schema.allOf?.[0]?.$ref ?? "").split("/").at(-1)!;
}
