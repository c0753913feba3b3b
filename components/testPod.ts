import * as kubernetes from "@pulumi/kubernetes";
import * as pulumi from "@pulumi/pulumi";
import { imageName } from "../artifacts/artifacts.ts";
import type { StackConfig } from "../config/schema.ts";
import { lift } from "./inputs.ts";
import { command } from "./step.ts";

export interface TestPodArgs {
  /** A kubeconfig with the right to create pods and read their logs. */
  kubeconfig: pulumi.Input<string>;
  pod: pulumi.Input<Omit<StackConfig["pod"], "enabled">>;
  /** The resource with which the cluster, and so the pod, ends. */
  endsWith?: pulumi.Resource;
}

/** A pod that shows that the cluster works: it is awaited until it is Ready, and what it printed is an output. */
export class TestPod extends pulumi.ComponentResource {
  /** The pod's name. */
  readonly podName: pulumi.Output<string>;
  /** Running, once the component is made. */
  readonly phase: pulumi.Output<string>;
  /** What the container had printed when it became Ready. */
  readonly logs: pulumi.Output<string>;

  constructor(name: string, args: TestPodArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:TestPod", name, {}, options);
    // Pulumi does not hand what a component depends on to what is in it.
    const after = options?.dependsOn === undefined ? {} : { dependsOn: options.dependsOn };
    const ends = { parent: this, ...(args.endsWith ? { deletedWith: args.endsWith } : {}) };
    // A preview of a sandbox that is dead finds no cluster, which is no ground to fail: the update starts it before it
    // gets here. And a pod that an interrupted update made, and did not live to note, is taken over; one whose cluster
    // is gone is gone with it.
    const provider = new kubernetes.Provider(
      `${name}-provider`,
      {
        kubeconfig: args.kubeconfig,
        skipUpdateUnreachable: true,
        deleteUnreachable: true,
        upsertExistingObjects: true,
      },
      { parent: this },
    );
    const container = "main";
    const namespace = lift(args.pod, (pod) => pod.namespace);
    const pod = new kubernetes.core.v1.Pod(
      `${name}-pod`,
      {
        metadata: { name, namespace },
        spec: { containers: [lift(args.pod, (pod) => ({ name: container, ...containerOf(pod) }))] },
      },
      { ...ends, ...after, provider, deleteBeforeReplace: true },
    );
    this.podName = pod.metadata.name;
    this.phase = pod.status.phase;
    // The pod's uid is an input, so that another pod's log is read anew.
    const log = command(
      `${name}-logs`,
      "pod-logs",
      { namespace, name: this.podName, container, uid: pod.metadata.uid },
      { content: args.kubeconfig },
      { ...ends, dependsOn: pod },
    );
    this.logs = log.stdout;
    this.registerOutputs({ podName: this.podName, phase: this.phase, logs: this.logs });
  }
}

/** This project's own image is there already, and answers when it is ready. */
function containerOf({ image, args }: Pick<StackConfig["pod"], "image" | "args">) {
  if (image) return { image, args };
  const readinessProbe = { httpGet: { path: "/healthz", port: 8080 }, periodSeconds: 1 };
  return { image: imageName("testpod"), args, imagePullPolicy: "Never", readinessProbe };
}
