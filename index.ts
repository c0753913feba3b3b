/** The Pulumi program: it reads the stack's configuration and makes the parts in the order of their integration. */
import { readFileSync } from "node:fs";
import * as pulumi from "@pulumi/pulumi";
import { ClusterDns } from "./components/clusterDns.ts";
import { ContainerdConfig } from "./components/containerdConfig.ts";
import { Crun } from "./components/crun.ts";
import { Egress } from "./components/egress.ts";
import { Images } from "./components/images.ts";
import { K3sNode } from "./components/k3sNode.ts";
import { KernelFacade } from "./components/kernelFacade.ts";
import { Manifest } from "./components/manifest.ts";
import { MetricsServer } from "./components/metricsServer.ts";
import { PatchedRunc } from "./components/patchedRunc.ts";
import { PodNetwork } from "./components/podNetwork.ts";
import { QuirkProbe } from "./components/quirkProbe.ts";
import { RuntimeWrapper } from "./components/runtimeWrapper.ts";
import { Sandbox } from "./components/sandbox.ts";
import { ServiceProxy } from "./components/serviceProxy.ts";
import { TestPod } from "./components/testPod.ts";
import { externalKubeconfig } from "./config/external.ts";
import { InputError } from "./config/problems.ts";
import type { QuirkId } from "./config/quirks.ts";
import { CRUN, manifestName, needsEgress, parseStackConfig, type StackConfig } from "./config/schema.ts";
import { readStackConfig } from "./config/stackConfig.ts";
import { preflight } from "./steps/preflight.ts";

const config = checkedConfig();

const cluster = config.mode === "external" ? external() : sandboxed();

/** A cluster that is there already, of which nothing is changed. */
function external(): Cluster {
  const kubeconfig = pulumi.secret(externalKubeconfig(config.external));
  const pod = config.pod.enabled ? new TestPod("testpod", { kubeconfig, pod: config.pod }) : undefined;
  return { kubeconfig, kubeconfigPath: config.external.kubeconfig!, pod };
}

/** A cluster of one node in a sandbox. */
function sandboxed(): Cluster {
  // Each part's commands depend on the parts that it is given. The parts themselves do not: their builds would wait for the sandbox.
  const hasEgress = needsEgress(config);
  const sandbox = new Sandbox("sandbox", { ...config, egress: hasEgress });
  const egress = hasEgress ? new Egress("egress", { sandbox, clusterCidr: config.node.clusterCidr }) : undefined;
  const probe = new QuirkProbe("quirks", { sandbox, mode: config.mode, quirks: config.quirks });
  const containerd = config.mode === "node" ? containerRuntime(sandbox, probe) : undefined;
  const node = new K3sNode("node", { ...config, sandbox, containerd });
  const pod = containerd ? workloads(sandbox, egress, node) : undefined;
  if (!containerd) for (const [manifest, content] of manifests()) new Manifest(`manifest-${manifest}`, { sandbox, node, manifest, content, after: [] });
  return { address: sandbox.address, quirks: probe.found, kubeconfig: node.kubeconfig, kubeconfigPath: node.kubeconfigPath, pod };
}

/** What runs containers; a control plane alone has none of it. */
function containerRuntime(sandbox: Sandbox, probe: QuirkProbe): ContainerdConfig {
  const { name, path, patches, rules } = config.runtime;
  const facade = new KernelFacade("facade", { sandbox, probe });
  const binary = name === "crun" ? new Crun("crun", { probe, path: path ?? CRUN }) : new PatchedRunc("runc", { probe, path, patches });
  const runtime = new RuntimeWrapper("runtime", { sandbox, probe, facade, runtime: binary, rules });
  const { containerd, registries, proxy, node } = config;
  return new ContainerdConfig("containerd", { sandbox, probe, runtime, containerd, registries, proxy, direct: [config.sandbox.subnet, node.clusterCidr, node.serviceCidr] });
}

/** What pods take, and what runs in pods. */
function workloads(sandbox: Sandbox, egress: Egress | undefined, node: K3sNode): TestPod | undefined {
  const network = new PodNetwork("network", { sandbox, node, network: config.network, clusterCidr: config.node.clusterCidr });
  const images = new Images("images", { sandbox, node, archives: config.images });
  const proxy = new ServiceProxy("proxy", { sandbox, node, link: config.network.bridge });
  const reachable = egress ? [network, egress] : [network];
  const after = [...reachable, images, proxy];
  const { coredns, metricsServer } = config.addons;
  if (coredns.enabled) new ClusterDns("coredns", { sandbox, node, domain: config.node, image: coredns.image, after });
  if (metricsServer.enabled) new MetricsServer("metrics-server", { sandbox, node, image: metricsServer.image, after });
  for (const [manifest, content] of manifests()) new Manifest(`manifest-${manifest}`, { sandbox, node, manifest, content, after });
  if (!config.pod.enabled) return undefined;
  return new TestPod("testpod", { kubeconfig: node.kubeconfig, pod: config.pod, endsWith: sandbox.process }, { dependsOn: [...reachable, images] });
}

/** The user's manifests: their names, and what is in them. */
function manifests(): [name: string, content: string][] {
  return config.manifests.map((path) => [manifestName(path), readFileSync(path, "utf8")]);
}

function checkedConfig(): StackConfig {
  try {
    const checked = parseStackConfig(readStackConfig(pulumi.runtime.allConfig(), pulumi.getProject(), pulumi.getStack()));
    preflight(checked);
    return checked;
  } catch (error) {
    // Pulumi prints the message of this error, and of any other also where it was thrown, which tells a user nothing.
    throw error instanceof InputError ? new pulumi.RunError(error.message) : error;
  }
}

/** What the stack's outputs are made of. */
interface Cluster {
  address?: string;
  quirks?: pulumi.Output<QuirkId[]>;
  kubeconfig: pulumi.Output<string>;
  kubeconfigPath: string;
  pod: TestPod | undefined;
}

/** The node's address, which the host reaches; an external cluster has none. */
export const { address } = cluster;
/** The ids of what the sandbox's gVisor lacks; the option `quirks` takes them. */
export const { quirks } = cluster;
/** The kubeconfig's file. */
export const { kubeconfigPath } = cluster;
/** The kubeconfig itself, a secret. */
export const { kubeconfig } = cluster;
/** The test pod: its name, its phase, and what it printed. */
export const testPod = cluster.pod && { name: cluster.pod.podName, phase: cluster.pod.phase, logs: cluster.pod.logs };
