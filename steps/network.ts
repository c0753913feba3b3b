import { conflistPath } from "../config/conflist.ts";
import { openServer } from "../servers/index.ts";
import { lastReady } from "../servers/ready.ts";
import type { ServerRef } from "../servers/server.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

/** Writes the CNI conflist (the content) where containerd watches for it, and waits until the node is Ready. */
export const ensureNetwork: Step<OnMachine & { server: ServerRef }> = {
  name: () => "network",
  async run({ server }, context) {
    const { machine, content, repairs } = context;
    await writeFiles(context, "network", [{ path: conflistPath, content, mode: 0o644 }]);
    const config = lastReady(machine.ref)?.config ?? "";
    await openServer(server).reached(machine, "node", config, repairs > 0);
  },
};
