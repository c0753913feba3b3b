package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Diff compares the new inputs with those fields of the stored live object that the old inputs speak about, so that
// defaults and other managers' fields show no difference, and drift that a refresh found does. A change that cannot be
// made in place is a replacement: known from a table, or because the API server refuses a dry run of the update.
func (p *Provider) Diff(ctx context.Context, req *pulumirpc.DiffRequest) (*pulumirpc.DiffResponse, error) {
	urn := resource.URN(req.GetUrn())
	ctx, cancel := p.operation(ctx, urn)
	defer cancel()
	state, err := unmarshal(req.GetOlds())
	if err != nil {
		return nil, err
	}
	news, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	inputs := normalize(toObject(news))
	oldInputs, live := fromCheckpoint(state)
	old := p.comparable(live, normalize(oldInputs), inputs)

	changes := map[string]*change{}
	compare(nil, old.Object, inputs.Object, changes)
	for _, ignored := range req.GetIgnoreChanges() {
		path, err := resource.ParsePropertyPath(ignored)
		if err != nil {
			return nil, fmt.Errorf("ignoreChanges: %q: %w", ignored, err)
		}
		maps.DeleteFunc(changes, func(_ string, c *change) bool { return path.Contains(c.path) })
	}

	fixed := identity
	if !isPatch(urn, inputs) {
		fixed = p.fixedFieldsOf(inputs)
	}
	for _, c := range changes {
		c.replaces = fixed.hit(c)
	}
	if len(changes) > 0 && !replacesAny(changes) && !hasUnknown(inputs.Object) {
		p.markRefused(ctx, inputs, live, changes)
	}
	response := diffResponse(changes)
	if isTrue(inputs, replaceUnreadyAnnotation) && p.unready(ctx, urn, live) {
		response.Changes = pulumirpc.DiffResponse_DIFF_SOME
		response.Replaces = append(response.Replaces, fmt.Sprintf("metadata.annotations[%q]", replaceUnreadyAnnotation))
	}
	// Two objects cannot share a name; only an autonamed one can be made beside its predecessor.
	response.DeleteBeforeReplace = len(response.Replaces) > 0 && !isTrue(inputs, autonamedAnnotation) &&
		inputs.GetName() == live.GetName() && inputs.GetNamespace() == old.GetNamespace()
	return response, nil
}

// comparable returns the part of the live object that the old inputs speak about, in the form of the new inputs.
func (p *Provider) comparable(live, oldInputs, inputs *unstructured.Unstructured) *unstructured.Unstructured {
	old := &unstructured.Unstructured{Object: prune(live.Object, oldInputs.Object)}
	if metadata, known := old.Object["metadata"].(map[string]any); known {
		// A name or namespace that the program starts to spell out is no change.
		metadata["name"] = live.GetName()
		delete(metadata, "namespace")
		delete(metadata, "resourceVersion")
		if namespace := live.GetNamespace(); namespace != "" {
			metadata["namespace"] = namespace
		}
	}
	if metadata, known := inputs.Object["metadata"].(map[string]any); known && live.GetNamespace() == "" {
		delete(metadata, "namespace")
	}
	return old
}

// change is one difference between two versions of the inputs.
type change struct {
	path     resource.PropertyPath
	old, new any // nil where there is none
	replaces bool
}

// compare adds the differences below path: whole values where one side has none, single ones otherwise. Elements of
// lists are compared by their place.
func compare(path resource.PropertyPath, old, new any, changes map[string]*change) {
	step := func(element any) resource.PropertyPath { return append(slices.Clone(path), element) }
	switch new := new.(type) {
	case map[string]any:
		if old, same := old.(map[string]any); same {
			for key := range old {
				compare(step(key), old[key], new[key], changes)
			}
			for key := range new {
				if _, both := old[key]; !both {
					compare(step(key), nil, new[key], changes)
				}
			}
			return
		}
	case []any:
		if old, same := old.([]any); same {
			at := func(list []any, i int) any {
				if i < len(list) {
					return list[i]
				}
				return nil
			}
			for i := range max(len(old), len(new)) {
				compare(step(i), at(old, i), at(new, i), changes)
			}
			return
		}
	}
	if !equal(old, new) {
		changes[path.String()] = &change{path: path, old: old, new: new}
	}
}

