/**
 * The Pulumi program: it reads the stack's configuration and makes the cluster, whose parts and their order are in
 * components/cluster.ts.
 */
import * as pulumi from "@pulumi/pulumi";
import { checkedConfig, clusterParts } from "./components/cluster.ts";
import { readStackConfig } from "./config/stackConfig.ts";
import { readFile } from "./system/files.ts";

const config = checkedConfig(
  readStackConfig(pulumi.runtime.allConfig(), pulumi.getProject(), pulumi.getStack(), readFile),
);
const cluster = clusterParts(config);

/** The node's address, which the host reaches; an external cluster has none. */
export const { address } = cluster;
/** The ids of what the sandbox's gVisor lacks; the option `quirks` takes them. */
export const { quirks } = cluster;
/** The kubeconfig's file. */
export const { kubeconfigPath } = cluster;
/** The kubeconfig itself, a secret. */
export const { kubeconfig } = cluster;
/** The test pod: its name, its phase, and what it printed. */
export const { testPod } = cluster;
