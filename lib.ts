/**
 * The library: the components for a Pulumi program of your own, the options with their checks, and what the command
 * does as functions.
 *
 * A component's steps depend on the components that it is given, so the order of their making is that of their
 * arguments.
 * @module
 */

export type { Change } from "./automation/changes.ts";
export {
  type Cluster as ClusterReport,
  destroy,
  importArchives,
  kubectl,
  type Pruned,
  preview,
  previewDestroy,
  pruneImages,
  refresh,
  type Upgrade,
  up,
  upgrade,
} from "./automation/cluster.ts";
export { doctor, type Report } from "./automation/doctor.ts";
export { type ForkOptions, fork } from "./automation/fork.ts";
export { type Listed, list } from "./automation/list.ts";
export { Progress } from "./automation/progress.ts";
export {
  deleteSnapshot,
  listSnapshots,
  pause,
  restoreSnapshot,
  resume,
  saveSnapshot,
  showSnapshot,
} from "./automation/snapshots.ts";
export { type Status, status } from "./automation/status.ts";
export { type KubernetesVersion, kubernetesVersions } from "./automation/versions.ts";
export { readConfig } from "./automation/workspace.ts";
export { Cluster, type ClusterArgs, type TestPodState } from "./components/cluster.ts";
export { ClusterDns, type ClusterDnsArgs } from "./components/clusterDns.ts";
export { ContainerdConfig, type ContainerdConfigArgs } from "./components/containerdConfig.ts";
export { Crun, type CrunArgs } from "./components/crun.ts";
export { Images, type ImagesArgs } from "./components/images.ts";
export { Ingress } from "./components/ingress.ts";
export { JoiningNode, type JoiningNodeArgs } from "./components/joiningNode.ts";
export { K3sNode, type K3sNodeArgs } from "./components/k3sNode.ts";
export { KernelFacade } from "./components/kernelFacade.ts";
export { Manifest, type ManifestArgs } from "./components/manifest.ts";
export { MetricsServer } from "./components/metricsServer.ts";
export { NodeControllers } from "./components/nodeControllers.ts";
export { PatchedRunc, type PatchedRuncArgs } from "./components/patchedRunc.ts";
export { PodNetwork, type PodNetworkArgs } from "./components/podNetwork.ts";
export { QuirkProbe, type QuirkProbeArgs } from "./components/quirkProbe.ts";
export { RuntimeWrapper, type RuntimeWrapperArgs } from "./components/runtimeWrapper.ts";
export { Sandbox, type SandboxArgs } from "./components/sandbox.ts";
export { ServiceProxy } from "./components/serviceProxy.ts";
export { TestPod, type TestPodArgs } from "./components/testPod.ts";
export { InputError, type Problem } from "./config/problems.ts";
export { parseStackConfig, type StackConfig, type StackConfigInput } from "./config/schema.ts";
export type { Snapshot } from "./machines/snapshots.ts";
export { kubeconfigOfExternal } from "./servers/external.ts";
export { preflight } from "./steps/preflight.ts";