func equal(a, b any) bool {
	if x, number := toFloat(a); number {
		y, number := toFloat(b)
		return number && x == y
	}
	return reflect.DeepEqual(a, b)
}

func toFloat(value any) (float64, bool) {
	switch value := value.(type) {
	case int64:
		return float64(value), true
	case int:
		return float64(value), true
	case float64:
		return value, true
	}
	return 0, false
}

func replacesAny(changes map[string]*change) bool {
	for _, c := range changes {
		if c.replaces {
			return true
		}
	}
	return false
}

func diffResponse(changes map[string]*change) *pulumirpc.DiffResponse {
	response := &pulumirpc.DiffResponse{
		Changes:         pulumirpc.DiffResponse_DIFF_NONE,
		DetailedDiff:    map[string]*pulumirpc.PropertyDiff{},
		HasDetailedDiff: true,
	}
	for _, path := range slices.Sorted(maps.Keys(changes)) {
		c := changes[path]
		kind := pulumirpc.PropertyDiff_UPDATE
		switch {
		case c.old == nil:
			kind = pulumirpc.PropertyDiff_ADD
		case c.new == nil:
			kind = pulumirpc.PropertyDiff_DELETE
		}
		if c.replaces {
			kind++ // each kind is followed by its replacing one
			response.Replaces = append(response.Replaces, path)
		}
		// What goes away is shown from the old inputs: the live object may spell it differently.
		response.DetailedDiff[path] = &pulumirpc.PropertyDiff{Kind: kind, InputDiff: c.new == nil}
		response.Changes = pulumirpc.DiffResponse_DIFF_SOME
	}
	return response
}

// markRefused asks the API server, in a dry run, whether the object can be updated in place, and marks the changes of
// fields that it calls immutable. Claims and volumes are left out: replacing one loses its data, so only the table's
// fields do that. Without an answer nothing is marked, and the update itself reports what is wrong.
func (p *Provider) markRefused(
	ctx context.Context, inputs, live *unstructured.Unstructured, changes map[string]*change,
) {
	switch inputs.GetKind() {
	case "PersistentVolumeClaim", "PersistentVolume":
		return
	}
	client, err := p.cluster.client(ctx, inputs)
	if err != nil {
		return
	}
	if inputs.GetName() != live.GetName() {
		return
	}
	_, err = apply(ctx, client, inputs, metav1.PatchOptions{
		FieldManager: dryRunManager, Force: ptr(true), DryRun: []string{metav1.DryRunAll},
	})
	for _, field := range immutableFields(err) {
		for path, c := range changes {
			c.replaces = c.replaces || overlaps(path, field)
		}
	}
}

// dryRunManager is the field manager of requests that only ask. It owns nothing.
const dryRunManager = "pulumi-kubernetes-preview"

// immutableFields returns the fields for which the API server refuses an update because they never change. A rule of a
// custom resource has no reason of its own, only a message.
func immutableFields(err error) []string {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) || answer.Status().Details == nil || !apierrors.IsInvalid(err) {
		return nil
	}
	var fields []string
	for _, cause := range answer.Status().Details.Causes {
		message := strings.ToLower(cause.Message)
		if strings.Contains(message, "immutable") ||
			strings.Contains(message, "may not change fields other than") ||
			strings.Contains(message, "for fields other than") {
			fields = append(fields, strings.TrimSuffix(cause.Field, "."))
		}
	}
	return fields
}

// overlaps reports whether a change's path and a field that the API server names lie on one line: spec.template and
// spec.template.spec.containers[0].image do.
func overlaps(path, field string) bool {
	inside := func(inner, outer string) bool {
		rest, found := strings.CutPrefix(inner, outer)
		return found && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	return inside(path, field) || inside(field, path)
}

// unready reports whether the object's rule says, right now, that it is not up.
func (p *Provider) unready(ctx context.Context, urn resource.URN, live *unstructured.Unstructured) bool {
	if live.GetKind() != "Job" {
		p.say(ctx, diag.Warning, urn, "the annotation %s works for a Job only", replaceUnreadyAnnotation)
		return false
	}
	client, err := p.cluster.client(ctx, live)
	if err != nil {
		return false
	}
	now, err := client.Get(ctx, live.GetName(), metav1.GetOptions{})
	return err == nil && !jobReady(view{object: now}).done
}

func ptr[T any](value T) *T { return &value }
