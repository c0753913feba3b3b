/**
 * A cluster and what runs in it, in one program: resources of @pulumi/kubernetes go to the cluster by its kubeconfig, are
 * made once all of it is there, and are removed before it.
 */
import * as kubernetes from "@pulumi/kubernetes";
import * as pulumi from "@pulumi/pulumi";
import { Cluster } from "gvisor-k3s";

const config = new pulumi.Config();
const image = config.get("image") ?? "docker.io/library/nginx:1.29";
const port = config.getNumber("port") ?? 80;

const cluster = new Cluster("ex-web", { pod: { enabled: false } });
const provider = new kubernetes.Provider("ex-web", { kubeconfig: cluster.kubeconfig }, { dependsOn: cluster });

const namespace = new kubernetes.core.v1.Namespace("web", { metadata: { name: "web" } }, { provider });
const metadata = { name: "web", namespace: namespace.metadata.name };
const labels = { app: "web" };
const settings = new kubernetes.core.v1.ConfigMap("web", { metadata, data: { greeting: "hello" } }, { provider });
const deployment = new kubernetes.apps.v1.Deployment(
  "web",
  {
    metadata,
    spec: {
      replicas: 2,
      selector: { matchLabels: labels },
      template: {
        metadata: { labels },
        spec: {
          containers: [
            {
              name: "web",
              image,
              ports: [{ containerPort: port }],
              envFrom: [{ configMapRef: { name: settings.metadata.name } }],
              readinessProbe: { httpGet: { path: "/", port }, periodSeconds: 1 },
            },
          ],
        },
      },
    },
  },
  { provider },
);
const service = new kubernetes.core.v1.Service(
  "web",
  { metadata, spec: { selector: labels, ports: [{ port: 80, targetPort: port }] } },
  { provider, dependsOn: deployment },
);

export const replicas = deployment.status.readyReplicas;
export const address = service.spec.clusterIP;
export const { kubeconfigPath } = cluster;
