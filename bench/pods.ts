import { readFileSync } from "node:fs";
import { CoreV1Api, KubeConfig, type V1Pod, Watch } from "@kubernetes/client-node";
import { imageName } from "../artifacts/artifacts.ts";

/** The label of the pods; its value is the pod's name. */
export const LABEL = "bench";
/** Seconds for a pod to become Ready. */
const PATIENCE = 60;

/**
 * Starts pods one after another and leaves them running.
 * @param first the number of the first
 * @param more what is done with the cluster for each pod, before it is made
 * @returns for each the seconds from the request to the event of a watch that shows it Ready
 */
export async function startPods(
  kubeconfig: string,
  count: number,
  signal: AbortSignal,
  first = 1,
  more: (api: CoreV1Api, pod: string) => Promise<unknown> = async () => {},
): Promise<number[]> {
  const config = new KubeConfig();
  config.loadFromString(readFileSync(kubeconfig, "utf8"));
  const api = config.makeApiClient(CoreV1Api);
  const waiting = new Map<string, () => void>();
  let ended: unknown = "it was closed";
  const watch = await new Watch(config).watch(
    "/api/v1/namespaces/default/pods",
    { labelSelector: LABEL },
    (_type, pod: V1Pod) => {
      if (pod.status?.conditions?.some(({ type, status }) => type === "Ready" && status === "True"))
        waiting.get(pod.metadata!.name!)?.();
    },
    (error) => {
      ended = error ?? ended;
    },
  );
  const took: number[] = [];
  try {
    for (let i = first; i < first + count; i++) {
      signal.throwIfAborted();
      const name = `bench-${i}`;
      await more(api, name);
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      waiting.set(name, resolve);
      const timer = setTimeout(
        () => reject(new Error(`pod ${name} is not Ready after ${PATIENCE} s (the watch: ${ended})`)),
        PATIENCE * 1000,
      );
      const start = performance.now();
      // No probe: a pod is Ready once its container runs.
      await api.createNamespacedPod({
        namespace: "default",
        body: {
          metadata: { name, labels: { [LABEL]: name } },
          spec: { containers: [{ name: "main", image: imageName("testpod"), imagePullPolicy: "Never" }] },
        },
      });
      await promise.finally(() => clearTimeout(timer));
      took.push((performance.now() - start) / 1000);
    }
  } finally {
    watch.abort();
  }
  return took;
}
