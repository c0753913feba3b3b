import { inSandbox } from "../config/paths.ts";
import { ensureService } from "../machines/services.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

export interface ControllersParams extends OnMachine {
  /** The embedded server by its path on the machine. */
  program: string;
  /** Whether claims are bound to folders of the node. */
  claims: boolean;
  /** A hash of the server's config file, which they read too. */
  config: string;
}

/** Seconds after which they are started again: the certificate that they call the API server with is renewed now and then. */
const DAY = 24 * 3600;

/** Has the node's controllers run beside a server that does not have them. */
export const ensureControllers: Step<ControllersParams> = {
  name: () => "controllers",
  async run({ program, claims, config }, context) {
    const command = [program, "beside", "--config", inSandbox.nodeConfig, ...(claims ? ["--claims"] : [])];
    await writeFiles(context, "controllers", [], "controllers");
    const service = { name: "controllers", command, config, stopSeconds: 5, restartEvery: DAY };
    await ensureService(context.machine, service);
  },
};
