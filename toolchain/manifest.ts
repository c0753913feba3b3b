/**
 * The manifest of a checkout. It is loaded in any process of the project, and at once: nothing here waits.
 * @module
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { digest } from "../artifacts/artifacts.ts";
import { cacheFolder } from "../system/folders.ts";
import { stepsFile } from "./bundle.ts";
import { currentManifest } from "./make.ts";

/** What the sources make now, and its file, whose name tells its content. */
export function manifestOf(steps: string | undefined): { file: string; content: string } {
  const content = JSON.stringify({ ...currentManifest(), steps }, null, 2);
  return { file: join(cacheFolder(), "manifests", `${digest(content)}.json`), content };
}

/** The manifest's file, if that and the file of the steps are made. */
export function madeManifest(): string | undefined {
  const steps = stepsFile();
  if (steps !== undefined && !existsSync(steps)) return undefined;
  const { file } = manifestOf(steps);
  return existsSync(file) ? file : undefined;
}
