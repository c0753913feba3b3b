import { stringify } from "yaml";
import type { JoiningNode } from "./nodes.ts";
import { inSandbox } from "./paths.ts";
import type { StackConfig } from "./schema.ts";

/**
 * The server's config file, in k3s's own keys (k3s's docs, "Configuration File"): both distributions read it.
 * A change takes effect by a restart of the server, which running pods survive.
 * @param agent whether there is a kubelet, and so a container runtime
 * @param disable what of the server's own addons is switched off, by k3s's names
 */
export function renderNodeConfig(
  name: string,
  address: string,
  options: StackConfig["node"],
  agent: boolean,
  disable: string[] = [],
): string {
  const lists = {
    disable,
    "node-label": Object.entries(options.labels).map(([key, value]) => `${key}=${value}`),
    "kubelet-arg": [...(agent ? imageCollection(options) : []), ...options.kubeletArgs],
    "kube-apiserver-arg": options.apiServerArgs,
    "kube-controller-manager-arg": options.controllerManagerArgs,
    "kube-scheduler-arg": options.schedulerArgs,
  };
  return stringify(
    {
      "data-dir": inSandbox.nodeData,
      "node-name": name,
      "node-ip": address,
      "bind-address": address,
      "https-listen-port": options.httpsListenPort,
      "write-kubeconfig": inSandbox.kubeconfig,
      "write-kubeconfig-mode": "0600",
      "cluster-cidr": options.clusterCidr,
      "service-cidr": options.serviceCidr,
      "cluster-dns": options.clusterDns,
      "cluster-domain": options.clusterDomain,
      ...(agent
        ? // A path, not an address: k3s gives it to cAdvisor as well, as it is (pkg/daemons/agent/agent_linux.go).
          { "container-runtime-endpoint": inSandbox.containerdSocket, "resolv-conf": "/etc/resolv.conf" }
        : { "disable-agent": true }),
      // Without netfilter none of these can work in gVisor, and the embedded server does not have them.
      "flannel-backend": "none",
      "disable-kube-proxy": true,
      "disable-network-policy": true,
      "disable-helm-controller": true,
      "disable-cloud-controller": true,
      ...Object.fromEntries(Object.entries(lists).filter(([, values]) => values.length > 0)),
    },
    { version: "1.1" },
  ); // which is what the server reads: a node named "on" or "no" would be a truth value
}

/**
 * The config file of a node that joins a server, in k3s's own keys for an agent. A change takes effect by a restart of
 * the kubelet, which running pods survive.
 * @param server the API server's address and port
 * @param told whether the server tells it the cluster's networks, as k3s' does, whose agent has no keys for them
 */
export function renderJoinConfig(
  { name, labels, taints }: Pick<JoiningNode, "name" | "labels" | "taints">,
  address: string,
  server: string,
  options: StackConfig["node"],
  told = false,
): string {
  const networks = {
    "service-cidr": options.serviceCidr,
    "cluster-cidr": options.clusterCidr,
    "cluster-dns": options.clusterDns,
    "cluster-domain": options.clusterDomain,
  };
  const lists = {
    "node-label": Object.entries(labels).map(([key, value]) => `${key}=${value}`),
    "node-taint": taints,
    "kubelet-arg": [...imageCollection(options), ...options.kubeletArgs],
  };
  return stringify(
    {
      server: `https://${server}`,
      "token-file": inSandbox.joinToken,
      "data-dir": inSandbox.nodeData,
      "node-name": name,
      "node-ip": address,
      ...(told ? {} : networks),
      "container-runtime-endpoint": inSandbox.containerdSocket,
      "resolv-conf": "/etc/resolv.conf",
      ...Object.fromEntries(Object.entries(lists).filter(([, values]) => values.length > 0)),
    },
    { version: "1.1" },
  );
}

/** When the kubelet deletes images, unless its user's own arguments say that. */
function imageCollection({ pruneImagesAt: percent, kubeletArgs }: StackConfig["node"]): string[] {
  if (kubeletArgs.some((argument) => argument.startsWith("image-gc-"))) return [];
  if (percent === null || percent === 100) return ["image-gc-high-threshold=100"]; // which is never
  return [`image-gc-high-threshold=${percent}`, `image-gc-low-threshold=${Math.max(0, percent - 5)}`];
}

/**
 * The kubelet's settings that gVisor asks for, as a drop-in over k3s's own (k3s's docs, "Advanced options",
 * kubelet.conf.d, from v1.32 on). The embedded server has the same, and why, in node/server/kubelet.go,
 * but for the limits of local storage: with them k3s' kubelet asks cAdvisor at its start for the root file system's size,
 * of which it knows nothing in gVisor, and ends.
 */
export function renderKubeletConfig(): string {
  return stringify({
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    kind: "KubeletConfiguration",
    cgroupDriver: "cgroupfs",
    failCgroupV1: false,
    cgroupsPerQOS: true,
    enforceNodeAllocatable: ["none"],
    localStorageCapacityIsolation: false,
    // They are merged key by key: no threshold of k3s' own stays that is not named. 0% is none (kubelet, pkg/eviction).
    evictionHard: { "memory.available": "12%", "imagefs.available": "0%", "nodefs.available": "0%" },
    failSwapOn: false,
    makeIPTablesUtilChains: false,
  });
}
