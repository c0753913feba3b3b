package kube

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil/rpcerror"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// The keys that a resource's state has beside the live object's own; Pulumi's provider reads and writes the same.
const (
	inputsKey            = "__inputs"
	initialAPIVersionKey = "__initialApiVersion"
	fieldManagerKey      = "__fieldManager"
)

// dashedKeys are the fields of a CustomResourceDefinition's schema that the SDKs spell with underscores.
var dashedKeys = func() map[string]string {
	keys := map[string]string{}
	for _, name := range []string{
		"embedded-resource", "int-or-string", "list-map-keys", "list-type", "map-type",
		"preserve-unknown-fields", "validations",
	} {
		dashed := "x-kubernetes-" + name
		keys[strings.ReplaceAll(dashed, "-", "_")] = dashed
	}
	return keys
}()

var underscoredKeys = func() map[string]string {
	keys := map[string]string{}
	for underscored, dashed := range dashedKeys {
		keys[dashed] = underscored
	}
	return keys
}()

func unmarshal(properties *structpb.Struct) (resource.PropertyMap, error) {
	return plugin.UnmarshalProperties(properties, plugin.MarshalOptions{KeepUnknowns: true, KeepSecrets: true})
}

func marshal(properties resource.PropertyMap) (*structpb.Struct, error) {
	return plugin.MarshalProperties(properties, plugin.MarshalOptions{KeepUnknowns: true, KeepSecrets: true})
}

// toObject returns properties as the API server spells them, with secrets as plain values and unknown values as
// resource.Computed.
func toObject(properties resource.PropertyMap) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: properties.MapRepl(func(key string) (string, bool) {
		dashed, found := dashedKeys[key]
		return dashed, found
	}, plainSecret)}
}

func plainSecret(value resource.PropertyValue) (any, bool) {
	if !value.IsSecret() {
		return nil, false
	}
	return value.SecretValue().Element.MapRepl(func(key string) (string, bool) {
		dashed, found := dashedKeys[key]
		return dashed, found
	}, plainSecret), true
}

// toProperties is the reverse of toObject; nothing in the result is secret yet.
func toProperties(object *unstructured.Unstructured) resource.PropertyMap {
	return resource.NewPropertyMapFromMapRepl(object.Object, func(key string) (resource.PropertyKey, bool) {
		underscored, found := underscoredKeys[key]
		return resource.PropertyKey(underscored), found
	}, nil)
}

// checkpoint returns the state of a resource: the live object, the inputs that led to it, and who manages its fields.
// What is secret in source stays secret, and so is all data of a Secret.
func checkpoint(
	inputs, live *unstructured.Unstructured, source resource.PropertyMap, apiVersion, manager string,
) resource.PropertyMap {
	state, stored := toProperties(live), toProperties(inputs)
	keepSecrets(state, source)
	keepSecrets(stored, source)
	state[inputsKey] = resource.NewObjectProperty(stored)
	state[initialAPIVersionKey] = resource.NewStringProperty(apiVersion)
	state[fieldManagerKey] = resource.NewStringProperty(manager)
	return state
}

// fromCheckpoint splits a state into the inputs and the live object.
func fromCheckpoint(state resource.PropertyMap) (inputs, live *unstructured.Unstructured) {
	live = toObject(state)
	inputs = &unstructured.Unstructured{Object: map[string]any{}}
	if stored, found := live.Object[inputsKey].(map[string]any); found {
		inputs.Object = stored
	}
	for _, key := range []string{inputsKey, initialAPIVersionKey, fieldManagerKey} {
		delete(live.Object, key)
	}
	return inputs, live
}

// keepSecrets marks in outs what is secret in ins. An array with a secret in it becomes secret as a whole: the API
// server may reorder it.
func keepSecrets(outs, ins resource.PropertyMap) {
	if kind := outs["kind"]; kind.IsString() && kind.StringValue() == "Secret" {
		for _, key := range []resource.PropertyKey{"data", "stringData"} {
			if value, found := outs[key]; found && !value.IsSecret() {
				outs[key] = resource.MakeSecret(value)
			}
		}
		return
	}
	for key, in := range ins {
		out, found := outs[key]
		switch {
		case !found || out.IsSecret():
		case out.IsObject() && in.IsObject():
			keepSecrets(out.ObjectValue(), in.ObjectValue())
		case in.ContainsSecrets():
			outs[key] = resource.MakeSecret(out)
		}
	}
}

// hasUnknown reports whether some value is known only once another resource has been made.
func hasUnknown(value any) bool {
	switch value := value.(type) {
	case resource.Computed, resource.Output:
		return true
	case map[string]any:
		for _, element := range value {
			if hasUnknown(element) {
				return true
			}
		}
	case []any:
		for _, element := range value {
			if hasUnknown(element) {
				return true
			}
		}
	}
	return false
}

// objectID is how a resource is known to Pulumi: namespace/name, or name alone for a cluster-wide object.
func objectID(object *unstructured.Unstructured) string {
	if namespace := object.GetNamespace(); namespace != "" {
		return namespace + "/" + object.GetName()
	}
	return object.GetName()
}

func parseID(id string) (namespace, name string, err error) {
	namespace, name, both := strings.Cut(id, "/")
	if !both {
		namespace, name = "", namespace
	}
	if name == "" || strings.Contains(name, "/") {
		return "", "", fmt.Errorf("%q is not the ID of a Kubernetes object: write namespace/name, "+
			"or name alone for a cluster-wide object", id)
	}
	return namespace, name, nil
}

// initFailed is the error for an object that exists but is not as it should be: what says so. It carries the state, so
// that the engine keeps the object and shows the reasons. inputs is nil where the request's own inputs stand.
func initFailed(id, what string, cause error, state, inputs resource.PropertyMap) error {
	properties, err := marshal(state)
	if err != nil {
		return errors.Join(cause, err)
	}
	detail := &pulumirpc.ErrorResourceInitFailed{
		Id: id, Properties: properties, Reasons: []string{what + ": " + cause.Error()},
	}
	var waited *notReadyError
	if errors.As(cause, &waited) {
		detail.Reasons = append([]string{what + ": " + waited.cause}, waited.details...)
	}
	if inputs != nil {
		if detail.Inputs, err = marshal(inputs); err != nil {
			return errors.Join(cause, err)
		}
	}
	return rpcerror.WithDetails(rpcerror.New(codes.Unknown, what+": "+cause.Error()), detail)
}
