import { stringify } from "yaml";

/** What has the API server refuse network policies; see the option `network.policies`. */
export function renderRefusal(): string {
  const [api, name] = ["admissionregistration.k8s.io/v1", "gvisor-k3s-refuse-network-policies"];
  const rule = {
    apiGroups: ["networking.k8s.io"],
    apiVersions: ["*"],
    operations: ["CREATE", "UPDATE"],
    resources: ["networkpolicies"],
  };
  const message = 'this cluster takes no network policies (its option network.policies is "refuse")';
  const objects = [
    {
      apiVersion: api,
      kind: "ValidatingAdmissionPolicy",
      metadata: { name },
      spec: { matchConstraints: { resourceRules: [rule] }, validations: [{ expression: "false", message }] },
    },
    {
      apiVersion: api,
      kind: "ValidatingAdmissionPolicyBinding",
      metadata: { name },
      spec: { policyName: name, validationActions: ["Deny"] },
    },
  ];
  return objects.map((object) => stringify(object)).join("---\n");
}
