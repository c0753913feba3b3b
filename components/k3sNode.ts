import * as pulumi from "@pulumi/pulumi";
import { renderNodeConfig } from "../config/nodeYaml.ts";
import { hostPath, inSandbox } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import { pathInSandbox } from "../toolchain/artifacts.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import type { Sandbox } from "./sandbox.ts";
import { step } from "./step.ts";

export interface K3sNodeArgs {
  sandbox: Sandbox;
  /** Without it there is no kubelet: the node is a control plane alone. */
  containerd?: ContainerdConfig | undefined;
  node: StackConfig["node"];
  /** What of the server's own addons is switched off, by k3s's names: local-storage. */
  disable?: string[];
}

/** The Kubernetes server, with a config file in k3s's own keys; a change of it restarts the server, which running pods survive. */
export class K3sNode extends pulumi.ComponentResource {
  /** The server by its path in the sandbox. */
  readonly server: string;
  /** Whether it has a kubelet. */
  readonly runsPods: boolean;
  /** The admin's kubeconfig, a secret; it works from the host and in the sandbox. */
  readonly kubeconfig: pulumi.Output<string>;
  /** The kubeconfig's file on the host, mode 0600. */
  readonly kubeconfigPath: string;

  constructor(name: string, args: K3sNodeArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:K3sNode", name, {}, options);
    const { sandbox, containerd, node, disable } = args;
    this.runsPods = containerd !== undefined;
    this.server = pathInSandbox({ name: "server" }, "gvisor-k3s-node");
    this.kubeconfigPath = hostPath(sandbox.ref, inSandbox.kubeconfig);
    const build = step(`${name}-build`, { step: "build", params: { artifacts: [{ name: "server" }], own: [] } }, { parent: this });
    const server = step(
      `${name}-server`,
      { step: "server", params: { ...sandbox.ref, server: this.server }, content: renderNodeConfig(sandbox.ref.name, sandbox.address, node, this.runsPods, disable), incarnation: sandbox.incarnation },
      sandbox.inside(this, containerd ?? sandbox, build),
    );
    // A command of its own: a change of the server's config leaves the kubeconfig known, and with it all that is made through it.
    // A sandbox that is replaced, which its id tells, has another cluster with other keys; one that is restarted has the same.
    const content = pulumi.interpolate`${sandbox.address}:${node.httpsListenPort} ${sandbox.process.id}`;
    const kubeconfig = step(`${name}-kubeconfig`, { step: "kubeconfig", params: sandbox.ref, secretOutput: true, content }, sandbox.inside(this, server));
    this.kubeconfig = pulumi.secret(kubeconfig.stdout);
    this.registerOutputs({ kubeconfig: this.kubeconfig });
  }
}
