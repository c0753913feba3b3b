import { type StackConfig, stackSchema, unwrap } from "../config/schema.ts";

const SCALARS = new Set(["string", "number", "boolean"]);

/**
 * Pulumi's schema of the package (https://www.pulumi.com/docs/iac/extending-pulumi/schema/). The component's inputs are
 * the stack's options. What is in a group is left to this project's own checks: they tell every problem at once, and
 * Pulumi's not even which option is wrong.
 */
export function packageSchema(version: string): object {
  const inputProperties = Object.entries(stackSchema.shape).map(([option, schema]) => {
    const { type } = unwrap(schema).def;
    const name: keyof StackConfig = option as keyof StackConfig;
    const form =
      SCALARS.has(type) || type === "enum" ? { type: type === "enum" ? "string" : type } : { $ref: "pulumi.json#/Any" };
    return [
      name,
      {
        ...form,
        description: schema.description ?? `The options \`${option}.*\`; see docs/options.md of this project.`,
      },
    ];
  });
  const text = { type: "string" };
  const properties = {
    kubeconfig: { ...text, secret: true, description: "The kubeconfig." },
    kubeconfigPath: { ...text, description: "The kubeconfig's file." },
    address: { ...text, description: "The node's address, which the host reaches; an external cluster has none." },
    quirks: { type: "array", items: text, description: "The ids of what the sandbox's gVisor lacks." },
    testPod: { $ref: "pulumi.json#/Any", description: "The test pod: its name, its phase, and its logs." },
  };
  return {
    name: "gvisor-k3s",
    version,
    resources: {
      "gvisor-k3s:index:Cluster": {
        isComponent: true,
        description: "A cluster with all its parts, described by the options of a stack.",
        inputProperties: Object.fromEntries(inputProperties),
        properties,
        required: ["kubeconfig", "kubeconfigPath"],
      },
    },
  };
}
