import type { Wanted } from "../artifacts/artifacts.ts";
import { conflistPath, renderConflist } from "../config/conflist.ts";
import { contains, parseNetwork } from "../config/network.ts";
import { inSandbox } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import type { Machine } from "../machines/machine.ts";
import { ensureService, serviceGives } from "../machines/services.ts";
import { openServer } from "../servers/index.ts";
import type { Invitation, ServerRef } from "../servers/server.ts";
import { provideTo } from "./runtime.ts";
import type { OnMachine, Step } from "./step.ts";
import { writeFiles } from "./write.ts";

export interface JoinParams extends OnMachine {
  /** What its kubelet is of. */
  server: ServerRef;
  takes: { artifacts: Wanted[]; own: { source: string; name: string }[] };
  invitation: Invitation;
  network: StackConfig["network"];
  clusterCidr: string;
  /** The node's address. */
  address: string;
}

/** What the kubelet's process notes of its start; see node/server/join.go. */
const stages = `${inSandbox.nodeData}/agent/stages.json`;

/** Seconds for the node to be registered, and to be Ready. */
const PATIENCE = 120;

/**
 * Has a kubelet run that joins the server of its config (the content), gives its pods the network that the server chose,
 * and waits until the node is Ready.
 * @throws Error with the end of the kubelet's log if it is not
 */
export const joinServer: Step<JoinParams> = {
  name: () => "join",
  async run({ server, takes, invitation, network, clusterCidr, address }, context) {
    const { machine, content: config, repairs, say } = context;
    await provideTo(machine, takes, say);
    const opened = openServer(server);
    const { service, files } = opened.agent(config, invitation);
    await writeFiles(context, "join", files, "agent");
    await ensureService(machine, {
      ...service,
      config: `${files.map(({ content }) => content).join()}${repairs}`,
    });
    await serviceGives(machine, "agent", { file: stages, key: "pods" }, PATIENCE);
    const pods = podNetworkIn(await machine.read(stages), clusterCidr);
    const conflist = { path: conflistPath, content: renderConflist(network, pods, address), mode: 0o644 };
    await writeFiles(context, "join", [...files, conflist], "agent");
    await nodeReady(machine);
    await opened.tidy?.(machine);
  },
};

/**
 * Waits until the kubelet that runs has its node Ready.
 * @throws Error with the end of its log if it has not
 */
export const nodeReady = (machine: Machine): Promise<void> =>
  serviceGives(machine, "agent", { file: stages, key: "nodeReady" }, PATIENCE);

/**
 * The network of the node's pods, of what its kubelet's process has noted.
 * @throws Error if that is none within the cluster's
 */
function podNetworkIn(noted: string | undefined, clusterCidr: string): string {
  const { pods } = JSON.parse(noted ?? "{}") as { pods?: unknown };
  const network = typeof pods === "string" ? parseNetwork(pods) : undefined;
  if (network === undefined || !contains(parseNetwork(clusterCidr)!, pods!.toString().split("/")[0]!)) {
    throw new Error(`the network that the server gave the node for its pods is none of ${clusterCidr}`);
  }
  return network.cidr;
}
