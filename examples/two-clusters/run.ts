/**
 * Two clusters side by side, as functions: what is made in one is not in the other. `node run.ts`, with
 * `Pulumi.ex-one.yaml` and `Pulumi.ex-two.yaml` in the folder that it runs in.
 */

import { execa } from "execa";
import { destroy, kubectl, list, Progress, readConfig, up } from "gvisor-k3s";

const names = ["ex-one", "ex-two"];
const progress = new Progress();
const ask = async (name: string, ...args: string[]) => {
  const [program, ...first] = await kubectl(await readConfig(name), (line) => progress.say(line));
  return (await execa(program, [...first, ...args])).stdout;
};

try {
  for (const name of names) await up(name, { progress });
  await ask("ex-one", "create", "namespace", "only-here");
  const namespaces = await Promise.all(names.map((name) => ask(name, "get", "namespaces", "--output=name")));
  const [here, there] = namespaces.map((text) => text.includes("namespace/only-here"));
  if (!here || there) throw new Error(`the clusters are not apart: ${namespaces.join(" and ")}`);
  progress.say(
    `${list()
      .map(({ name, state }) => `${name} is ${state}`)
      .join(", ")}; they are apart`,
  );
} finally {
  for (const name of names) await destroy(name, { progress });
}
