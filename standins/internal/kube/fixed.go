package kube

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// fixedFields are fields that only a new object can have another value in. "[*]" stands for every element of a list;
// what lies below a field belongs to it.
type fixedFields []string

// identity is what tells an object from the others of its kind.
var identity = fixedFields{"metadata.name", "metadata.namespace"}

// hit reports whether a change touches a fixed field: it lies at or below one, or it adds, removes or exchanges a
// value with one inside.
func (f fixedFields) hit(c *change) bool {
	for _, field := range f {
		if touches(c, strings.Split(strings.ReplaceAll(field, "[*]", ".[*]"), ".")) {
			return true
		}
	}
	return false
}

func touches(c *change, field []string) bool {
	for i, step := range c.path {
		if i == len(field) {
			return true
		}
		if _, index := step.(int); index != (field[i] == "[*]") || !index && step != field[i] {
			return false
		}
	}
	rest := field[min(len(c.path), len(field)):]
	return holds(c.old, rest) || holds(c.new, rest)
}

func holds(value any, field []string) bool {
	if len(field) == 0 {
		return true
	}
	switch value := value.(type) {
	case map[string]any:
		inner, found := value[field[0]]
		return found && holds(inner, field[1:])
	case []any:
		if field[0] == "[*]" {
			for _, element := range value {
				if holds(element, field[1:]) {
					return true
				}
			}
		}
	}
	return false
}

// fixedFieldsOf returns the fields that force a new object of this kind. Changed content of a ConfigMap or Secret makes
// a new one, too, so that what uses it starts again; enableConfigMapMutable and enableSecretMutable turn that off.
func (p *Provider) fixedFieldsOf(object *unstructured.Unstructured) fixedFields {
	fields := slices.Clone(identity)
	kind := object.GroupVersionKind()
	immutable, _, _ := unstructured.NestedBool(object.Object, "immutable")
	switch {
	case kind.Group == "" && kind.Kind == "ConfigMap" && (immutable || !p.settings.enableConfigMapMutable):
		fields = append(fields, "binaryData", "data")
	case kind.Group == "" && kind.Kind == "Secret" && (immutable || !p.settings.enableSecretMutable):
		fields = append(fields, "stringData", "data")
	}
	return append(fields, fixedByKind[kind.GroupKind()]...)
}

var fixedByKind = map[schema.GroupKind]fixedFields{
	{Group: "apps", Kind: "DaemonSet"}:  {"spec.selector"},
	{Group: "apps", Kind: "Deployment"}: {"spec.selector"},
	{Group: "apps", Kind: "StatefulSet"}: {
		"spec.podManagementPolicy", "spec.revisionHistoryLimit", "spec.selector", "spec.serviceName",
		"spec.volumeClaimTemplates",
	},
	{Group: "batch", Kind: "Job"}: {
		"spec.completions", "spec.parallelism", "spec.selector", "spec.template",
	},
	{Kind: "Secret"}:        {"type"},
	{Kind: "Service"}:       {"spec.clusterIP"},
	{Kind: "ResourceQuota"}: {"spec.scopes"},
	{Kind: "PersistentVolumeClaim"}: {
		"spec.accessModes", "spec.selector", "spec.storageClassName", "spec.volumeName",
	},
	{Kind: "PersistentVolume"}: under("spec",
		"awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "fc", "flexVolume", "flocker",
		"gcePersistentDisk", "glusterfs", "hostPath", "iscsi", "local", "nfs", "photonPersistentDisk", "portworxVolume",
		"quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume"),
	{Kind: "Pod"}: append(under("spec",
		"affinity", "automountServiceAccountToken", "dnsConfig", "dnsPolicy", "enableServiceLinks", "hostAliases",
		"hostIPC", "hostNetwork", "hostPID", "hostname", "imagePullSecrets", "nodeName", "nodeSelector", "overhead",
		"preemptionPolicy", "priority", "priorityClassName", "readinessGates", "restartPolicy", "runtimeClassName",
		"schedulerName", "securityContext", "serviceAccount", "serviceAccountName", "shareProcessNamespace", "subdomain",
		"terminationGracePeriodSeconds", "volumes"),
		append(containerFields("spec.containers[*]"), containerFields("spec.initContainers[*]")...)...),
	{Group: "rbac.authorization.k8s.io", Kind: "ClusterRoleBinding"}: {"roleRef"},
	{Group: "rbac.authorization.k8s.io", Kind: "RoleBinding"}:        {"roleRef"},
	{Group: "storage.k8s.io", Kind: "StorageClass"}:                  {"parameters", "provisioner"},
}

// containerFields of a Pod are fixed, too. Its image is not, for the API server; Pulumi's provider makes a new Pod.
func containerFields(container string) fixedFields {
	return under(container,
		"args", "command", "env", "image", "imagePullPolicy", "lifecycle", "livenessProbe", "ports", "readinessProbe",
		"resources", "securityContext", "stdin", "stdinOnce", "terminationMessagePath", "terminationMessagePolicy", "tty",
		"volumeDevices", "volumeMounts", "workingDir")
}

func under(prefix string, names ...string) fixedFields {
	var fields fixedFields
	for _, name := range names {
		fields = append(fields, prefix+"."+name)
	}
	return fields
}
