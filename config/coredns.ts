import { stringify } from "yaml";
import type { StackConfig } from "./schema.ts";
import { type ImageOfAddon, systemPod, systemProbes } from "./systemPod.ts";

/** The port that CoreDNS listens on in its pod, and that network policies of other clusters name. */
const PORT = 53;

/**
 * CoreDNS's configuration, after k3s's. What people add goes where k3s has it too: a ConfigMap `coredns-custom` with
 * keys `*.override` (lines of this server) and `*.server` (servers of their own).
 */
export function renderCorefile(clusterDomain: string): string {
  return `.:${PORT} {
    errors
    health
    ready
    kubernetes ${clusterDomain} in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    prometheus :9153
    import /etc/coredns-custom/*.override
    forward . /etc/resolv.conf
    cache 30
    loop
    reload
    loadbalance
}
import /etc/coredns-custom/*.server
`;
}

/**
 * The manifest of the cluster's DNS. Names and labels are those of every other cluster (kube-system, kube-dns), which
 * tools look for.
 * @param image CoreDNS's image
 */
export function renderCoreDns(
  image: ImageOfAddon,
  options: Pick<StackConfig["node"], "clusterDomain" | "clusterDns">,
): string {
  const labels = { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" };
  const name = (extra: object = {}) => ({ name: "coredns", namespace: "kube-system", labels, ...extra });
  const role = { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "system:coredns" };
  const objects = [
    { apiVersion: "v1", kind: "ServiceAccount", metadata: name() },
    {
      apiVersion: "rbac.authorization.k8s.io/v1",
      kind: "ClusterRole",
      metadata: { name: role.name },
      rules: [
        { apiGroups: [""], resources: ["endpoints", "services", "pods", "namespaces"], verbs: ["list", "watch"] },
        { apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list", "watch"] },
      ],
    },
    {
      apiVersion: "rbac.authorization.k8s.io/v1",
      kind: "ClusterRoleBinding",
      metadata: { name: role.name },
      roleRef: role,
      subjects: [{ kind: "ServiceAccount", name: "coredns", namespace: "kube-system" }],
    },
    {
      apiVersion: "v1",
      kind: "ConfigMap",
      metadata: name(),
      data: { Corefile: renderCorefile(options.clusterDomain) },
    },
    {
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: name(),
      spec: {
        replicas: 1,
        strategy: { type: "RollingUpdate", rollingUpdate: { maxUnavailable: 0 } },
        selector: { matchLabels: { "k8s-app": "kube-dns" } },
        template: { metadata: { labels }, spec: podSpec(image) },
      },
    },
    {
      apiVersion: "v1",
      kind: "Service",
      metadata: {
        ...name({ name: "kube-dns" }),
        annotations: { "prometheus.io/scrape": "true", "prometheus.io/port": "9153" },
      },
      spec: {
        clusterIP: options.clusterDns,
        selector: { "k8s-app": "kube-dns" },
        ports: [
          { name: "dns", port: 53, targetPort: PORT, protocol: "UDP" },
          { name: "dns-tcp", port: 53, targetPort: PORT, protocol: "TCP" },
          { name: "metrics", port: 9153, protocol: "TCP" },
        ],
      },
    },
  ];
  return objects.map((object) => stringify(object)).join("---\n");
}

function podSpec(image: ImageOfAddon) {
  const probe = (port: number, path: string) => ({ httpGet: { port, path } });
  return systemPod(
    {
      name: "coredns",
      image,
      args: ["-conf", "/etc/coredns/Corefile"],
      // A port below 1024 takes a privilege, and only root keeps one that a pod adds.
      securityContext: {
        runAsUser: 0,
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ["ALL"], add: ["NET_BIND_SERVICE"] },
      },
      resources: { limits: { memory: "170Mi" }, requests: { cpu: "100m", memory: "70Mi" } },
      ports: [
        { name: "dns", containerPort: PORT, protocol: "UDP" },
        { name: "dns-tcp", containerPort: PORT, protocol: "TCP" },
        { name: "metrics", containerPort: 9153, protocol: "TCP" },
      ],
      ...systemProbes(probe(8181, "/ready"), probe(8080, "/health")),
    },
    [
      { name: "config", mountPath: "/etc/coredns", readOnly: true, configMap: { name: "coredns" } },
      {
        name: "custom",
        mountPath: "/etc/coredns-custom",
        readOnly: true,
        configMap: { name: "coredns-custom", optional: true },
      },
    ],
    { dnsPolicy: "Default" }, // the node's upstreams, not itself
  );
}
