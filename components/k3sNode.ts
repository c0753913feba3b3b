import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import * as pulumi from "@pulumi/pulumi";
import { digest } from "../artifacts/artifacts.ts";
import { renderNodeConfig } from "../config/nodeYaml.ts";
import type { StackConfig } from "../config/schema.ts";
import { distributionOf } from "../servers/index.ts";
import type { ClientRef, ServerRef } from "../servers/server.ts";
import type { ContainerdConfig } from "./containerdConfig.ts";
import { lift } from "./inputs.ts";
import type { PodNetwork } from "./podNetwork.ts";
import type { Sandbox } from "./sandbox.ts";

export interface K3sNodeArgs {
  sandbox: Sandbox;
  /** What its kubelet runs pods with. Without it there is no kubelet: the node is a control plane alone. */
  runtime?: { containerd: ContainerdConfig; network: PodNetwork } | undefined;
  /** The options of the cluster: those named `node`, `distribution`, `k3s` and `addons` say what the server is. */
  config: StackConfig;
  /** What the server's config file says in place of the options `node`, where some of these are outputs. */
  options?: pulumi.Input<StackConfig["node"]>;
}

/** What a node takes of its distribution, and the step that downloads it, if anything is downloaded. */
export function programsOf(name: string, sandbox: Sandbox, config: StackConfig, parent: pulumi.Resource) {
  const { download, ...takes } = distributionOf(config).takes(config);
  const { version, mirror, airgap } = config.k3s;
  const args = { step: "k3s", params: { release: { version, mirror, airgap } } } as const;
  const downloads = download ? [sandbox.step(`${name}-download`, "cache", args, parent)] : [];
  return { takes, downloads };
}

/**
 * The Kubernetes server, with a config file in k3s's own keys; a change of it restarts the server, which running pods
 * survive. The API is served while containerd is still made ready; the node is there when it is Ready.
 */
export class K3sNode extends pulumi.ComponentResource {
  /** What runs as the server, and what is taken for kubectl. */
  readonly server: ServerRef;
  /** What asks its API, which is the same for another version of the server. */
  readonly client: ClientRef;
  /** Whether it has a kubelet. */
  readonly runsPods: boolean;
  /** Whether the server has this project's controllers in it. */
  readonly hasControllers: boolean;
  /** A hash of the server's config file. */
  readonly revision: pulumi.Input<string>;
  /** The admin's kubeconfig, a secret; it works from the host. */
  readonly kubeconfig: pulumi.Output<string>;
  /** The kubeconfig's file on the host, mode 0600. */
  readonly kubeconfigPath: string;

  constructor(name: string, args: K3sNodeArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:K3sNode", name, {}, options);
    const { sandbox, runtime, config, options: late = config.node } = args;
    const { address } = sandbox;
    const distribution = distributionOf(config);
    this.runsPods = runtime !== undefined;
    this.hasControllers = distribution.hasControllers;
    this.server = distribution.refOf(config);
    this.client = { distribution: this.server.distribution, kubectl: this.server.kubectl };
    this.kubeconfigPath = sandbox.kubeconfigPath;
    const { takes, downloads } = programsOf(name, sandbox, config, this);
    const disabled = distribution.disabled(config);
    const content = lift(late, (node) => renderNodeConfig(sandbox.ref.name, address, node, this.runsPods, disabled));
    this.revision = lift(content, digest);
    const files = this.#files(`${name}-files`, args);
    const { settings } = distribution;
    const read = [...(files ? [files.hash] : []), ...(settings === undefined ? [] : [digest(settings)])].join("-");
    const stage = runtime ? "api" : "node";
    const params = { server: this.server, takes, stage, ...(read === "" ? {} : { files: read }) } as const;
    const below = runtime ? [runtime.containerd, runtime.network] : [];
    const server = sandbox.step(
      `${name}-server`,
      "memory",
      { step: "server", params, content },
      this,
      sandbox,
      ...(distribution.awaitsRuntime ? [] : below),
      ...downloads,
      ...(files ? [files.step] : []),
    );
    if (runtime) {
      const ready = { step: "ready", params: { server: this.server }, restsOn: "network" } as const;
      sandbox.step(`${name}-ready`, "memory", ready, this, server, ...below);
    }
    // A command of its own: a change of the server's config leaves the kubeconfig known, and with it all that is made
    // through it.
    const { stdout } = sandbox.step(
      `${name}-kubeconfig`,
      "disk",
      { step: "kubeconfig", params: { address, port: config.node.httpsListenPort }, secretOutput: true },
      this,
      server,
    );
    this.kubeconfig = pulumi.secret(stdout);
    this.registerOutputs({ kubeconfig: this.kubeconfig });
  }

  /** The user's files that the server reads, and a hash of them. */
  #files(name: string, { sandbox, config }: K3sNodeArgs): { step: pulumi.Resource; hash: string } | undefined {
    const paths = Object.keys(config.node.files).sort();
    if (paths.length === 0) return undefined;
    const contents = paths.map((path) => [path, readFileSync(config.node.files[path]!, "utf8")]);
    const content = JSON.stringify(Object.fromEntries(contents));
    const hash = createHash("sha256").update(content).digest("hex");
    const args = { step: "files", undo: "files-remove", params: { paths } } as const;
    return { step: sandbox.step(name, "disk", { ...args, content: pulumi.secret(content) }, this, sandbox), hash };
  }
}
