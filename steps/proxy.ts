import { inSandbox } from "../config/paths.ts";
import { ensureService, serviceGives } from "../machines/services.ts";
import { openClient } from "../servers/index.ts";
import type { ClientRef } from "../servers/server.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

export interface ProxyParams extends OnMachine {
  server: ClientRef;
  /** The proxy by its path on the machine. */
  proxy: string;
  /** The node's link to its pods. */
  link: string;
  /** The node's address, where node ports are served. */
  address: string;
  /** Whether the sandbox's gVisor can filter what pods send. */
  filters: boolean;
}

/** What the proxy notes of itself: its process, and since when every Service is served. */
const status = `${inSandbox.nodeData}/server/service-proxy.json`;

/** Seconds for the proxy to know every Service. */
const PATIENCE = 60;

/** Has the proxy run, and waits until it knows every Service. */
export const ensureProxy: Step<ProxyParams> = {
  name: () => "proxy",
  async run({ server, proxy, link, address, filters }, context) {
    const { machine } = context;
    const options = {
      kubeconfig: openClient(server).proxyKubeconfig,
      node: machine.ref.name,
      link,
      "node-addresses": `${address},127.0.0.1`,
      "host-ports": inSandbox.hostPorts,
      policies: inSandbox.policies,
      status,
    };
    const words = Object.entries(options).flatMap(([name, value]) => [`-${name}`, value]);
    const command = [proxy, ...words, ...(filters ? [] : ["-no-filter"])];
    await writeFiles(context, "proxy", [], "proxy");
    await ensureService(machine, { name: "proxy", command, config: "", stopSeconds: 5 });
    await serviceGives(machine, "proxy", { file: status, key: "synced" }, PATIENCE);
  },
};
