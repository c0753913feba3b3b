/**
 * What the conformance tests are counted by, and chosen by.
 * @module
 */

/** Upstream's own tests of network policies, which are no part of conformance. */
export const NETWORK_POLICIES = "network policies";

/** The tests of all groups, by their labels in ginkgo's words. */
export const labels = "Conformance || Feature:NetworkPolicy";

/** A test is in the first group that takes it. The names have no comma in them, which separates them in a list. */
const groups: Record<string, { match: RegExp; usual?: true }> = {
  services: { match: /^\[sig-network\] Services/, usual: true },
  dns: { match: /^\[sig-network\] DNS/, usual: true },
  pods: {
    match:
      /^\[sig-node\] (Pods|InitContainer|Containers|Variable Expansion|Container Lifecycle Hook|PodTemplates|PreStop)/,
    usual: true,
  },
  kubelet: { match: /^\[sig-node\] Kubelet/, usual: true },
  probes: { match: /^\[sig-node\] Probing/, usual: true },
  "container runtime": { match: /^\[sig-node\] Container Runtime/, usual: true },
  "config maps": { match: /^\[sig-(node|storage)\] ConfigMap/, usual: true },
  secrets: { match: /^\[sig-(node|storage)\] Secrets/, usual: true },
  projected: { match: /^\[sig-storage\] Projected/, usual: true },
  "downward API": { match: /^\[sig-(node|storage)\] Downward API/, usual: true },
  "emptyDir volumes": { match: /^\[sig-storage\] (EmptyDir volumes|Subpath)/, usual: true },
  [NETWORK_POLICIES]: { match: /^\[sig-network\] Netpol / },
  "other network": { match: /^\[sig-network\]/ },
  "other node": { match: /^\[sig-node\]/ },
  "other storage": { match: /^\[sig-storage\]/ },
  apps: { match: /^\[sig-apps\]/ },
  "API machinery": { match: /^\[sig-api-machinery\]/ },
  auth: { match: /^\[sig-auth\]/ },
  kubectl: { match: /^\[sig-cli\]/ },
  scheduling: { match: /^\[sig-scheduling\]/ },
  other: { match: /./ },
};

/** The groups' names, in the order of the table. */
export const groupNames: readonly string[] = Object.keys(groups);

/** The groups of a run that nobody chose for. */
export const usualGroups: readonly string[] = groupNames.filter((name) => groups[name]!.usual);

/** The group that a test is in, by its full name on one line. */
export function groupOf(test: string): string {
  return groupNames.find((name) => groups[name]!.match.test(test))!;
}

/**
 * The groups that a user asks for.
 * @param text `all`, or names with commas between them; the usual ones by default
 * @throws Error that names what is no group, and the groups that there are
 */
export function groupsOf(text?: string): readonly string[] {
  if (text === "all") return groupNames;
  if (!text) return usualGroups;
  const asked = text.split(",").map((name) => name.trim());
  const unknown = asked.filter((name) => !groupNames.includes(name));
  if (unknown.length > 0)
    throw new Error(
      `--groups: there is no group ${unknown.join(", ")}; allowed are all, or some of: ${groupNames.join(", ")}`,
    );
  return asked;
}
