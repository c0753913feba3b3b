import { conflistPath } from "../config/conflist.ts";
import { serviceStates } from "../machines/services.ts";
import { openServer } from "../servers/index.ts";
import { lastReady } from "../servers/ready.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

/**
 * Writes the CNI conflist (the content) where containerd watches for it. Where that was lost under a server that runs,
 * this waits until the node is Ready again.
 */
export const ensureNetwork: Step<OnMachine> = {
  name: () => "network",
  async run(_, context) {
    const { machine, content, repairs } = context;
    await writeFiles(context, "network", [{ path: conflistPath, content, mode: 0o644 }]);
    const last = lastReady(machine.ref);
    if (repairs === 0 || last === undefined || !(await serviceStates(machine)).server) return;
    await openServer({ ...last, kubectl: last.kubectl ?? last.server }).reached(machine, "node", last.config, true);
  },
};
