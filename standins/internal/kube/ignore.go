package kube

import (
	"fmt"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// ignoreFields keeps an update from changing ignored fields. One that another manager holds alone, such as the replicas
// that an autoscaler sets, is left out of the request; any other is sent with the value that the object has now.
func ignoreFields(inputs, live *unstructured.Unstructured, manager string, ignored []string) error {
	if len(ignored) == 0 {
		return nil
	}
	ours, theirs := fieldpath.NewSet(), fieldpath.NewSet()
	for _, entry := range live.GetManagedFields() {
		if entry.FieldsV1 == nil {
			continue
		}
		fields := fieldpath.NewSet()
		if err := fields.FromJSON(entry.FieldsV1.GetRawReader()); err != nil {
			return fmt.Errorf("the managed fields of %s: %w", describe(live), err)
		}
		if entry.Manager == manager {
			ours = ours.Union(fields)
		} else {
			theirs = theirs.Union(fields)
		}
	}
	for _, path := range ignored {
		parsed, err := resource.ParsePropertyPath(path)
		if err != nil {
			return fmt.Errorf("ignoreChanges: %q: %w", path, err)
		}
		var names []string
		var steps fieldpath.Path
		for _, step := range parsed {
			name, isField := step.(string)
			if !isField {
				break // an element of a list: the value from the state stands
			}
			names = append(names, name)
			steps = append(steps, fieldpath.PathElement{FieldName: &name})
		}
		if len(names) < len(parsed) || len(names) == 0 {
			continue
		}
		value, found, err := unstructured.NestedFieldCopy(live.Object, names...)
		switch {
		case err != nil || !found:
		case holdsField(theirs, steps) && !holdsField(ours, steps):
			unstructured.RemoveNestedField(inputs.Object, names...)
		default:
			if err := unstructured.SetNestedField(inputs.Object, value, names...); err != nil {
				return fmt.Errorf("ignoreChanges: %q: %w", path, err)
			}
		}
	}
	return nil
}

// holdsField reports whether a set has a field or one below it.
func holdsField(set *fieldpath.Set, path fieldpath.Path) bool {
	if set.Has(path) {
		return true
	}
	for _, step := range path {
		set = set.WithPrefix(step)
	}
	return !set.Empty()
}
