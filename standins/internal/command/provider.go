// Package command is the local half of Pulumi's command provider: the resource command:local:Command and the function
// command:local:run, with the inputs, outputs and diffs of the pulumi-command release named by [Version].
package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/provider"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// Version is the pulumi-command release whose behaviour this provider has, and what it reports to the engine.
const Version = "1.2.1"

const (
	commandType = "command:local:Command"
	runFunction = "command:local:run"
)

// Provider serves the engine's requests. Its zero value is not usable: see [NewProvider].
type Provider struct {
	pulumirpc.UnimplementedResourceProviderServer
	engine     *provider.HostClient
	operations operations
}

// NewProvider returns the provider. Commands log to engine; without one (nil, an engine that attached to a running
// provider) their output is only kept, not shown.
func NewProvider(engine *provider.HostClient) *Provider {
	return &Provider{engine: engine}
}

// GetPluginInfo reports [Version].
func (p *Provider) GetPluginInfo(context.Context, *emptypb.Empty) (*pulumirpc.PluginInfo, error) {
	return &pulumirpc.PluginInfo{Version: Version}, nil
}

// GetSchema is not served: nothing at run time needs it, only code generation does.
func (p *Provider) GetSchema(context.Context, *pulumirpc.GetSchemaRequest) (*pulumirpc.GetSchemaResponse, error) {
	return nil, status.Errorf(codes.Unimplemented, "the schema is not served by gvisor-k3s's stand-in for "+
		"pulumi-command %s; ready-made SDKs are in the language's package registry, such as @pulumi/command", Version)
}

// CheckConfig accepts every configuration: this provider has none.
func (p *Provider) CheckConfig(_ context.Context, req *pulumirpc.CheckRequest) (*pulumirpc.CheckResponse, error) {
	return &pulumirpc.CheckResponse{Inputs: req.GetNews()}, nil
}

// Configure opts in to everything that keeps values as they are: secrets, unknowns in previews, outputs.
func (p *Provider) Configure(context.Context, *pulumirpc.ConfigureRequest) (*pulumirpc.ConfigureResponse, error) {
	return &pulumirpc.ConfigureResponse{
		AcceptSecrets:   true,
		SupportsPreview: true,
		AcceptResources: true,
		AcceptOutputs:   true,
	}, nil
}

// Check reports every input that is unknown to the resource or has the wrong type.
func (p *Provider) Check(_ context.Context, req *pulumirpc.CheckRequest) (*pulumirpc.CheckResponse, error) {
	if err := served(req.GetUrn()); err != nil {
		return nil, err
	}
	inputs, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	checked, err := marshal(inputs)
	if err != nil {
		return nil, err
	}
	return &pulumirpc.CheckResponse{Inputs: checked, Failures: checkFailures[Inputs](req.GetNews())}, nil
}

// Diff compares the old and new inputs. Adding or removing triggers replaces the resource here; a changed element is
// an update here, which the SDKs turn into a replacement (replaceOnChanges: triggers[*]).
func (p *Provider) Diff(_ context.Context, req *pulumirpc.DiffRequest) (*pulumirpc.DiffResponse, error) {
	if err := served(req.GetUrn()); err != nil {
		return nil, err
	}
	olds, err := unmarshal(req.GetOldInputs())
	if err != nil {
		return nil, err
	}
	news, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	return diffInputs(olds, news), nil
}

// Create runs the create command, if there is one.
func (p *Provider) Create(ctx context.Context, req *pulumirpc.CreateRequest) (*pulumirpc.CreateResponse, error) {
	in, err := decodeFor(req.GetUrn(), req.GetProperties())
	if err != nil {
		return nil, err
	}
	id, err := resource.NewUniqueHex(resource.URN(req.GetUrn()).Name(), 8, 0)
	if err != nil {
		return nil, err
	}
	state, err := p.apply(ctx, req.GetUrn(), in.Create, in.ProcessInputs, ProcessOutputs{},
		req.GetProperties(), req.GetTimeout(), req.GetPreview())
	if err != nil {
		return nil, err
	}
	return &pulumirpc.CreateResponse{Id: id, Properties: state}, nil
}

// Update runs the update command or, without one, the create command again. With neither, the outputs stay.
func (p *Provider) Update(ctx context.Context, req *pulumirpc.UpdateRequest) (*pulumirpc.UpdateResponse, error) {
	in, err := decodeFor(req.GetUrn(), req.GetNews())
	if err != nil {
		return nil, err
	}
	last, err := lastOutputs(req.GetOlds())
	if err != nil {
		return nil, err
	}
	command := in.Update
	if command == nil {
		command = in.Create
	}
	state, err := p.apply(ctx, req.GetUrn(), command, in.ProcessInputs, last,
		req.GetNews(), req.GetTimeout(), req.GetPreview())
	if err != nil {
		return nil, err
	}
	return &pulumirpc.UpdateResponse{Properties: state}, nil
}

