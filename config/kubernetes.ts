/**
 * The versions of Kubernetes that the embedded server is built of: node/server/go.mod pins the newest, and
 * node/server/versions the others.
 * @module
 */

/** The minor versions, the oldest first. */
export const kubernetesMinors = ["1.35", "1.36", "1.37"] as const;

/** A minor version of Kubernetes, as the option `kubernetes` has it. */
export type KubernetesMinor = (typeof kubernetesMinors)[number];

/** What is taken unless another one is asked for. */
export const newestKubernetes = "1.37" satisfies KubernetesMinor;

/** Those that are built only where they are asked for. */
export const olderKubernetes = ["1.35", "1.36"] as const satisfies readonly KubernetesMinor[];

/** The minor version of a version as Kubernetes writes it: "1.37" of "v1.37.2". */
export const minorOf = (version: string): string => version.replace(/^v/, "").split(".").slice(0, 2).join(".");

/** The minor version after that of a version: "1.38" after "v1.37.2". */
export const nextTo = (version: string): string => `1.${numberOf(minorOf(version)) + 1}`;

/** The number of a minor version: 37 of "1.37". */
const numberOf = (minor: string): number => Number(minor.split(".")[1]);

/** How many minor versions a kubelet may be older than its API server (Kubernetes' version skew policy). */
export const KUBELET_SKEW = 3;

/** Whether a kubelet of a minor version is older than an API server of another one can have it. */
export const isTooOld = (minor: string, server: string): boolean => numberOf(server) - numberOf(minor) > KUBELET_SKEW;

/** Whether a minor version is a later one than another. */
export const isNewer = (minor: string, than: string): boolean => numberOf(minor) > numberOf(than);

/**
 * The minor versions that a cluster has to pass on its way, the last of them being where it goes: Kubernetes' version
 * skew policy lets a control plane go up by one at a time. Down, or where it is, there is one.
 */
export function wayTo(from: string, to: KubernetesMinor): KubernetesMinor[] {
  const between = kubernetesMinors.filter(
    (minor) => numberOf(minor) > numberOf(from) && numberOf(minor) <= numberOf(to),
  );
  return between.length > 0 ? between : [to];
}
