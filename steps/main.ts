/**
 * What the stack's commands run: `node steps/main.ts STEP`, with the step's parameters as JSON in the variable
 * STEP_PARAMS and, where it has one, the file that it is about on standard input.
 *
 * Where GVISOR_K3S_STEPS names the steps as one file, that is loaded in place of their sources, which takes longer; see
 * toolchain/bundle.ts.
 * @module
 */
import { extname } from "node:path";
import { pathToFileURL } from "node:url";

const bundle = process.env.GVISOR_K3S_STEPS;
const { main } = (await import(
  bundle ? pathToFileURL(bundle).href : `./steps${extname(import.meta.filename)}`
)) as typeof import("./steps.ts");
await main();
// Ended, and not left to end: what somebody in the sandbox keeps open is not waited for. Pipes are written to at once.
process.exit();
