import { CoreV1Api, KubeConfig } from "@kubernetes/client-node";
import { waitFor } from "../system/wait.ts";

export interface PodLogsParams {
  namespace: string;
  name: string;
  container: string;
  /** Another pod of the same name is another input. */
  uid: string;
}

/** Seconds for a container that runs to have its first line in the log, and for the kubelet to tell it. */
const FIRST_LINE = 10;

/** Bytes of the log that are taken: it becomes an output of the stack. */
const MOST = 64 * 1024;

/**
 * What a pod's container has printed so far; the kubeconfig is the content. A container that prints nothing gives "".
 * @param seconds how long that is waited for
 * @throws Error what the API server says, if it never gives a log, or that it does not answer
 */
export async function podLogs(params: PodLogsParams, kubeconfig: string, seconds = FIRST_LINE): Promise<string> {
  const config = new KubeConfig();
  config.loadFromString(kubeconfig);
  const api = config.makeApiClient(CoreV1Api);
  const { namespace, name, container } = params;
  // A kubelet that has just been started again may not answer yet.
  let answered = false;
  let failure: Error | undefined;
  const read = async () => {
    try {
      const log = await api.readNamespacedPodLog({ namespace, name, container, limitBytes: MOST });
      answered = true;
      return log || undefined;
    } catch (error) {
      failure = error as Error;
      return undefined;
    }
  };
  const log = await waitFor("the first log line", seconds, read).catch((error: Error) => {
    if (answered) return "";
    throw failure ?? error;
  });
  return log.slice(0, MOST); // whatever the API server makes of the limit
}
