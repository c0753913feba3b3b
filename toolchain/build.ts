/**
 * `node toolchain/build.ts [--print] [NAME ...]` builds the named artifacts, or all that a sandbox takes; what is built
 * already takes no time. With `--print` it builds nothing and prints the folder of each.
 */
import { existsSync } from "node:fs";
import { parseArgs } from "node:util";
import { type ArtifactName, artifactFolder, artifactNames, build, usualArtifacts } from "./artifacts.ts";

const { values, positionals: wanted } = parseArgs({
  allowPositionals: true,
  options: { print: { type: "boolean", default: false } },
});
const unknown = wanted.filter((name) => !artifactNames.includes(name as ArtifactName));
if (unknown.length > 0) {
  console.error(`no artifact ${unknown.join(", ")}; there are ${artifactNames.join(", ")}`);
  process.exit(1);
}
const names = wanted.length > 0 ? (wanted as ArtifactName[]) : usualArtifacts;
if (values.print) {
  for (const name of names) console.log(artifactFolder({ name }));
  process.exit();
}
const missing = names.filter((name) => !existsSync(artifactFolder({ name })));
if (missing.length < names.length)
  console.log(`built already: ${names.filter((name) => !missing.includes(name)).join(", ")}`);
for (const [index, name] of missing.entries()) {
  const start = Date.now();
  const seconds = () => `${((Date.now() - start) / 1000).toFixed(0)} s`;
  const step = `[${index + 1}/${missing.length}] ${name}`;
  const progress = setInterval(() => console.log(`${step}: still building, ${seconds()}`), 15_000);
  try {
    const folder = await build({ name }, (line) => console.log(`${step}: ${line}`));
    console.log(`${step}: ${folder} (${seconds()})`);
  } catch (error) {
    console.error(`${step}: ${error instanceof Error ? error.message : String(error)}`);
    process.exitCode = 1;
    break;
  } finally {
    clearInterval(progress);
  }
}
