import { stringify } from "yaml";
import { type ImageOfAddon, systemPod, systemProbes } from "./systemPod.ts";

/** The ports that Traefik listens on in its pod, by the names of its entry points: below 1024 it would need a privilege. */
const PORTS = { traefik: 8080, web: 8000, websecure: 8443 };

/**
 * The manifest of Traefik, after what k3s makes of Traefik's chart: names, the class `traefik`, and that it is the
 * default one. It serves objects of Kubernetes' own; Traefik's own kinds are not installed.
 * @param image Traefik's image
 */
export function renderIngress(image: ImageOfAddon): string {
  const labels = { "app.kubernetes.io/name": "traefik" };
  const name = { name: "traefik", namespace: "kube-system", labels };
  const role = { apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "system:traefik" };
  const read = ["get", "list", "watch"];
  const objects = [
    { apiVersion: "v1", kind: "ServiceAccount", metadata: name },
    {
      apiVersion: "rbac.authorization.k8s.io/v1",
      kind: "ClusterRole",
      metadata: { name: role.name, labels },
      // After Traefik's documentation of its provider kubernetesIngress.
      rules: [
        { apiGroups: [""], resources: ["services", "secrets", "nodes"], verbs: read },
        { apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list", "watch"] },
        { apiGroups: ["networking.k8s.io"], resources: ["ingresses", "ingressclasses"], verbs: read },
        { apiGroups: ["networking.k8s.io"], resources: ["ingresses/status"], verbs: ["update"] },
      ],
    },
    {
      apiVersion: "rbac.authorization.k8s.io/v1",
      kind: "ClusterRoleBinding",
      metadata: { name: role.name, labels },
      roleRef: role,
      subjects: [{ kind: "ServiceAccount", name: "traefik", namespace: "kube-system" }],
    },
    {
      apiVersion: "networking.k8s.io/v1",
      kind: "IngressClass",
      metadata: { name: "traefik", labels, annotations: { "ingressclass.kubernetes.io/is-default-class": "true" } },
      spec: { controller: "traefik.io/ingress-controller" },
    },
    {
      apiVersion: "apps/v1",
      kind: "Deployment",
      metadata: name,
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
      metadata: name,
      spec: {
        type: "LoadBalancer",
        selector: labels,
        ports: [
          { name: "web", port: 80, targetPort: "web", protocol: "TCP" },
          { name: "websecure", port: 443, targetPort: "websecure", protocol: "TCP" },
        ],
      },
    },
  ];
  return objects.map((object) => stringify(object, { aliasDuplicateObjects: false })).join("---\n");
}

function podSpec(image: ImageOfAddon) {
  const ping = { httpGet: { path: "/ping", port: "traefik" } };
  return systemPod(
    {
      name: "traefik",
      image,
      args: [
        ...Object.entries(PORTS).map(([name, port]) => `--entrypoints.${name}.address=:${port}/tcp`),
        "--entrypoints.websecure.http.tls=true",
        "--ping=true",
        "--providers.kubernetesingress=true",
        "--providers.kubernetesingress.allowemptyservices=true", // 503 while a Service has no pods, and not 404
        "--providers.kubernetesingress.ingressendpoint.publishedservice=kube-system/traefik",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
      ],
      resources: { requests: { cpu: "50m", memory: "64Mi" } },
      ports: Object.entries(PORTS).map(([name, port]) => ({ name, containerPort: port, protocol: "TCP" })),
      ...systemProbes(ping, ping),
    },
    [{ name: "tmp", mountPath: "/tmp", emptyDir: {} }],
  );
}
