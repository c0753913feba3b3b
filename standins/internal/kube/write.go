package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/csaupgrade"
)

// createManager is the field manager of a new object until its first update: it is created with a plain request, which
// fails where the object exists already. The update hands the fields over to the resource's own manager.
const createManager = "pulumi-kubernetes"

// notYet is how long a missing namespace or CustomResourceDefinition gets to appear while an object is created: about
// 16 s. A definition that is established is served a moment later, too.
var notYet = wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Steps: 7}

// Create creates the object and waits until it is up. In a preview the API server checks it and fills in its defaults
// in a dry run; what only the real object will have is unknown then.
func (p *Provider) Create(ctx context.Context, req *pulumirpc.CreateRequest) (*pulumirpc.CreateResponse, error) {
	urn := resource.URN(req.GetUrn())
	ctx, cancel := p.operation(ctx, urn)
	defer cancel()
	news, err := unmarshal(req.GetProperties())
	if err != nil {
		return nil, err
	}
	inputs := toObject(news)
	manager, err := managerFor(inputs, nil)
	if err != nil {
		return nil, err
	}
	if req.GetPreview() {
		return p.previewCreate(ctx, urn, news, inputs, manager)
	}

	live, err := p.create(ctx, urn, inputs, manager)
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", describe(inputs), p.cluster.explain(err))
	}
	live, waitErr := p.await(ctx, urn, inputs, live, timeout(req.GetTimeout(), inputs))
	state := checkpoint(inputs, live, news, inputs.GetAPIVersion(), manager)
	if waitErr != nil {
		return nil, initFailed(objectID(live), describe(live)+" was created, but it is not up", waitErr, state, nil)
	}
	properties, err := marshal(state)
	return &pulumirpc.CreateResponse{Id: objectID(live), Properties: properties}, err
}

// create sends the object until what it needs is there.
func (p *Provider) create(
	ctx context.Context, urn resource.URN, inputs *unstructured.Unstructured, manager string,
) (*unstructured.Unstructured, error) {
	var live *unstructured.Unstructured
	var last error
	attempt := func(ctx context.Context) (bool, error) {
		live, last = p.createOnce(ctx, urn, inputs, manager, nil)
		if !apierrors.IsNotFound(last) && !meta.IsNoMatchError(last) {
			return true, nil
		}
		p.status(ctx, urn, "Waiting for what it needs: "+last.Error())
		return false, nil
	}
	if err := wait.ExponentialBackoffWithContext(ctx, notYet, attempt); err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	p.status(ctx, urn, "")
	switch {
	case meta.IsNoMatchError(last):
		return nil, fmt.Errorf("%w: the API server does not serve %s of %s. A custom resource needs its "+
			"CustomResourceDefinition: create it first (dependsOn)", last, inputs.GetKind(), inputs.GetAPIVersion())
	case apierrors.IsAlreadyExists(last):
		return nil, fmt.Errorf("%w. If it was renamed in the program, give the resource an alias; to take it over, import "+
			"it (`pulumi import` or the import option) or set upsertExistingObjects on the provider; to manage some of its "+
			"fields only, use %sPatch", last, inputs.GetKind())
	}
	return live, last
}

// createOnce sends the object once; dryRun is nil or metav1.DryRunAll.
func (p *Provider) createOnce(
	ctx context.Context, urn resource.URN, inputs *unstructured.Unstructured, manager string, dryRun []string,
) (*unstructured.Unstructured, error) {
	client, err := p.cluster.client(ctx, inputs)
	if err != nil {
		return nil, err
	}
	if isPatch(urn, inputs) || p.settings.upsertExistingObjects {
		force := p.forced(inputs, nil, dryRun != nil)
		return apply(ctx, client, inputs, metav1.PatchOptions{FieldManager: manager, Force: &force, DryRun: dryRun})
	}
	return client.Create(ctx, inputs, metav1.CreateOptions{FieldManager: createManager, DryRun: dryRun})
}

func (p *Provider) previewCreate(
	ctx context.Context, urn resource.URN, news resource.PropertyMap, inputs *unstructured.Unstructured, manager string,
) (*pulumirpc.CreateResponse, error) {
	planned := inputs
	if !hasUnknown(inputs.Object) && !isPatch(urn, inputs) {
		dryRun, err := p.createOnce(ctx, urn, inputs, manager, []string{metav1.DryRunAll})
		switch {
		case err == nil:
			planned = dryRun
		case cannotPreview(err), apierrors.IsAlreadyExists(err): // its predecessor, which a replacement deletes first
		default:
			return nil, fmt.Errorf("the API server would refuse to create %s: %w", describe(inputs), p.cluster.explain(err))
		}
	}
	state := checkpoint(inputs, planned, news, inputs.GetAPIVersion(), manager)
	forgetAssigned(state, news)
	properties, err := marshal(state)
	return &pulumirpc.CreateResponse{Properties: properties}, err
}

