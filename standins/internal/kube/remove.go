package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/emptypb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Delete deletes the object together with what it owns and waits until it is gone. An object that is gone already, or
// whose kind is, counts as deleted. A patch resource gives its fields back instead.
func (p *Provider) Delete(ctx context.Context, req *pulumirpc.DeleteRequest) (*emptypb.Empty, error) {
	urn := resource.URN(req.GetUrn())
	ctx, cancel := p.operation(ctx, urn)
	defer cancel()
	state, err := unmarshal(req.GetProperties())
	if err != nil {
		return nil, err
	}
	inputs, live := fromCheckpoint(state)
	if isPatch(urn, live) {
		manager, err := managerFor(inputs, state)
		if err == nil {
			err = p.relinquish(ctx, live, manager)
		}
		return p.deleted(ctx, urn, live, err)
	}

	client, err := p.cluster.client(ctx, live)
	if err != nil {
		return p.deleted(ctx, urn, live, err)
	}
	policy := propagation(inputs)
	if err := client.Delete(ctx, live.GetName(), metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
		return p.deleted(ctx, urn, live, p.cluster.explain(err))
	}
	last, err := p.awaitGone(ctx, urn, live, timeout(req.GetTimeout(), inputs))
	if err == nil {
		return &emptypb.Empty{}, nil
	}
	manager, managerErr := managerFor(inputs, state)
	if managerErr != nil {
		return nil, errors.Join(err, managerErr)
	}
	result := checkpoint(inputs, last, state, apiVersionOf(state, inputs), manager)
	return nil, initFailed(req.GetId(), describe(last)+" was told to go, but it is still there", err, result, nil)
}

// deleted decides what a failed request means for the resource.
func (p *Provider) deleted(
	ctx context.Context, urn resource.URN, live *unstructured.Unstructured, err error,
) (*emptypb.Empty, error) {
	var unreachable *unreachableError
	switch {
	case err == nil, apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return &emptypb.Empty{}, nil
	case errors.As(err, &unreachable) && p.settings.deleteUnreachable:
		p.say(ctx, diag.Warning, urn, "%v; deleteUnreachable is set, so the resource leaves the state", err)
		return &emptypb.Empty{}, nil
	case errors.As(err, &unreachable):
		return nil, fmt.Errorf("deleting %s: %w. %s", describe(live), err, dropUnreachable)
	}
	return nil, fmt.Errorf("deleting %s: %w", describe(live), err)
}

// propagation returns what happens to the objects that the deleted one owns: by default they go first.
func propagation(inputs *unstructured.Unstructured) metav1.DeletionPropagation {
	switch strings.ToLower(inputs.GetAnnotations()[deletionPolicyAnnotation]) {
	case "orphan":
		return metav1.DeletePropagationOrphan
	case "background":
		return metav1.DeletePropagationBackground
	}
	return metav1.DeletePropagationForeground
}
