/**
 * The steps as one file: of the time that a step takes to load from its sources, more than half goes into finding its
 * two hundred modules.
 * @module
 */
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { artifactsFolder, digest, intoPlace } from "../artifacts/artifacts.ts";
import { root } from "./builds.ts";

const MAIN = join(root, "steps/steps.ts");

/** The folders that have what steps are made of; .dependency-cruiser.json keeps it so. */
const FOLDERS = "{steps,servers,machines,artifacts,config,system}";

/** What npm has installed. */
const PACKAGES = join(root, "node_modules/.package-lock.json");

function sourcesDigest(): string {
  const sources = globSync(`${FOLDERS}/**/*.ts`, { cwd: root }).sort();
  const files = [...sources, "package.json"].map((file) => join(root, file));
  return digest(...[PACKAGES, import.meta.filename, ...files].flatMap((file) => [file, readFileSync(file)]));
}

/** The path of the file of a checkout, made or not; nothing where no packages are installed. */
export function stepsFile(): string | undefined {
  if (!existsSync(PACKAGES)) return undefined;
  return join(artifactsFolder(), `steps-${sourcesDigest()}`, "steps.mjs");
}

/**
 * Makes the file of a checkout, unless it is there.
 * @returns its path, or nothing where what makes it is not installed, as it is for development only
 */
export async function bundledSteps(): Promise<string | undefined> {
  const file = stepsFile();
  if (file !== undefined && !existsSync(file)) {
    const rolldown = await import("rolldown").catch(() => undefined);
    if (rolldown === undefined) return undefined;
    await intoPlace(dirname(file), async (work) => {
      // They look for the rest of the project from where their sources are.
      const here = {
        "import.meta.dirname": JSON.stringify(dirname(MAIN)),
        "import.meta.filename": JSON.stringify(MAIN),
      };
      await bundleSteps(work, here, []);
      if (stepsFile() !== file) throw new Error("the steps' sources were changed meanwhile; run it again");
    });
  }
  return file;
}

/**
 * Makes the file.
 * @param folder gets `steps.mjs`, and beside it what only some steps load
 * @param define expressions by what they replace
 * @param external packages that are not to be in it
 */
export async function bundleSteps(folder: string, define: Record<string, string>, external: string[]): Promise<void> {
  const { rolldown } = await import("rolldown");
  const input = { steps: MAIN };
  const bundle = await rolldown({ input, external, platform: "node", logLevel: "warn", transform: { define } });
  await bundle.write({ dir: folder, format: "esm", entryFileNames: "[name].mjs", chunkFileNames: "steps-[name].mjs" });
  await bundle.close();
}
