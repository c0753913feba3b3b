import { CoreV1Api, KubeConfig } from "@kubernetes/client-node";
import { waitFor } from "./wait.ts";

export interface PodLogsParams {
  namespace: string;
  name: string;
  container: string;
  /** Another pod of the same name is another input. */
  uid: string;
}

/** Seconds for a container that runs to have its first line in the log. */
const FIRST_LINE = 10;

/**
 * What a pod's container has printed so far; the kubeconfig comes on standard input. A container that prints nothing
 * gives "".
 */
export async function podLogs(params: PodLogsParams, kubeconfig: string): Promise<string> {
  const config = new KubeConfig();
  config.loadFromString(kubeconfig);
  const api = config.makeApiClient(CoreV1Api);
  const read = () =>
    api.readNamespacedPodLog({ namespace: params.namespace, name: params.name, container: params.container });
  return await waitFor("the first log line", FIRST_LINE, async () => (await read()) || undefined).catch(
    async () => await read(),
  );
}
