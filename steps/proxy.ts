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
  /** The node's link to other nodes, of a cluster that has such. */
  mesh?: string;
  /** Whether it goes by the kubelet's credentials: the server, which has others for it, is on another node. */
  joined?: boolean;
}

/** Seconds for the proxy to know every Service. */
const PATIENCE = 60;

/** Has the proxy run, and waits until it knows every Service. */
export const ensureProxy: Step<ProxyParams> = {
  name: () => "proxy",
  async run({ server, proxy, link, address, filters, mesh, joined = false }, context) {
    const { machine } = context;
    // What it notes of itself: its process, and since when every Service is served.
    const status = `${inSandbox.nodeData}/${joined ? "agent" : "server"}/service-proxy.json`;
    const options = {
      kubeconfig: joined ? `${inSandbox.nodeData}/agent/kubelet.kubeconfig` : openClient(server).proxyKubeconfig,
      node: machine.ref.name,
      link,
      "node-addresses": `${address},127.0.0.1`,
      "host-ports": inSandbox.hostPorts,
      policies: inSandbox.policies,
      ...(mesh === undefined ? {} : { "nodes-link": mesh }),
      status,
    };
    const words = Object.entries(options).flatMap(([name, value]) => [`-${name}`, value]);
    const command = [proxy, ...words, ...(filters ? [] : ["-no-filter"])];
    await writeFiles(context, "proxy", [], "proxy");
    await ensureService(machine, { name: "proxy", command, config: "", stopSeconds: 5 });
    await serviceGives(machine, "proxy", { file: status, key: "synced" }, PATIENCE);
  },
};
