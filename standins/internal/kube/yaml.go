package kube

import (
	"context"
	"errors"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// decodeYAML returns the objects of a text of YAML documents; empty documents are left out. Objects of namespaced
// kinds that name no namespace get defaultNamespace, if there is one.
func (p *Provider) decodeYAML(ctx context.Context, text, defaultNamespace string) ([]any, error) {
	objects := []any{}
	for decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096); ; {
		var document map[string]any
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		object := &unstructured.Unstructured{Object: document}
		if object.GetKind() == "" || object.GetAPIVersion() == "" {
			continue
		}
		if defaultNamespace != "" && object.GetNamespace() == "" {
			namespaced, err := p.cluster.namespaced(ctx, object.GroupVersionKind())
			if err != nil {
				return nil, err
			}
			if namespaced {
				object.SetNamespace(defaultNamespace)
			}
		}
		objects = append(objects, object.Object)
	}
}
