import { addressAt, parseNetwork } from "./network.ts";
import { inSandbox } from "./paths.ts";
import type { StackConfig } from "./schema.ts";

/** Where the conflist lies in the sandbox; containerd takes the first file by name. */
export const conflistPath = `${inSandbox.cniConfig}/10-gvisor-k3s.conflist`;

/**
 * The addresses of the pods of the server's node: the first /24 of the cluster's network, which is what the controller
 * manager gives the first node.
 */
export function podSubnet(clusterCidr: string): string {
  return `${addressAt(parseNetwork(clusterCidr)!, 0)}/24`;
}

/**
 * The CNI configuration of the pod network; it holds for pods that start from now on.
 * @param pods the network of the node's pods
 * @param node the node's address, where pods reach the API server
 */
export function renderConflist(options: StackConfig["network"], pods: string, node: string): string {
  const conflist = {
    cniVersion: "1.1.0",
    name: "gvisor-k3s",
    plugins: [
      {
        type: "gvisor-bridge",
        bridge: options.bridge,
        mtu: options.mtu,
        nodeAddresses: [node],
        hostPorts: inSandbox.hostPorts,
        policies: inSandbox.policies,
        capabilities: { portMappings: true },
        ipam: {
          type: "host-local",
          // A pod's address dies with the sandbox, so its reservation must too: /run is a tmpfs.
          dataDir: "/run/cni",
          ranges: [[{ subnet: pods }]],
          routes: [{ dst: "0.0.0.0/0" }],
        },
      },
    ],
  };
  return `${JSON.stringify(conflist, null, 2)}\n`;
}
