/**
 * What an upgrade of Kubernetes has to leave as it is: a pod that was there, what is in its volume, and an object of a
 * kind that the cluster's user has brought.
 */
import { expect } from "vitest";
import { stringify } from "yaml";
import { identity, kubectl, kubectlProcess } from "./harness.ts";

const kind = { plural: "notes", singular: "note", kind: "Note", group: "vers.example" };

const objects = (image: string) => [
  {
    apiVersion: "apiextensions.k8s.io/v1",
    kind: "CustomResourceDefinition",
    metadata: { name: `${kind.plural}.${kind.group}` },
    spec: {
      group: kind.group,
      names: { plural: kind.plural, singular: kind.singular, kind: kind.kind },
      scope: "Namespaced",
      versions: [
        {
          name: "v1",
          served: true,
          storage: true,
          schema: { openAPIV3Schema: { type: "object", properties: { text: { type: "string" } } } },
        },
      ],
    },
  },
  {
    apiVersion: "v1",
    kind: "PersistentVolumeClaim",
    metadata: { name: "data" },
    spec: { accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Mi" } } },
  },
  {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "keeper" },
    spec: {
      terminationGracePeriodSeconds: 1,
      containers: [
        { name: "main", image, imagePullPolicy: "Never", volumeMounts: [{ name: "data", mountPath: "/data" }] },
      ],
      volumes: [{ name: "data", persistentVolumeClaim: { claimName: "data" } }],
    },
  },
];

const note = { apiVersion: `${kind.group}/v1`, kind: kind.kind, metadata: { name: "kept" }, text: "of before" };

/**
 * Makes it on a cluster.
 * @param image one with a shell, that is on the node
 * @returns what looks whether all of it is there still, and nothing of it was made anew
 */
export async function makeWorkload(name: string, image: string): Promise<() => Promise<void>> {
  const apply = async (...made: object[]) =>
    await kubectlProcess(name, ["apply", "--filename=-"], {
      input: made.map((object) => stringify(object)).join("---\n"),
    });
  await apply(...objects(image));
  await kubectl(name, "wait", `crd/${kind.plural}.${kind.group}`, "--for=condition=Established", "--timeout=60s");
  await apply(note);
  await kubectl(name, "wait", "pod/keeper", "--for=condition=Ready", "--timeout=120s");
  await kubectl(name, "exec", "keeper", "--", "/bin/sh", "-c", "echo of before > /data/note");
  const pods = ["keeper", "testpod"];
  const before = await Promise.all(pods.map((pod) => identity(name, pod)));
  return async () => {
    await kubectl(name, "wait", ...pods.map((pod) => `pod/${pod}`), "--for=condition=Ready", "--timeout=120s");
    expect(await Promise.all(pods.map((pod) => identity(name, pod)))).toEqual(before);
    expect(await kubectl(name, "exec", "keeper", "--", "/bin/cat", "/data/note")).toBe("of before");
    expect(await kubectl(name, "get", kind.plural, "kept", "-o=jsonpath={.text}")).toBe("of before");
    expect(await kubectl(name, "get", "pvc", "data", "-o=jsonpath={.status.phase}")).toBe("Bound");
  };
}
