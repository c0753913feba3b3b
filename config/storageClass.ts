import { stringify } from "yaml";

/** The StorageClass of k3s, for a server that does not bring it itself; node/server/local-storage.yaml is the same. */
export const renderStorageClass = () =>
  stringify({
    apiVersion: "storage.k8s.io/v1",
    kind: "StorageClass",
    metadata: { name: "local-path", annotations: { "storageclass.kubernetes.io/is-default-class": "true" } },
    provisioner: "rancher.io/local-path",
    reclaimPolicy: "Delete",
    volumeBindingMode: "WaitForFirstConsumer",
  });
