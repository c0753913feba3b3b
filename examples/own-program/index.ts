/**
 * The components in a Pulumi program of one's own: a control plane in a gVisor sandbox, with a manifest that is kept
 * applied. The order of making is that of the arguments: each component's steps depend on the components that it is
 * given.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { K3sNode, Manifest, parseStackConfig, preflight, Sandbox } from "gvisor-k3s";

const config = parseStackConfig({ name: "ex-own", mode: "control-plane", sandbox: { memory: "1Gi" } });
preflight(config);

const sandbox = new Sandbox("sandbox", { config });
const node = new K3sNode("node", { sandbox, config });
new Manifest("team", {
  sandbox,
  node,
  manifest: "team",
  content: readFileSync(join(import.meta.dirname, "team.yaml"), "utf8"),
  after: [],
});

export const kubeconfigPath = node.kubeconfigPath;
/** A secret: Pulumi shows it to nobody who does not ask for secrets. */
export const kubeconfig = node.kubeconfig;
