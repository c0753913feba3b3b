// Package kube is a Pulumi resource provider for Kubernetes: every resource type is one API object, found through the
// API server's own discovery. It follows Pulumi's provider of the same name in what it stores and how it behaves, so
// that a stack can move to that one; docs/plugins-compared.md lists where the two differ.
//
// One file per step of a resource's life: check, diff, write (create and update), read, remove. Beside them: state
// (what is stored), cluster (how the API is reached), await and ready (when an object counts as up).
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Version is the release of @pulumi/kubernetes that this provider stands in for, marked as its stand-in.
const Version = "4.34.2+gvisor-k3s"

// Log is where messages for the user go; the engine's host client is one.
type Log interface {
	// Log adds a message to the update's diagnostics.
	Log(ctx context.Context, severity diag.Severity, urn resource.URN, message string) error
	// LogStatus shows a message beside the resource until the next one replaces it.
	LogStatus(ctx context.Context, severity diag.Severity, urn resource.URN, message string) error
}

// Provider serves Pulumi's resource provider protocol for one configured cluster.
type Provider struct {
	pulumirpc.UnimplementedResourceProviderServer

	log      Log
	settings settings
	cluster  *cluster

	// cancelled ends when the engine asks to stop; every operation ends with it.
	cancelled context.Context
	cancel    context.CancelFunc
	warned    sync.Map // "urn\x00text" of the API server's warnings already shown
}

// NewProvider returns a provider that sends its messages to log and is not configured yet.
func NewProvider(log Log) *Provider {
	ctx, cancel := context.WithCancel(context.Background())
	return &Provider{log: log, cancelled: ctx, cancel: cancel}
}

// operation returns the context of one request: it ends with the request or with Cancel, and it carries the resource
// that the API server's warnings belong to.
func (p *Provider) operation(ctx context.Context, urn resource.URN) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithValue(ctx, urnKey{}, urn))
	stop := context.AfterFunc(p.cancelled, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

type urnKey struct{}

// HandleWarningHeaderWithContext shows a warning of the API server, such as a deprecated version, once per resource.
func (p *Provider) HandleWarningHeaderWithContext(ctx context.Context, code int, _ string, text string) {
	urn, known := ctx.Value(urnKey{}).(resource.URN)
	if code != 299 || !known || p.settings.suppressDeprecationWarnings {
		return
	}
	if _, before := p.warned.LoadOrStore(string(urn)+"\x00"+text, true); !before {
		p.say(ctx, diag.Warning, urn, "%s", text)
	}
}

// say adds a message to the update's diagnostics. A message that does not arrive is no reason to fail an operation.
func (p *Provider) say(ctx context.Context, severity diag.Severity, urn resource.URN, format string, args ...any) {
	_ = p.log.Log(context.WithoutCancel(ctx), severity, urn, fmt.Sprintf(format, args...))
}

// status shows a message beside the resource; "" clears it.
func (p *Provider) status(ctx context.Context, urn resource.URN, message string) {
	_ = p.log.LogStatus(context.WithoutCancel(ctx), diag.Info, urn, message)
}

// GetPluginInfo returns the version that this provider stands in for.
func (p *Provider) GetPluginInfo(context.Context, *emptypb.Empty) (*pulumirpc.PluginInfo, error) {
	return &pulumirpc.PluginInfo{Version: Version}, nil
}

// GetSchema returns a schema with no resources: the types live in the language SDK, the objects' shapes in the API
// server. Programs in YAML and code generation need the real provider's schema.
func (p *Provider) GetSchema(_ context.Context, req *pulumirpc.GetSchemaRequest) (*pulumirpc.GetSchemaResponse, error) {
	if req.GetVersion() != 0 || req.GetSubpackageName() != "" {
		return nil, fmt.Errorf("schema version %d of sub-package %q is not known here: "+
			"only version 0 of the package itself is", req.GetVersion(), req.GetSubpackageName())
	}
	schema, err := json.Marshal(map[string]any{
		"name":        "kubernetes",
		"version":     Version,
		"description": "A small stand-in for Pulumi's Kubernetes provider; it carries no resource schemas.",
		"provider":    map[string]any{},
		"resources":   map[string]any{},
	})
	return &pulumirpc.GetSchemaResponse{Schema: string(schema)}, err
}

// Cancel ends every running operation; one that waits for an object then reports what it has seen so far.
func (p *Provider) Cancel(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	p.cancel()
	return &emptypb.Empty{}, nil
}

// Construct refuses the component resources of @pulumi/kubernetes, each with what to use in its place.
func (p *Provider) Construct(_ context.Context, req *pulumirpc.ConstructRequest) (*pulumirpc.ConstructResponse, error) {
	return nil, refusal(req.GetType())
}

// Call refuses: no component is served here, so none has a method.
func (p *Provider) Call(_ context.Context, req *pulumirpc.CallRequest) (*pulumirpc.CallResponse, error) {
	return nil, refusal(req.GetTok())
}

// Invoke serves kubernetes:yaml:decode, on which the v1 components ConfigFile and ConfigGroup stand, and refuses the
// functions that need Helm or Kustomize.
func (p *Provider) Invoke(ctx context.Context, req *pulumirpc.InvokeRequest) (*pulumirpc.InvokeResponse, error) {
	if req.GetTok() != "kubernetes:yaml:decode" {
		return nil, refusal(req.GetTok())
	}
	ctx, cancel := p.operation(ctx, "")
	defer cancel()
	args, err := unmarshal(req.GetArgs())
	if err != nil {
		return nil, err
	}
	text, namespace := args["text"], args["defaultNamespace"]
	if !text.IsString() {
		return nil, errors.New("kubernetes:yaml:decode: text: a string of YAML documents is needed")
	}
	defaultNamespace := ""
	if namespace.IsString() {
		defaultNamespace = namespace.StringValue()
	}
	objects, err := p.decodeYAML(ctx, text.StringValue(), defaultNamespace)
	if err != nil {
		return nil, fmt.Errorf("kubernetes:yaml:decode: %w", err)
	}
	result, err := marshal(resource.NewPropertyMapFromMap(map[string]any{"result": objects}))
	return &pulumirpc.InvokeResponse{Return: result}, err
}

// refusal names a type or function that this provider does not serve, and the way out.
func refusal(token string) error {
	instead := "Take this stand-in off PATH and install the real one, where it can be downloaded: " +
		"pulumi plugin install resource kubernetes 4.34.2"
	switch token {
	case "kubernetes:helm.sh/v3:Release", "kubernetes:helm.sh/v4:Chart", "kubernetes:helm:template":
		instead = "Render the chart with `helm template` and give the objects as resources, " +
			"or install it with the helm CLI. " + instead
	case "kubernetes:yaml/v2:ConfigFile", "kubernetes:yaml/v2:ConfigGroup":
		instead = "Use kubernetes.yaml.ConfigFile or kubernetes.yaml.ConfigGroup (v1), which are served. " + instead
	case "kubernetes:kustomize/v2:Directory", "kubernetes:kustomize:directory":
		instead = "Build it with `kubectl kustomize` and give the result to kubernetes.yaml.ConfigGroup. " + instead
	}
	return fmt.Errorf("%s is not served by this provider: it is gvisor-k3s's small stand-in for Pulumi's Kubernetes "+
		"provider, one resource per API object. %s", token, instead)
}
