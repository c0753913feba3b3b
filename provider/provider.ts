import * as pulumi from "@pulumi/pulumi";
import { main } from "@pulumi/pulumi/provider/index.js";
import { Cluster } from "../components/cluster.ts";
import { keptOutput } from "../components/inputs.ts";
import { TestPod } from "../components/testPod.ts";
import { InputError } from "../config/problems.ts";
import { parseStackConfig } from "../config/schema.ts";
import { ownPackage } from "../system/package.ts";
import { packageSchema } from "./schema.ts";

const { version } = ownPackage;

// Not awaited: it ends with the engine.
void main(
  {
    version,
    getSchema: async () => JSON.stringify(packageSchema(version)),
    async construct(name, type, inputs, options) {
      if (type === "gvisor-k3s:index:TestPod") return podState(name, inputs, options);
      const cluster = new Cluster(name, await known(inputs), options);
      const { urn, kubeconfig, kubeconfigPath, address, quirks, testPod } = cluster;
      return { urn, state: { kubeconfig, kubeconfigPath, address, quirks, testPod } };
    },
  },
  process.argv.slice(2),
);

function podState(name: string, { kubeconfig, ...given }: pulumi.Inputs, options: pulumi.ComponentResourceOptions) {
  const pod = pulumi.output(given).apply((known) => parseStackConfig({ name: "pod", pod: known }).pod);
  const { urn, podName, phase, logs } = new TestPod(name, { kubeconfig: kubeconfig as string, pod }, options);
  return { urn, state: { podName, phase, logs } };
}

/**
 * Whether a value is known, and the value; neither is part of the SDK's types, and without them a preview would wait
 * for the unknown for ever.
 */
type Inner = pulumi.Output<unknown> & {
  isKnown: Promise<boolean>;
  isSecret: Promise<boolean>;
  promise(withUnknowns: boolean): Promise<unknown>;
};

/**
 * Inputs as plain values, but for what is secret or not known yet, of options that may be outputs.
 * @throws InputError that names every option that is not known in a preview
 */
async function known(inputs: pulumi.Inputs): Promise<Record<string, unknown>> {
  const given = await Promise.all(
    Object.entries(inputs).map(async ([option, value]) => {
      const output = pulumi.output(value) as Inner;
      const isKnown = await output.isKnown;
      if (isKnown && !(await output.isSecret)) return { option, known: true, value: await output.promise(true) };
      const kept = keptOutput(option, output, isKnown ? await output.promise(true) : undefined);
      return { option, known: kept !== undefined, value: kept };
    }),
  );
  const unknown = given.filter(({ known }) => !known);
  if (unknown.length > 0)
    throw new InputError(
      unknown.map(({ option }) => ({
        option,
        message: "it must be known before anything is made; give a value, or one of the program's configuration",
      })),
    );
  return Object.fromEntries(given.map(({ option, value }) => [option, value]));
}
