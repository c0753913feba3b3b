import { stringify } from "yaml";
import { type ImageOfAddon, systemPod, systemProbes } from "./systemPod.ts";

const PORT = 10443;

/**
 * The manifest of metrics-server, after upstream's own. Other than there, the kubelet's certificate is verified: it is
 * signed by the CA that every pod has.
 * @param image metrics-server's image
 */
export function renderMetricsServer(image: ImageOfAddon): string {
  const labels = { "k8s-app": "metrics-server" };
  const name = (extra: object = {}) => ({ name: "metrics-server", namespace: "kube-system", labels, ...extra });
  const rbac = "rbac.authorization.k8s.io";
  const subjects = [{ kind: "ServiceAccount", name: "metrics-server", namespace: "kube-system" }];
  const binding = (kind: string, metadata: object, role: { kind: string; name: string }) => ({
    apiVersion: `${rbac}/v1`,
    kind,
    metadata,
    roleRef: { apiGroup: rbac, ...role },
    subjects,
  });
  const role = (metadata: object, rules: object[]) => ({
    apiVersion: `${rbac}/v1`,
    kind: "ClusterRole",
    metadata,
    rules,
  });
  const aggregated = Object.fromEntries(["view", "edit", "admin"].map((to) => [`${rbac}/aggregate-to-${to}`, "true"]));
  const objects = [
    { apiVersion: "v1", kind: "ServiceAccount", metadata: name() },
    role({ name: "system:aggregated-metrics-reader", labels: { ...labels, ...aggregated } }, [
      { apiGroups: ["metrics.k8s.io"], resources: ["pods", "nodes"], verbs: ["get", "list", "watch"] },
    ]),
    role({ name: "system:metrics-server", labels }, [
      { apiGroups: [""], resources: ["nodes/metrics"], verbs: ["get"] },
      { apiGroups: [""], resources: ["pods", "nodes"], verbs: ["get", "list", "watch"] },
    ]),
    binding("RoleBinding", name({ name: "metrics-server-auth-reader" }), {
      kind: "Role",
      name: "extension-apiserver-authentication-reader",
    }),
    binding(
      "ClusterRoleBinding",
      { name: "metrics-server:system:auth-delegator", labels },
      { kind: "ClusterRole", name: "system:auth-delegator" },
    ),
    binding(
      "ClusterRoleBinding",
      { name: "system:metrics-server", labels },
      { kind: "ClusterRole", name: "system:metrics-server" },
    ),
    {
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: name(),
      spec: {
        replicas: 1,
        strategy: { type: "RollingUpdate", rollingUpdate: { maxUnavailable: 0 } },
        selector: { matchLabels: labels },
        template: { metadata: { labels }, spec: podSpec(image) },
      },
    },
    {
      apiVersion: "v1",
      kind: "Service",
      metadata: name(),
      spec: {
        selector: labels,
        ports: [{ name: "https", port: 443, targetPort: "https", protocol: "TCP", appProtocol: "https" }],
      },
    },
    {
      apiVersion: "apiregistration.k8s.io/v1",
      kind: "APIService",
      metadata: { name: "v1beta1.metrics.k8s.io", labels },
      // Its certificate is its own, made anew at each start.
      spec: {
        group: "metrics.k8s.io",
        version: "v1beta1",
        service: { name: "metrics-server", namespace: "kube-system" },
        insecureSkipTLSVerify: true,
        groupPriorityMinimum: 100,
        versionPriority: 100,
      },
    },
  ];
  return objects.map((object) => stringify(object)).join("---\n");
}

function podSpec(image: ImageOfAddon) {
  const probe = (path: string) => ({ httpGet: { path, port: "https", scheme: "HTTPS" } });
  return systemPod(
    {
      name: "metrics-server",
      image,
      args: [
        `--secure-port=${PORT}`,
        "--cert-dir=/tmp",
        "--kubelet-preferred-address-types=InternalIP",
        "--kubelet-use-node-status-port",
        "--kubelet-certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
        "--metric-resolution=15s",
      ],
      resources: { requests: { cpu: "100m", memory: "70Mi" } },
      ports: [{ name: "https", containerPort: PORT, protocol: "TCP" }],
      // It has something to tell from its second look at the node on, a second or two after its start, for which
      // nothing else waits.
      ...systemProbes(probe("/readyz?exclude=metric-storage-ready"), probe("/livez")),
    },
    [{ name: "tmp", mountPath: "/tmp", emptyDir: {} }],
  );
}
