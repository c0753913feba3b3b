/**
 * What the package says of itself.
 * @module
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** This project's package.json. */
export const ownPackage = JSON.parse(readFileSync(join(import.meta.dirname, "../package.json"), "utf8")) as {
  name: string;
  version: string;
  description: string;
};
