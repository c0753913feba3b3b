import { conflistPath } from "../config/conflist.ts";
import { serviceStates } from "../machines/services.ts";
import { openServer } from "../servers/index.ts";
import { lastReady } from "../servers/ready.ts";
import type { ServerRef } from "../servers/server.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

/**
 * Writes the CNI conflist (the content) where containerd watches for it. Where that was lost under a server that runs,
 * this waits until the node is Ready again.
 */
export const ensureNetwork: Step<OnMachine & { server: ServerRef }> = {
  name: () => "network",
  async run({ server }, context) {
    const { machine, content, repairs } = context;
    await writeFiles(context, "network", [{ path: conflistPath, content, mode: 0o644 }]);
    const config = lastReady(machine.ref)?.config;
    if (repairs === 0 || config === undefined || !(await serviceStates(machine)).server) return;
    await openServer(server).reached(machine, "node", config, true);
  },
};
