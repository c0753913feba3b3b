package kube

import (
	"encoding/base64"
	"maps"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// serverFields of metadata are the API server's; inputs with them (from an import or a copied manifest) mean nothing.
var serverFields = []string{
	"creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields",
	"resourceVersion", "uid",
}

// normalize returns inputs with values in the spelling that the API server returns ("1000m" as "1", a Secret's
// stringData as data), and without fields that only the server sets.
func normalize(inputs *unstructured.Unstructured) *unstructured.Unstructured {
	if !hasUnknown(inputs.Object) {
		switch kind := inputs.GroupVersionKind(); {
		case kind.Group == "" && kind.Kind == "Secret":
			normalizeSecret(inputs.Object)
		case kind.Group == "apiextensions.k8s.io" && kind.Kind == "CustomResourceDefinition":
			delete(inputs.Object, "status")
			if keep, _, _ := unstructured.NestedBool(inputs.Object, "spec", "preserveUnknownFields"); !keep {
				unstructured.RemoveNestedField(inputs.Object, "spec", "preserveUnknownFields")
			}
		default:
			if typed, err := throughType(inputs); err == nil {
				inputs = &unstructured.Unstructured{Object: prune(typed, inputs.Object)}
			}
		}
	}
	if metadata, known := inputs.Object["metadata"].(map[string]any); known {
		for _, field := range serverFields {
			delete(metadata, field)
		}
	}
	return inputs
}

// throughType converts an object of a built-in kind to its Go type and back.
func throughType(object *unstructured.Unstructured) (map[string]any, error) {
	typed, err := scheme.Scheme.New(object.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, typed); err != nil {
		return nil, err
	}
	return runtime.DefaultUnstructuredConverter.ToUnstructured(typed)
}

// normalizeSecret does to a Secret's data what the API server does: stringData becomes data, and base64 is written
// without line breaks. The server refuses what is not base64, so that stays as it is.
func normalizeSecret(object map[string]any) {
	data, _ := object["data"].(map[string]any)
	normal := maps.Clone(data)
	for key, value := range data {
		if text, known := value.(string); known {
			if decoded, err := base64.StdEncoding.DecodeString(text); err == nil {
				normal[key] = base64.StdEncoding.EncodeToString(decoded)
			}
		}
	}
	if texts, known := object["stringData"].(map[string]any); known && len(texts) > 0 {
		if normal == nil {
			normal = map[string]any{}
		}
		for key, value := range texts {
			text, known := value.(string)
			if !known {
				return
			}
			normal[key] = base64.StdEncoding.EncodeToString([]byte(text))
		}
		delete(object, "stringData")
	}
	if normal != nil {
		object["data"] = normal
	}
}

// prune returns the part of source whose fields shape has, too: of a live object, what the inputs speak about. Elements
// of lists are matched by their place; what follows the shape's last one, such as a volume that an admission plugin
// appends, is left out.
func prune(source, shape map[string]any) map[string]any {
	pruned := map[string]any{}
	for key, value := range source {
		if wanted, found := shape[key]; found {
			pruned[key] = pruneValue(value, wanted)
		}
	}
	return pruned
}

func pruneValue(value, shape any) any {
	switch value := value.(type) {
	case map[string]any:
		if shape, same := shape.(map[string]any); same {
			return prune(value, shape)
		}
	case []any:
		shapes, same := shape.([]any)
		if !same {
			return value
		}
		pruned := make([]any, 0, len(shapes))
		for i := range min(len(value), len(shapes)) {
			pruned = append(pruned, pruneValue(value[i], shapes[i]))
		}
		return pruned
	}
	return value
}
