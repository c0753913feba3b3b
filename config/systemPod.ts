/**
 * The probes of an addon. Each costs time of a CPU: often until it is up, seldom from then on. The period of readiness is
 * no longer than a new kubelet has run by then, or that would wait for a random part of it before the first probe
 * (kubelet: prober.worker.run).
 */
export const systemProbes = (ready: object, live: object): object => ({
  startupProbe: { ...ready, periodSeconds: 1, failureThreshold: 120 },
  readinessProbe: { ...structuredClone(ready), periodSeconds: 5 }, // the same object would be an alias in YAML
  livenessProbe: { ...live, periodSeconds: 30, timeoutSeconds: 5 },
});

/** How often Go programs collect garbage: memory is what a sandbox is short of, and these are idle most of the time. */
export const GOGC = "50";

/** An addon's image. */
export interface ImageOfAddon {
  name: string;
  /** Its program by its path on the node, where that is not in the image. */
  program?: string;
}

/**
 * The spec of an addon's pod: one container with no privilege, which outlives what users run.
 * @param container what the container has beside that; its name is its service account's too, and its program's in the
 *   image
 * @param volumes what it has mounted, and where
 * @param more what the pod has beside that
 */
export function systemPod(
  { image, ...container }: { name: string; image: ImageOfAddon; [field: string]: unknown },
  volumes: { name: string; mountPath: string; readOnly?: boolean; [source: string]: unknown }[],
  more: object = {},
): object {
  const { program } = image;
  const path = `/${container.name}`;
  const mounted =
    program === undefined
      ? volumes
      : [{ name: "program", mountPath: path, readOnly: true, hostPath: { path: program, type: "File" } }, ...volumes];
  return {
    serviceAccountName: container.name,
    priorityClassName: "system-cluster-critical",
    tolerations: [
      { key: "CriticalAddonsOnly", operator: "Exists" },
      { key: "node-role.kubernetes.io/control-plane", operator: "Exists", effect: "NoSchedule" },
      // As what runs beside the control plane has it (kubelet: pkg/kubelet/config/common.go): there is no other node that
      // somebody who taints this one could want it on.
      { operator: "Exists", effect: "NoExecute" },
    ],
    containers: [
      {
        image: image.name,
        imagePullPolicy: "IfNotPresent",
        ...(program === undefined ? {} : { command: [path] }),
        securityContext: {
          runAsUser: 65532,
          runAsGroup: 65532,
          runAsNonRoot: true,
          allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true,
          capabilities: { drop: ["ALL"] },
        },
        env: [{ name: "GOGC", value: GOGC }],
        ...container,
        volumeMounts: mounted.map(({ name, mountPath, readOnly }) => ({ name, mountPath, readOnly })),
      },
    ],
    volumes: mounted.map(({ mountPath, readOnly, ...volume }) => volume),
    ...more,
  };
}