// Delete runs the delete command, if there is one.
func (p *Provider) Delete(ctx context.Context, req *pulumirpc.DeleteRequest) (*emptypb.Empty, error) {
	in, err := decodeFor(req.GetUrn(), req.GetProperties())
	if err != nil {
		return nil, err
	}
	last, err := lastOutputs(req.GetProperties())
	if err != nil {
		return nil, err
	}
	_, err = p.apply(ctx, req.GetUrn(), in.Delete, in.ProcessInputs, last, nil, req.GetTimeout(), false)
	return &emptypb.Empty{}, err
}

// Read returns the state as it is: what a command once wrote cannot be read again.
func (p *Provider) Read(_ context.Context, req *pulumirpc.ReadRequest) (*pulumirpc.ReadResponse, error) {
	if err := served(req.GetUrn()); err != nil {
		return nil, err
	}
	return &pulumirpc.ReadResponse{Id: req.GetId(), Properties: req.GetProperties(), Inputs: req.GetInputs()}, nil
}

// Invoke runs command:local:run.
func (p *Provider) Invoke(ctx context.Context, req *pulumirpc.InvokeRequest) (*pulumirpc.InvokeResponse, error) {
	if req.GetTok() != runFunction {
		return nil, notHere(req.GetTok())
	}
	if failures := checkFailures[RunInputs](req.GetArgs()); len(failures) > 0 {
		return &pulumirpc.InvokeResponse{Failures: failures}, nil
	}
	in, err := decode[RunInputs](req.GetArgs())
	if err != nil {
		return nil, err
	}
	result, err := p.apply(ctx, "", &in.Command, in.ProcessInputs, ProcessOutputs{}, req.GetArgs(), 0, false)
	if err != nil {
		return nil, err
	}
	return &pulumirpc.InvokeResponse{Return: result}, nil
}

// Cancel stops every command that runs, and those that are still to start.
func (p *Provider) Cancel(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	p.operations.cancel()
	return &emptypb.Empty{}, nil
}

// apply runs command, unless it is nil or this is a preview, and returns the state: the inputs as they came, secrets
// included, and the outputs. timeout is in seconds; 0 is none.
func (p *Provider) apply(
	ctx context.Context, urn string, command *string, in ProcessInputs, last ProcessOutputs,
	inputs *structpb.Struct, timeout float64, preview bool,
) (*structpb.Struct, error) {
	state, err := unmarshal(inputs)
	if err != nil {
		return nil, err
	}
	out := last
	if command != nil && !preview {
		ctx, done := p.operations.start(ctx, timeout)
		defer done()
		if err := run(ctx, *command, in, &out, p.logger(ctx, urn)); err != nil {
			return nil, err
		}
	}
	addOutputs(state, out)
	if preview {
		markUnknown(state)
	}
	return marshal(state)
}

// logger shows a command's output in the status column of its resource, as long as the command runs.
func (p *Provider) logger(ctx context.Context, urn string) func(line string) {
	if p.engine == nil {
		return func(string) {}
	}
	return func(line string) {
		// A line that the engine does not take is not worth failing the command for: the output is kept anyway.
		_ = p.engine.LogStatus(context.WithoutCancel(ctx), diag.Info, resource.URN(urn), line)
	}
}

// served is nil for the one resource type of this provider.
func served(urn string) error {
	if typ := string(resource.URN(urn).Type()); typ != commandType {
		return notHere(typ)
	}
	return nil
}

// decodeFor reads the inputs of the resource that urn names, from them or from a state, which has the last ones, too.
func decodeFor(urn string, s *structpb.Struct) (Inputs, error) {
	if err := served(urn); err != nil {
		return Inputs{}, err
	}
	return decode[Inputs](s)
}

// notHere names what was asked for and the way to get it.
func notHere(token string) error {
	if !strings.HasPrefix(token, "command:") {
		return status.Errorf(codes.NotFound, "%q is not of the package command", token)
	}
	return status.Errorf(codes.Unimplemented, "%s is not done by gvisor-k3s's stand-in for pulumi-command %s, which "+
		"runs commands on this machine only (%s, %s). Take it off PATH and install the real one where it can be "+
		"downloaded: pulumi plugin install resource command %s", token, Version, commandType, runFunction, Version)
}

// unmarshal keeps everything that the engine may send: secrets, unknowns, resources, outputs.
func unmarshal(s *structpb.Struct) (resource.PropertyMap, error) {
	m, err := plugin.UnmarshalProperties(s, plugin.MarshalOptions{
		KeepUnknowns: true, KeepSecrets: true, KeepResources: true, KeepOutputValues: true, SkipNulls: true,
	})
	if err != nil {
		return nil, fmt.Errorf("reading the engine's request: %w", err)
	}
	return m, nil
}

func marshal(m resource.PropertyMap) (*structpb.Struct, error) {
	return plugin.MarshalProperties(m, plugin.MarshalOptions{
		KeepUnknowns: true, KeepSecrets: true, KeepResources: true, KeepOutputValues: true, SkipNulls: true,
	})
}
