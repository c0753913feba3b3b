/** A whole cluster: its parts in the order of their integration. */
import { readFileSync } from "node:fs";
import * as pulumi from "@pulumi/pulumi";
import { addonImages, programOf, wanted } from "../artifacts/artifacts.ts";
import { type JoiningNode as Joining, joiningNodes, nodesOf } from "../config/nodes.ts";
import { InputError } from "../config/problems.ts";
import type { QuirkId } from "../config/quirks.ts";
import { CRUN, manifestName, parseStackConfig, type StackConfig } from "../config/schema.ts";
import { withFiles } from "../config/stackConfig.ts";
import type { Observed } from "../machines/observe.ts";
import { kubeconfigOfExternal } from "../servers/external.ts";
import { preflight } from "../steps/preflight.ts";
import { readFile } from "../system/files.ts";
import { ClusterDns } from "./clusterDns.ts";
import { ContainerdConfig } from "./containerdConfig.ts";
import { Crun } from "./crun.ts";
import { Images } from "./images.ts";
import { Ingress } from "./ingress.ts";
import { type ClusterArgs, type LateConfig, splitInputs } from "./inputs.ts";
import { JoiningNode } from "./joiningNode.ts";
import { K3sNode } from "./k3sNode.ts";
import { KernelFacade } from "./kernelFacade.ts";
import { Manifest } from "./manifest.ts";
import { MetricsServer } from "./metricsServer.ts";
import { NodeControllers } from "./nodeControllers.ts";
import { PatchedRunc } from "./patchedRunc.ts";
import { PodNetwork } from "./podNetwork.ts";
import { QuirkProbe } from "./quirkProbe.ts";
import { RuntimeWrapper } from "./runtimeWrapper.ts";
import { observeAll, Sandbox } from "./sandbox.ts";
import { ServiceProxy } from "./serviceProxy.ts";
import { TestPod } from "./testPod.ts";

export type { ClusterArgs } from "./inputs.ts";

/**
 * A cluster with all its parts, described by the options of a stack. The name of a part begins with the cluster's.
 * What only shapes the content of files may be outputs, as a whole or in parts: `registries`, `proxy`, arguments and labels
 * of `node`, and more; an error names all. A secret of the program's configuration stays one.
 * @throws RunError that lists everything that is wrong with the options, before anything is made
 */
export class Cluster extends pulumi.ComponentResource {
  /** The kubeconfig, a secret. */
  readonly kubeconfig: pulumi.Output<string>;
  /** The kubeconfig's file. */
  readonly kubeconfigPath: string;
  /** The node's address, which the host reaches; an external cluster has none. */
  readonly address: string | undefined;
  /** The ids of what the sandbox's gVisor lacks. */
  readonly quirks: pulumi.Output<QuirkId[]> | undefined;
  /** The test pod: its name, its phase, and what it printed. */
  readonly testPod: TestPodState | undefined;

  constructor(name: string, args: ClusterArgs = {}, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Cluster", name, {}, options);
    const { plain, late } = told(() => splitInputs({ name, ...args }));
    const config = checkedConfig(withFiles(plain, readFile));
    const scope = { own: (part: string) => `${name}-${part}`, under: { parent: this } };
    const made = clusterParts(config, scope, late(config));
    ({
      kubeconfig: this.kubeconfig,
      kubeconfigPath: this.kubeconfigPath,
      address: this.address,
      quirks: this.quirks,
      testPod: this.testPod,
    } = made);
    this.registerOutputs({ ...made });
  }
}

/**
 * The options, complete and checked against this machine.
 * @throws RunError that lists everything that is wrong with them: Pulumi prints its message alone, and of any other
 *   error also where it was thrown
 */
export function checkedConfig(options: Record<string, unknown>): StackConfig {
  return told(() => {
    const checked = parseStackConfig(options);
    preflight(checked, `${pulumi.getProject()}/${pulumi.getStack()}`);
    return checked;
  });
}

function told<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw error instanceof InputError ? new pulumi.RunError(error.message) : error;
  }
}

