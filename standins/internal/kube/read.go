package kube

import (
	"context"
	"errors"
	"fmt"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Read returns the object as it is now: for a refresh, for an import and for a resource's get function, by the ID
// namespace/name. An object that is gone is an empty answer; one that is not up is reported with its state.
func (p *Provider) Read(ctx context.Context, req *pulumirpc.ReadRequest) (*pulumirpc.ReadResponse, error) {
	urn := resource.URN(req.GetUrn())
	ctx, cancel := p.operation(ctx, urn)
	defer cancel()
	kind, err := kindOf(urn)
	if err != nil {
		return nil, err
	}
	state, err := unmarshal(req.GetProperties())
	if err != nil {
		return nil, err
	}
	stored, err := unmarshal(req.GetInputs())
	if err != nil {
		return nil, err
	}
	namespace, name, err := parseID(req.GetId())
	if err != nil {
		return nil, err
	}

	inputs := normalize(toObject(stored))
	adopted := inputs.GetKind() == "" // an import or a get: there are no inputs yet
	if adopted {
		inputs.SetGroupVersionKind(kind)
		inputs.SetName(name)
		if namespace != "" {
			inputs.SetNamespace(namespace)
		}
	}
	live, err := p.get(ctx, inputs, name)
	switch {
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return &pulumirpc.ReadResponse{}, nil
	case err != nil:
		var unreachable *unreachableError
		if !errors.As(err, &unreachable) {
			return nil, fmt.Errorf("reading %s: %w", describe(inputs), err)
		}
		return p.readUnreachable(ctx, urn, req, unreachable)
	}

	if adopted {
		inputs = adopt(live)
	} else {
		inputs = &unstructured.Unstructured{Object: prune(live.Object, inputs.Object)}
	}
	manager, err := managerFor(inputs, state)
	if err != nil {
		return nil, err
	}
	inputProperties := toProperties(inputs)
	keepSecrets(inputProperties, stored)
	result := checkpoint(inputs, live, stored, apiVersionOf(state, inputs), manager)
	if rule, known := p.ruleFor(live); !adopted && known && !isTrue(inputs, skipAwaitAnnotation) {
		if err := p.inspect(ctx, live, rule); err != nil {
			return nil, initFailed(req.GetId(), describe(live)+" is not up", err, result, inputProperties)
		}
	}
	response := &pulumirpc.ReadResponse{Id: req.GetId()}
	if response.Properties, err = marshal(result); err != nil {
		return nil, err
	}
	response.Inputs, err = marshal(inputProperties)
	return response, err
}

func (p *Provider) get(
	ctx context.Context, object *unstructured.Unstructured, name string,
) (*unstructured.Unstructured, error) {
	client, err := p.cluster.client(ctx, object)
	if err != nil {
		return nil, err
	}
	live, err := client.Get(ctx, name, metav1.GetOptions{})
	return live, p.cluster.explain(err)
}

func (p *Provider) readUnreachable(
	ctx context.Context, urn resource.URN, req *pulumirpc.ReadRequest, cause error,
) (*pulumirpc.ReadResponse, error) {
	switch {
	case p.settings.deleteUnreachable:
		p.say(ctx, diag.Warning, urn, "%v; deleteUnreachable is set, so the resource leaves the state", cause)
		return &pulumirpc.ReadResponse{}, nil
	case p.settings.skipUpdateUnreachable:
		p.say(ctx, diag.Warning, urn, "%v; skipUpdateUnreachable is set, so the state is kept as it is", cause)
		return &pulumirpc.ReadResponse{Id: req.GetId(), Properties: req.GetProperties(), Inputs: req.GetInputs()}, nil
	}
	return nil, fmt.Errorf("%w. %s", cause, dropUnreachable)
}

// dropUnreachable is the way out for someone whose cluster is gone.
const dropUnreachable = "If the cluster was deleted, run the command again with deleteUnreachable on the provider or " +
	"PULUMI_K8S_DELETE_UNREACHABLE=true in the environment: its resources then leave Pulumi's state"

// adopt returns inputs for an object that was made elsewhere: all of it except what the server sets.
func adopt(live *unstructured.Unstructured) *unstructured.Unstructured {
	inputs := live.DeepCopy()
	delete(inputs.Object, "status")
	for _, field := range serverFields {
		unstructured.RemoveNestedField(inputs.Object, "metadata", field)
	}
	for _, annotation := range []string{
		"deployment.kubernetes.io/revision", "kubectl.kubernetes.io/last-applied-configuration",
	} {
		unstructured.RemoveNestedField(inputs.Object, "metadata", "annotations", annotation)
	}
	return inputs
}
