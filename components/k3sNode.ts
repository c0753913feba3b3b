import { basename, join } from "node:path";
import * as pulumi from "@pulumi/pulumi";
import { renderNodeConfig } from "../config/nodeYaml.ts";
import { hostPath, inSandbox, sandboxPaths } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import type { SshTarget } from "../config/ssh.ts";
import type { ServerParams } from "../steps/node.ts";
import { nextIncarnation } from "../steps/record.ts";
import { tunnelRevision } from "../steps/tunnel.ts";
import { configuredVersion } from "../steps/upgrade.ts";
import { pathInSandbox, stagedPath } from "../toolchain/artifacts.ts";
import { k3sFolder } from "../toolchain/k3sRelease.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import type { Sandbox } from "./sandbox.ts";
import { type StepResource, step } from "./step.ts";

export interface K3sNodeArgs {
  sandbox: Sandbox;
  /** Without it there is no kubelet: the node is a control plane alone. */
  containerd?: ContainerdConfig | undefined;
  node: StackConfig["node"];
  /** See the option `distribution`. */
  distribution: StackConfig["distribution"];
  /** See the option `k3s`. */
  k3s: StackConfig["k3s"];
  /** See the option `addons`. */
  addons: Pick<StackConfig["addons"], "localStorage">;
}

/**
 * What k3s brings and this project has its own of, or has no use for: there is no netfilter for a load balancer, and
 * Traefik has an image of its own.
 */
const K3S_ADDONS = ["coredns", "metrics-server", "servicelb", "traefik"];

/**
 * The Kubernetes server, with a config file in k3s's own keys; a change of it restarts the server, which running pods
 * survive.
 */
export class K3sNode extends pulumi.ComponentResource {
  /** What runs as the server, and what is taken for kubectl, by their paths in the sandbox. */
  readonly program: Pick<ServerParams, "server" | "kubectl" | "distribution">;
  /** Whether it has a kubelet. */
  readonly runsPods: boolean;
  /** The admin's kubeconfig, a secret; it works from the host, and in the sandbox unless that is on another machine. */
  readonly kubeconfig: pulumi.Output<string>;
  /** The kubeconfig's file on the host, mode 0600. */
  readonly kubeconfigPath: string;

  constructor(name: string, args: K3sNodeArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:K3sNode", name, {}, options);
    const { sandbox, containerd, node, distribution, k3s, addons } = args;
    this.runsPods = containerd !== undefined;
    const embedded = pathInSandbox({ name: "server" }, "gvisor-k3s-node");
    this.program = { server: distribution === "embedded" ? embedded : k3sPath(k3s), kubectl: embedded, distribution };
    this.kubeconfigPath = sandbox.ssh
      ? sandboxPaths(sandbox.ref.name, sandbox.home).kubeconfig
      : hostPath(sandbox.ref, inSandbox.kubeconfig);
    const own = distribution === "k3s" && k3s.path ? [{ source: k3s.path, name: "k3s" }] : [];
    const builds = [sandbox.build(name, { artifacts: [{ name: "server" }], own }, { parent: this })];
    if (distribution === "k3s" && !k3s.path)
      builds.push(
        step(
          `${name}-download`,
          { step: "k3s", params: { ...k3s, ...(sandbox.to ? { to: sandbox.to } : {}) }, ...sandbox.again },
          { parent: this },
        ),
      );
    const disable = [
      ...(distribution === "k3s" ? K3S_ADDONS : []),
      ...(addons.localStorage.enabled ? [] : ["local-storage"]),
    ];
    const server = sandbox.step(
      `${name}-server`,
      {
        step: "server",
        params: { ...sandbox.ref, ...this.program, version: configuredVersion(args) },
        content: renderNodeConfig(sandbox.ref.name, sandbox.address, node, this.runsPods, disable),
        incarnation: sandbox.incarnation,
        repairs: sandbox.repairs("server"),
      },
      sandbox.inside(this, containerd ?? sandbox, ...builds),
    );
    // A command of its own: a change of the server's config leaves the kubeconfig known, and with it all that is made
    // through it. A sandbox that is replaced, which its id tells, has another cluster with other keys; one that is
    // restarted has the same.
    const content = pulumi.interpolate`${sandbox.address}:${node.httpsListenPort} ${sandbox.process.id}`;
    const kubeconfig = sandbox.step(
      `${name}-kubeconfig`,
      { step: "kubeconfig", params: sandbox.ref, secretOutput: true, content, ...sandbox.again },
      sandbox.inside(this, server),
    );
    this.kubeconfig = pulumi.secret(
      sandbox.ssh
        ? this.#throughTunnel(name, sandbox, sandbox.ssh, node.httpsListenPort, kubeconfig)
        : kubeconfig.stdout,
    );
    this.registerOutputs({ kubeconfig: this.kubeconfig });
  }

  /** The kubeconfig of a node on another machine, as it works here. */
  #throughTunnel(
    name: string,
    sandbox: Sandbox,
    ssh: SshTarget,
    port: number,
    kubeconfig: StepResource,
  ): pulumi.Output<string> {
    const params = { name: sandbox.ref.name, home: sandbox.home, ssh, address: sandbox.address, port };
    const incarnation = nextIncarnation(
      { record: sandboxPaths(params.name, params.home).tunnel },
      tunnelRevision(params),
    );
    return step(
      `${name}-tunnel`,
      {
        step: "tunnel",
        undo: "tunnel-remove",
        params,
        content: pulumi.secret(kubeconfig.stdout),
        secretOutput: true,
        incarnation,
      },
      { parent: this, dependsOn: kubeconfig },
    ).stdout;
  }
}

/** k3s by its path in the sandbox. */
function k3sPath(k3s: StackConfig["k3s"]): string {
  return k3s.path ? stagedPath(k3s.path, "k3s") : join(inSandbox.artifacts, basename(k3sFolder(k3s)), "k3s");
}
