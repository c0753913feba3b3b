/**
 * Builds artifacts: `node toolchain/build.ts [NAME ...]`, by default all that a sandbox takes; what is built already
 * takes no time.
 *
 *     --print                     builds nothing, and prints the folder of each
 *     --patch ID                  with this patch, which may be given several times; for one artifact
 *     --manifest                  builds nothing but the file of the steps, and prints the path of the manifest
 *     --try-patch ID NAME         prints what `patch` says of a patch that does not apply to the pinned source
 * @module
 */
import { existsSync } from "node:fs";
import { parseArgs } from "node:util";
import { type ArtifactName, artifactFolder, usualArtifacts } from "../artifacts/artifacts.ts";
import { writeWhole } from "../system/files.ts";
import { bundledSteps } from "./bundle.ts";
import { artifactNames, build, patchRefusal } from "./make.ts";
import { manifestOf } from "./manifest.ts";

const { values, positionals: wanted } = parseArgs({
  allowPositionals: true,
  options: {
    print: { type: "boolean", default: false },
    patch: { type: "string", multiple: true, default: [] },
    manifest: { type: "boolean", default: false },
    "try-patch": { type: "string" },
  },
});
try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}

async function main(): Promise<void> {
  const unknown = wanted.filter((name) => !artifactNames.includes(name as ArtifactName));
  if (unknown.length > 0) throw new Error(`no artifact ${unknown.join(", ")}; there are ${artifactNames.join(", ")}`);
  process.env.GVISOR_K3S_MANIFEST = await writeManifest();
  const names = wanted.length > 0 ? (wanted as ArtifactName[]) : usualArtifacts;
  if (values.manifest) console.log(process.env.GVISOR_K3S_MANIFEST);
  else if (values["try-patch"] !== undefined) console.log(patchRefusal(names[0]!, values["try-patch"]) ?? "");
  else if (values.print) for (const name of names) console.log(artifactFolder({ name }));
  else await buildAll(names, values.patch);
}

/** Writes the manifest of what the sources are now; its name tells its content. */
async function writeManifest(): Promise<string> {
  const { file, content } = manifestOf(await bundledSteps());
  if (!existsSync(file)) await writeWhole(file, content, 0o644);
  return file;
}

async function buildAll(names: readonly ArtifactName[], patches: string[]): Promise<void> {
  const artifacts = names.map((name) => (patches.length > 0 ? { name, patches } : { name }));
  const missing = artifacts.filter((artifact) => !existsSync(artifactFolder(artifact)));
  const built = artifacts.filter((artifact) => !missing.includes(artifact)).map(({ name }) => name);
  if (built.length > 0) console.log(`built already: ${built.join(", ")}`);
  for (const [index, artifact] of missing.entries()) {
    const start = Date.now();
    const seconds = () => `${((Date.now() - start) / 1000).toFixed(0)} s`;
    const step = `[${index + 1}/${missing.length}] ${artifact.name}`;
    const progress = setInterval(() => console.log(`${step}: still building, ${seconds()}`), 15_000);
    try {
      const folder = await build(artifact, (line) => console.log(`${step}: ${line}`));
      console.log(`${step}: ${folder} (${seconds()})`);
    } catch (error) {
      throw new Error(`${step}: ${(error as Error).message}`, { cause: error });
    } finally {
      clearInterval(progress);
    }
  }
}
