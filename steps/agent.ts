import { openServer } from "../servers/index.ts";
import { lastReady } from "../servers/ready.ts";
import type { ServerRef } from "../servers/server.ts";
import type { OnMachine, Step } from "./step.ts";

/** Waits until the node is Ready, for which it takes the server, containerd and a network. */
export const awaitNode: Step<OnMachine & { server: ServerRef }> = {
  name: () => "agent",
  async run({ server }, { machine }) {
    const config = lastReady(machine.ref)?.config ?? "";
    await openServer(server).reached(machine, "node", config);
  },
};