/** What the parts are called, and what they are below. */
interface Scope {
  own: (part: string) => string;
  under: pulumi.ComponentResourceOptions;
}

/** What is told of the test pod. */
export interface TestPodState {
  name: pulumi.Output<string>;
  phase: pulumi.Output<string>;
  logs: pulumi.Output<string>;
}

/** What a cluster has to tell; see {@link Cluster}. */
export interface ClusterParts {
  address: string | undefined;
  quirks: pulumi.Output<QuirkId[]> | undefined;
  kubeconfig: pulumi.Output<string>;
  kubeconfigPath: string;
  testPod: TestPodState | undefined;
}

/**
 * Makes the parts of a cluster.
 * @param scope by default the parts are the stack's own
 * @param late what takes the place of these options of `config`
 */
export function clusterParts(
  config: StackConfig,
  scope: Scope = { own: (part) => part, under: {} },
  late: LateConfig = config,
): ClusterParts {
  return config.mode === "external" ? external(config, late, scope) : sandboxed(config, scope, late);
}

const stateOf = (pod: TestPod | undefined): TestPodState | undefined =>
  pod && { name: pod.podName, phase: pod.phase, logs: pod.logs };

/** A cluster that is there already, of which nothing is changed. */
function external(config: StackConfig, late: LateConfig, { own, under }: Scope): ClusterParts {
  const kubeconfig = pulumi.secret(kubeconfigOfExternal(config.external));
  const pod = config.pod.enabled ? new TestPod(own("testpod"), { kubeconfig, pod: late.pod }, under) : undefined;
  return {
    address: undefined,
    quirks: undefined,
    kubeconfig,
    kubeconfigPath: config.external.kubeconfig!,
    testPod: stateOf(pod),
  };
}

/** A cluster of one node in a sandbox. */
function sandboxed(config: StackConfig, scope: Scope, late: LateConfig): ClusterParts {
  const { own, under } = scope;
  // Each part's commands depend on the parts that it is given. The parts themselves do not: runc's build would wait for
  // the sandbox.
  const joining = joiningNodes(config);
  const [observed, ...others] = observeAll(nodesOf(config));
  const sandbox = new Sandbox(own("sandbox"), { config, observed: observed! }, under);
  const probe = new QuirkProbe(own("quirks"), { sandbox, mode: config.mode, quirks: config.quirks }, under);
  const containerd = config.mode === "node" ? containerRuntime(config, late, scope, sandbox, probe) : undefined;
  const { network, node: options } = config;
  const connected = containerd && { sandbox, containerd, network, clusterCidr: options.clusterCidr };
  const runtime = connected && { ...connected, network: new PodNetwork(own("network"), connected, under) };
  const node = new K3sNode(own("node"), { sandbox, runtime, config, options: late.node }, under);
  let last: JoiningNode | undefined;
  for (const [i, each] of joining.entries()) {
    last = joiningNode(each, others[i]!, late, scope, { sandbox, node }, last);
  }
  const pod = containerd ? workloads(config, late, scope, sandbox, probe, containerd, node) : undefined;
  if (!containerd) applyManifests(config, scope, sandbox, node, []);
  const { address } = sandbox;
  const { kubeconfig, kubeconfigPath } = node;
  return { address, quirks: probe.found, kubeconfig, kubeconfigPath, testPod: stateOf(pod) };
}

/** A node beside the server's: all that it has, but for what the cluster has once. */
function joiningNode(
  node: Joining,
  observed: Promise<Observed>,
  late: LateConfig,
  cluster: Scope,
  server: { sandbox: Sandbox; node: K3sNode },
  after: JoiningNode | undefined,
): JoiningNode {
  const { config } = node;
  const short = node.name.slice(config.joins!.cluster.length + 1);
  const scope = { ...cluster, own: (part: string) => cluster.own(`${short}-${part}`) };
  const { own, under } = scope;
  const sandbox = new Sandbox(own("sandbox"), { config, observed }, under);
  const probe = new QuirkProbe(own("quirks"), { sandbox, mode: config.mode, quirks: config.quirks }, under);
  const containerd = containerRuntime(config, late, scope, sandbox, probe);
  const args = { sandbox, containerd, node, options: late.node, server, ...(after ? { after } : {}) };
  const joined = new JoiningNode(own("node"), args, under);
  images(config, scope, sandbox, containerd);
  new ServiceProxy(own("proxy"), { sandbox, node: server.node, joined, probe, network: config.network }, under);
  return joined;
}

