/**
 * Keeps what Node.js compiles, as the steps do it too: Pulumi's packages are most of a command's start. Imported first,
 * because an import is compiled before the next one is run.
 * @module
 */
import { enableCompileCache } from "node:module";
import { setFlagsFromString } from "node:v8";
import { compileCacheFolder } from "../system/folders.ts";

// Pulumi's SDK sets this flag when it is loaded (runtime/closure/v8.js), and V8 takes code that was cached under other
// flags for another's. With it from the start, what is loaded before and after that is cached under the same.
setFlagsFromString("--allow-natives-syntax");
enableCompileCache(compileCacheFolder());
