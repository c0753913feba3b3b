package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// The annotations through which an object's inputs steer this provider; Pulumi's provider has the same ones.
const (
	autonamedAnnotation         = "pulumi.com/autonamed" // set by the provider
	skipAwaitAnnotation         = "pulumi.com/skipAwait"
	waitForAnnotation           = "pulumi.com/waitFor"
	timeoutSecondsAnnotation    = "pulumi.com/timeoutSeconds"
	patchForceAnnotation        = "pulumi.com/patchForce"
	patchFieldManagerAnnotation = "pulumi.com/patchFieldManager"
	replaceUnreadyAnnotation    = "pulumi.com/replaceUnready"
	deletionPolicyAnnotation    = "pulumi.com/deletionPropagationPolicy"
)

func isTrue(object *unstructured.Unstructured, annotation string) bool {
	return object.GetAnnotations()[annotation] == "true"
}

// kindOf returns the kind that a resource's type stands for: kubernetes:apps/v1:Deployment, kubernetes:core/v1:Pod.
// The type of a patch resource has "Patch" behind its kind.
func kindOf(urn resource.URN) (schema.GroupVersionKind, error) {
	token := string(urn.Type())
	parts := strings.Split(token, ":")
	if len(parts) != 3 || parts[0] != "kubernetes" || parts[2] == "" {
		return schema.GroupVersionKind{}, refusal(token)
	}
	group, version, both := strings.Cut(parts[1], "/")
	if !both {
		group, version = "", group
	}
	if group == "core" {
		group = ""
	}
	if group == "helm.sh" || (group == "yaml" || group == "kustomize") && version == "v2" {
		return schema.GroupVersionKind{}, refusal(token)
	}
	return schema.GroupVersionKind{Group: group, Version: version, Kind: parts[2]}, nil
}

// isPatch reports whether a resource manages fields of an object that it does not own. A custom resource whose kind
// ends in Patch is not one: its object has that kind, too.
func isPatch(urn resource.URN, object *unstructured.Unstructured) bool {
	return string(urn.Type().Name()) == object.GetKind()+"Patch"
}

// isList reports whether a built-in kind is a list of objects, such as a PodList.
func isList(kind schema.GroupVersionKind) bool {
	return strings.HasSuffix(kind.Kind, "List") && scheme.Scheme.Recognizes(kind)
}

// Check fills in what a resource's inputs leave to the provider: the name, unless the program gives one, and the
// namespace. It also writes values as the API server would return them, so that equal values never show a difference.
func (p *Provider) Check(ctx context.Context, req *pulumirpc.CheckRequest) (*pulumirpc.CheckResponse, error) {
	urn := resource.URN(req.GetUrn())
	ctx, cancel := p.operation(ctx, urn)
	defer cancel()
	kind, err := kindOf(urn)
	if err != nil {
		return nil, err
	}
	if isList(kind) {
		return nil, fmt.Errorf("%s is a list of objects, which cannot be created: use a resource for each object in it",
			urn.Type())
	}
	olds, err := unmarshal(req.GetOlds())
	if err != nil {
		return nil, err
	}
	news, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	inputs, oldInputs := normalize(toObject(news)), toObject(olds)
	if inputs.GetKind() == "" {
		inputs.SetGroupVersionKind(kind)
	}
	if _, given := inputs.Object["metadata"]; !given {
		inputs.Object["metadata"] = map[string]any{}
	}
	if _, given := inputs.GetAnnotations()[autonamedAnnotation]; given {
		p.say(ctx, diag.Warning, urn, "the annotation %s is the provider's own: the given value is ignored",
			autonamedAnnotation)
	}

	var problems []error
	if isPatch(urn, inputs) {
		if !isNamed(inputs) {
			problems = append(problems,
				errors.New("metadata.name: a patch resource needs the name of the object that it patches"))
		}
	} else if err := assignName(inputs, oldInputs, urn.Name(), req.GetRandomSeed(), req.GetAutonaming()); err != nil {
		problems = append(problems, err)
	}
	for _, expression := range waitFor(inputs) {
		if _, err := parseCondition(expression); err != nil {
			problems = append(problems, err)
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}

	namespaced, err := p.cluster.namespaced(ctx, inputs.GroupVersionKind())
	if err != nil {
		var unreachable *unreachableError
		if errors.As(err, &unreachable) && p.settings.skipUpdateUnreachable && len(olds) > 0 {
			p.say(ctx, diag.Warning, urn, "%v; skipUpdateUnreachable is set, so the resource is left as it is", err)
			return &pulumirpc.CheckResponse{Inputs: req.GetOlds()}, nil
		}
		return nil, err
	}
	if metadata, known := inputs.Object["metadata"].(map[string]any); known && namespaced {
		if namespace, given := metadata["namespace"]; !given || namespace == nil || namespace == "" {
			metadata["namespace"] = p.cluster.namespace
		}
	}

	checked := toProperties(inputs)
	keepSecrets(checked, news)
	result, err := marshal(checked)
	return &pulumirpc.CheckResponse{Inputs: result}, err
}

func isNamed(object *unstructured.Unstructured) bool {
	metadata, known := object.Object["metadata"].(map[string]any)
	return !known && object.Object["metadata"] != nil || metadata["name"] != nil && metadata["name"] != ""
}

// assignName gives an object that the program does not name the name that it already has, or else one made of the
// resource's name and a random suffix, which the annotation marks.
func assignName(
	object, old *unstructured.Unstructured, prefix string, seed []byte, naming *pulumirpc.CheckRequest_AutonamingOptions,
) error {
	metadata, known := object.Object["metadata"].(map[string]any)
	if isNamed(object) || !known {
		return nil
	}
	if generate := metadata["generateName"]; generate != nil && generate != "" {
		return errors.New("metadata.generateName: server-side apply needs a name: leave it out for one made of the " +
			"resource's name and a random suffix, or set metadata.name")
	}
	name := ""
	switch {
	case isTrue(old, autonamedAnnotation) && old.GetName() != "":
		name = old.GetName()
	case naming.GetMode() == pulumirpc.CheckRequest_AutonamingOptions_DISABLE:
		return errors.New("metadata.name: pulumi:autonaming is disabled, so set a name")
	case naming.GetProposedName() != "":
		name = naming.GetProposedName()
	default:
		unique, err := resource.NewUniqueName(seed, prefix+"-", 0, 0, nil)
		if err != nil {
			return err
		}
		name = unique
	}
	metadata["name"] = name
	switch annotations := metadata["annotations"].(type) {
	case nil:
		metadata["annotations"] = map[string]any{autonamedAnnotation: "true"}
	case map[string]any:
		annotations[autonamedAnnotation] = "true"
	}
	return nil
}