/** What runs containers; a control plane alone has none of it. */
function containerRuntime(
  config: StackConfig,
  { registries, proxy, containerd: options }: LateConfig,
  { own, under }: Scope,
  sandbox: Sandbox,
  probe: QuirkProbe,
): ContainerdConfig {
  const { name, path, patches, rules } = config.runtime;
  const facade = new KernelFacade(own("facade"), { sandbox, probe }, under);
  const binary =
    name === "crun"
      ? new Crun(own("crun"), { sandbox, probe, path: path ?? CRUN }, under)
      : new PatchedRunc(own("runc"), { sandbox, probe, path, patches }, under);
  const runtime = new RuntimeWrapper(own("runtime"), { sandbox, probe, facade, runtime: binary, rules }, under);
  const { containerd, node } = config;
  const direct = [config.sandbox.subnet, node.clusterCidr, node.serviceCidr];
  const args = { sandbox, probe, runtime, containerd, options, registries, proxy, direct };
  return new ContainerdConfig(own("containerd"), args, under);
}

/** What pods take, and what runs in pods. */
function workloads(
  config: StackConfig,
  late: LateConfig,
  scope: Scope,
  sandbox: Sandbox,
  probe: QuirkProbe,
  containerd: ContainerdConfig,
  node: K3sNode,
): TestPod | undefined {
  const { own, under } = scope;
  const { coredns, ingress, metricsServer } = config.addons;
  const imported = images(config, scope, sandbox, containerd);
  const proxy = new ServiceProxy(own("proxy"), { sandbox, node, probe, network: config.network }, under);
  const after = [imported, proxy];
  if (!node.hasControllers) {
    const claims = config.addons.localStorage.enabled;
    new NodeControllers(own("controllers"), { sandbox, node, claims }, under);
  }
  const addon = { sandbox, node, after };
  if (coredns.enabled) new ClusterDns(own("coredns"), { ...addon, domain: config.node, image: coredns.image }, under);
  if (ingress.enabled) new Ingress(own("ingress"), { ...addon, image: ingress.image }, under);
  if (metricsServer.enabled) new MetricsServer(own("metrics-server"), { ...addon, image: metricsServer.image }, under);
  applyManifests(config, scope, sandbox, node, after);
  if (!config.pod.enabled) return undefined;
  return new TestPod(
    own("testpod"),
    { kubeconfig: node.kubeconfig, pod: late.pod, endsWith: sandbox.process },
    { ...under, dependsOn: [node, imported] },
  );
}

/** What pods on a node are made of. */
function images(config: StackConfig, { own, under }: Scope, sandbox: Sandbox, containerd: ContainerdConfig): Images {
  const { coredns, ingress, metricsServer } = config.addons;
  const ours = { coredns, traefik: ingress, "metrics-server": metricsServer };
  const programs = addonImages.filter((addon) => ours[addon].enabled && ours[addon].image === undefined);
  const takes = [...new Set(programs.map((addon) => programOf(addon).name))].map((name) => wanted({ name }));
  const archives = config.images;
  return new Images(own("images"), { sandbox, containerd, archives, programs: takes }, under);
}

/** The user's manifests. */
function applyManifests(
  { manifests }: StackConfig,
  { own, under }: Scope,
  sandbox: Sandbox,
  node: K3sNode,
  after: pulumi.Resource[],
): void {
  for (const path of manifests) {
    const manifest = manifestName(path);
    const content = readFileSync(path, "utf8");
    new Manifest(own(`manifest-${manifest}`), { sandbox, node, manifest, content, after }, under);
  }
}
