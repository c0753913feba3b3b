/**
 * The Pulumi program: it reads the stack's configuration and makes the cluster, whose parts and their order are in
 * components/cluster.ts.
 */
import * as pulumi from "@pulumi/pulumi";
import { checkedConfig, clusterParts } from "./components/cluster.ts";
import { readStackConfig } from "./config/stackConfig.ts";
import { readFile } from "./system/files.ts";

// Pulumi's SDK notes where each of its promises was made, and looks every such place up in source maps, of which this
// program has none: a third of its time.
delete (Error as Partial<ErrorConstructor>).prepareStackTrace;

const config = checkedConfig(
  readStackConfig(pulumi.runtime.allConfig(), pulumi.getProject(), pulumi.getStack(), readFile),
);
const { address, quirks, kubeconfigPath, kubeconfig, testPod } = clusterParts(config);
const outputs = { address, quirks, kubeconfigPath, kubeconfig, testPod };

/**
 * The stack's outputs: the node's address, what the sandbox's gVisor lacks (the option `quirks` takes it), the
 * kubeconfig's file, the kubeconfig itself, which is a secret, and the test pod's name, phase and words. What a cluster
 * of this kind does not have is left out, or Pulumi would warn of it with each `up`.
 */
export default Object.fromEntries(Object.entries(outputs).filter(([, value]) => value !== undefined));