// cannotPreview reports whether an error says that a dry run is not possible (yet), not that the object is wrong.
func cannotPreview(err error) bool {
	return meta.IsNoMatchError(err) || apierrors.IsNotFound(err) || // its definition or namespace is still to be made
		apierrors.IsForbidden(err) || // may be allowed by a role in the same update
		apierrors.IsBadRequest(err) && strings.Contains(err.Error(), "does not support dry run")
}

// forgetAssigned makes unknown, in the planned state of an object to create, what the API server assigns to the real
// object and what controllers fill in. A value that the inputs ask for stays.
func forgetAssigned(planned, inputs resource.PropertyMap) {
	unknown := resource.MakeComputed(resource.NewStringProperty(""))
	forget := func(values, asked resource.PropertyMap, fields ...resource.PropertyKey) {
		for _, field := range fields {
			if !asked.HasValue(field) {
				values[field] = unknown
			}
		}
	}
	if metadata := planned["metadata"]; metadata.IsObject() {
		forget(metadata.ObjectValue(), nil, "uid", "creationTimestamp", "resourceVersion")
		delete(metadata.ObjectValue(), "managedFields")
	}
	if _, served := planned["status"]; served {
		planned["status"] = unknown
	}
	spec, asked := planned["spec"], plain(inputs["spec"])
	if planned["kind"].V != "Service" || !spec.IsObject() || !asked.IsObject() ||
		asked.ObjectValue()["clusterIP"].V == "None" {
		return
	}
	forget(spec.ObjectValue(), asked.ObjectValue(), "clusterIP", "clusterIPs")
	ports, askedPorts := spec.ObjectValue()["ports"], plain(asked.ObjectValue()["ports"])
	if !ports.IsArray() || !askedPorts.IsArray() {
		return
	}
	for i := range min(len(ports.ArrayValue()), len(askedPorts.ArrayValue())) {
		port, askedPort := ports.ArrayValue()[i], askedPorts.ArrayValue()[i]
		if port.IsObject() && port.ObjectValue().HasValue("nodePort") && askedPort.IsObject() {
			forget(port.ObjectValue(), askedPort.ObjectValue(), "nodePort")
		}
	}
}

// Update applies the new inputs and waits until the object is up again.
func (p *Provider) Update(ctx context.Context, req *pulumirpc.UpdateRequest) (*pulumirpc.UpdateResponse, error) {
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
	oldInputs, old := fromCheckpoint(state)
	manager, err := managerFor(inputs, state)
	if err != nil {
		return nil, err
	}
	asIs := &pulumirpc.UpdateResponse{Properties: req.GetNews()}
	if req.GetPreview() && hasUnknown(inputs.Object) {
		return asIs, nil
	}

	live, err := p.update(ctx, urn, inputs, old.GetName(), manager, req)
	switch {
	case err != nil && req.GetPreview() && cannotPreview(err):
		return asIs, nil
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("updating %s: %w. It was deleted outside of Pulumi: run `pulumi refresh`, and the next "+
			"update creates it again", describe(inputs), err)
	case err != nil:
		return nil, fmt.Errorf("updating %s: %w", describe(inputs), p.cluster.explain(err))
	}
	var waitErr error
	if !req.GetPreview() {
		if oldManager, _ := managerFor(oldInputs, state); oldManager != manager {
			waitErr = p.relinquish(ctx, live, oldManager)
		}
	}
	if !req.GetPreview() && waitErr == nil {
		live, waitErr = p.await(ctx, urn, inputs, live, timeout(req.GetTimeout(), inputs))
	}
	result := checkpoint(inputs, live, news, apiVersionOf(state, inputs), manager)
	if waitErr != nil {
		return nil, initFailed(objectID(live), describe(live)+" was updated, but it is not up", waitErr, result, nil)
	}
	properties, err := marshal(result)
	return &pulumirpc.UpdateResponse{Properties: properties}, err
}

func (p *Provider) update(
	ctx context.Context, urn resource.URN, inputs *unstructured.Unstructured, name, manager string,
	req *pulumirpc.UpdateRequest,
) (*unstructured.Unstructured, error) {
	client, err := p.cluster.client(ctx, inputs)
	if err != nil {
		return nil, err
	}
	live, err := client.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	options := metav1.PatchOptions{FieldManager: manager, Force: ptr(p.forced(inputs, live, req.GetPreview()))}
	if req.GetPreview() {
		options.DryRun = []string{metav1.DryRunAll}
	} else if !isPatch(urn, inputs) {
		if live, err = takeOver(ctx, client, live, manager); err != nil {
			return nil, err
		}
	}
	if err := ignoreFields(inputs, live, manager, req.GetIgnoreChanges()); err != nil {
		return nil, err
	}
	return apply(ctx, client, inputs, options)
}

