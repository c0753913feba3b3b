/**
 * A cluster for a pull request: `pulumi stack init pr-123` names it, `pulumi up` makes it, and `pulumi destroy --remove`
 * leaves nothing when the request is closed. What all of them share comes from another stack (option `shared`): here
 * the registries with their password, which stays a secret on its way into the cluster.
 */
import * as pulumi from "@pulumi/pulumi";
import { Cluster } from "gvisor-k3s";

const shared = new pulumi.StackReference(new pulumi.Config().require("shared"));
const name = pulumi.getStack();

export const { kubeconfig, kubeconfigPath } = new Cluster(name, {
  registries: shared.requireOutput("registries"),
  node: { labels: { "example.com/pull-request": name } },
  pod: { enabled: false },
});
