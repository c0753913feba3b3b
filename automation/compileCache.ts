/**
 * Keeps what Node.js compiles, as the steps do it too: Pulumi's packages are most of a command's start. Imported first,
 * because an import is compiled before the next one is run.
 * @module
 */
import { enableCompileCache } from "node:module";
import { join } from "node:path";
import { cacheFolder } from "../system/folders.ts";

/** The folder of the compiled code. */
export const compileCache = join(cacheFolder(), "node-compile-cache");

enableCompileCache(compileCache);