// apply sends the object as a server-side apply. A conflict names the other manager and what can be done.
func apply(
	ctx context.Context, client dynamic.ResourceInterface, inputs *unstructured.Unstructured, options metav1.PatchOptions,
) (*unstructured.Unstructured, error) {
	body, err := json.Marshal(inputs.Object)
	if err != nil {
		return nil, err
	}
	live, err := client.Patch(ctx, inputs.GetName(), types.ApplyPatchType, body, options)
	if apierrors.IsConflict(err) {
		return nil, fmt.Errorf("%w. Those fields belong to that manager, not to %q. Leave them out of the inputs or name "+
			"them in ignoreChanges; to take them over, set the annotation %s: \"true\" on the resource or "+
			"enablePatchForce on the provider", err, options.FieldManager, patchForceAnnotation)
	}
	return live, err
}

// forced reports whether an apply takes fields from other managers without asking.
func (p *Provider) forced(inputs, live *unstructured.Unstructured, preview bool) bool {
	if isTrue(inputs, patchForceAnnotation) || p.settings.enablePatchForce {
		return true
	}
	if live == nil {
		return preview
	}
	// An object from before managed fields has none to conflict with, and a preview cannot hand fields over first.
	return len(live.GetManagedFields()) == 0 || preview && len(formerManagers(live)) > 0
}

// takeOver gives the resource's manager the fields that the object was created with, here or by kubectl, so that what
// leaves the inputs leaves the object.
func takeOver(
	ctx context.Context, client dynamic.ResourceInterface, live *unstructured.Unstructured, manager string,
) (*unstructured.Unstructured, error) {
	former := formerManagers(live)
	if len(former) == 0 {
		return live, nil
	}
	patch, err := csaupgrade.UpgradeManagedFieldsPatch(live, former, manager)
	if err != nil || patch == nil {
		return live, err
	}
	return client.Patch(ctx, live.GetName(), types.JSONPatchType, patch, metav1.PatchOptions{FieldManager: manager})
}

// formerManagers are those that wrote the object with plain requests, on behalf of the program or of someone at a
// shell.
func formerManagers(live *unstructured.Unstructured) sets.Set[string] {
	former := sets.New[string]()
	for _, entry := range live.GetManagedFields() {
		if entry.Operation == metav1.ManagedFieldsOperationUpdate && entry.Subresource == "" &&
			(entry.Manager == "before-first-apply" || strings.HasPrefix(entry.Manager, "kubectl") ||
				strings.HasPrefix(entry.Manager, "pulumi-kubernetes") || entry.Manager == "pulumi-resource-kubernetes") {
			former.Insert(entry.Manager)
		}
	}
	return former
}

// relinquish takes a manager off all fields of an object. Fields that nobody else manages go.
func (p *Provider) relinquish(ctx context.Context, object *unstructured.Unstructured, manager string) error {
	client, err := p.cluster.client(ctx, object)
	if err != nil {
		return err
	}
	nothing := &unstructured.Unstructured{
		Object: map[string]any{"apiVersion": object.GetAPIVersion(), "kind": object.GetKind()},
	}
	nothing.SetName(object.GetName())
	nothing.SetNamespace(object.GetNamespace())
	_, err = apply(ctx, client, nothing, metav1.PatchOptions{FieldManager: manager, Force: ptr(true)})
	return err
}

// managerFor returns the field manager of a resource: the one that its annotation names, the one in its state, or a new
// one of its own.
func managerFor(inputs *unstructured.Unstructured, state resource.PropertyMap) (string, error) {
	if named := inputs.GetAnnotations()[patchFieldManagerAnnotation]; named != "" {
		return named, nil
	}
	if stored := plain(state[fieldManagerKey]); stored.IsString() {
		return stored.StringValue(), nil
	}
	return resource.NewUniqueName(nil, "pulumi-kubernetes-", 0, 0, nil)
}

func apiVersionOf(state resource.PropertyMap, inputs *unstructured.Unstructured) string {
	if stored := plain(state[initialAPIVersionKey]); stored.IsString() {
		return stored.StringValue()
	}
	return inputs.GetAPIVersion()
}

func describe(object *unstructured.Unstructured) string {
	return object.GetKind() + " " + objectID(object)
}

// timeout returns how long an operation may wait: the resource's customTimeouts, else its annotation, else 10 minutes.
func timeout(custom float64, inputs *unstructured.Unstructured) time.Duration {
	if custom > 0 {
		return time.Duration(custom * float64(time.Second))
	}
	seconds, err := time.ParseDuration(inputs.GetAnnotations()[timeoutSecondsAnnotation] + "s")
	if err == nil && seconds > 0 {
		return seconds
	}
	return 10 * time.Minute
}
