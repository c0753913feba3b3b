import { openServer } from "../servers/index.ts";
import { notedServer, noteReady } from "../servers/ready.ts";
import type { ServerRef } from "../servers/server.ts";
import type { OnMachine, Step } from "./step.ts";

export interface ReadyParams extends OnMachine {
  server: ServerRef;
}

/**
 * Waits until the server's node is Ready, which takes containerd and the network. Where a network that was lost is back,
 * the node itself is asked: it was Ready before.
 * @throws Error with what is missing and the end of the server's log
 */
export const awaitNode: Step<ReadyParams> = {
  name: () => "ready",
  async run({ server }, { machine, below = 0 }) {
    const noted = notedServer(machine.ref);
    await openServer(server).reached(machine, "node", noted?.config ?? "", below > 0);
    if (noted?.awaitsNode) await noteReady(machine.ref, { ...noted, awaitsNode: undefined });
  },
};
