package kube

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/urn"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil/rpcerror"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// engine plays Pulumi's part: it speaks the provider protocol over gRPC and keeps what the provider says.
type engine struct {
	pulumirpc.ResourceProviderClient
	t        *testing.T
	mutex    sync.Mutex
	messages []string
	onStatus func(text string) // called with each status
}

func (e *engine) Log(_ context.Context, severity diag.Severity, _ resource.URN, text string) error {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.messages = append(e.messages, string(severity)+": "+text)
	return nil
}

func (e *engine) LogStatus(_ context.Context, _ diag.Severity, _ resource.URN, text string) error {
	e.mutex.Lock()
	e.messages = append(e.messages, "status: "+text)
	notify := e.onStatus
	e.mutex.Unlock()
	if notify != nil {
		notify(text)
	}
	return nil
}

func (e *engine) said(part string) bool {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return strings.Contains(strings.Join(e.messages, "\n"), part)
}

// start returns an engine whose provider is configured with options: name, value, name, value…
func start(t *testing.T, options ...string) *engine {
	t.Helper()
	e := &engine{t: t}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	pulumirpc.RegisterResourceProviderServer(server, NewProvider(e))
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	connection, err := grpc.NewClient("passthrough:provider", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	e.ResourceProviderClient = pulumirpc.NewResourceProviderClient(connection)
	variables := map[string]string{}
	for i := 0; i < len(options); i += 2 {
		variables["kubernetes:config:"+options[i]] = options[i+1]
	}
	//lint:ignore SA1019 They are what the provider reads.
	request := &pulumirpc.ConfigureRequest{Variables: variables, AcceptSecrets: true}
	if _, err := e.Configure(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	return e
}

// resourceState is a resource as Pulumi's state has it.
type resourceState struct {
	urn            string
	id             string
	inputs, output *structpb.Struct
}

func urnOf(token, name string) string {
	return string(urn.New("stack", "project", "", tokens.Type(token), name))
}

// properties reads YAML; "?" stands for an unknown value.
func (e *engine) properties(text string) *structpb.Struct {
	e.t.Helper()
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, "\t", "  ")), &values); err != nil {
		e.t.Fatal(err)
	}
	properties := resource.NewPropertyMapFromMapRepl(values, nil, func(value any) (resource.PropertyValue, bool) {
		return resource.MakeComputed(resource.NewStringProperty("")), value == "?"
	})
	result, err := marshal(properties)
	if err != nil {
		e.t.Fatal(err)
	}
	return result
}

// check returns the checked inputs of a resource.
func (e *engine) check(token, name, inputs string) resourceState {
	e.t.Helper()
	r := resourceState{urn: urnOf(token, name)}
	response, err := e.Check(e.t.Context(), &pulumirpc.CheckRequest{
		Urn: r.urn, News: e.properties(inputs), RandomSeed: []byte("seed"),
	})
	if err != nil {
		e.t.Fatalf("check %s: %v", name, err)
	}
	r.inputs = response.GetInputs()
	return r
}

func (e *engine) tryCreate(r resourceState, timeout float64) (resourceState, error) {
	response, err := e.Create(e.t.Context(), &pulumirpc.CreateRequest{Urn: r.urn, Properties: r.inputs, Timeout: timeout})
	r.id, r.output = response.GetId(), response.GetProperties()
	if detail := initFailure(err); detail != nil {
		r.id, r.output = detail.GetId(), detail.GetProperties()
	}
	return r, err
}

// create checks and creates a resource.
func (e *engine) create(token, name, inputs string) resourceState {
	e.t.Helper()
	r, err := e.tryCreate(e.check(token, name, inputs), 60)
	if err != nil {
		e.t.Fatalf("create %s: %v", name, err)
	}
	return r
}

// change checks new inputs of a resource and returns the difference and the request that would make it.
func (e *engine) change(
	r resourceState, inputs string, ignore ...string,
) (*pulumirpc.DiffResponse, *pulumirpc.UpdateRequest) {
	e.t.Helper()
	checked, err := e.Check(e.t.Context(), &pulumirpc.CheckRequest{
		Urn: r.urn, Olds: r.inputs, News: e.properties(inputs), RandomSeed: []byte("seed"),
	})
	if err != nil {
		e.t.Fatalf("check: %v", err)
	}
	diff, err := e.Diff(e.t.Context(), &pulumirpc.DiffRequest{
		Id: r.id, Urn: r.urn, Olds: r.output, OldInputs: r.inputs, News: checked.GetInputs(), IgnoreChanges: ignore})
	if err != nil {
		e.t.Fatalf("diff: %v", err)
	}
	return diff, &pulumirpc.UpdateRequest{
		Id: r.id, Urn: r.urn, Olds: r.output, OldInputs: r.inputs, News: checked.GetInputs(), IgnoreChanges: ignore,
		Timeout: 60,
	}
}

func (e *engine) update(r resourceState, req *pulumirpc.UpdateRequest) (resourceState, error) {
	response, err := e.Update(e.t.Context(), req)
	r.inputs, r.output = req.GetNews(), response.GetProperties()
	return r, err
}

func (e *engine) remove(r resourceState) error {
	_, err := e.Delete(e.t.Context(), &pulumirpc.DeleteRequest{
		Id: r.id, Urn: r.urn, Properties: r.output, OldInputs: r.inputs, Timeout: 60,
	})
	return err
}

func (e *engine) read(r resourceState) (*pulumirpc.ReadResponse, error) {
	return e.Read(e.t.Context(), &pulumirpc.ReadRequest{Id: r.id, Urn: r.urn, Properties: r.output, Inputs: r.inputs})
}

func initFailure(err error) *pulumirpc.ErrorResourceInitFailed {
	if err == nil {
		return nil
	}
	converted, isRPC := rpcerror.FromError(err)
	if !isRPC {
		return nil
	}
	for _, detail := range converted.Details() {
		if failure, found := detail.(*pulumirpc.ErrorResourceInitFailed); found {
			return failure
		}
	}
	return nil
}

// field returns a field of properties as text: "unknown" and "secret(…)" for what is.
func (e *engine) field(properties *structpb.Struct, path string) string {
	e.t.Helper()
	values, err := unmarshal(properties)
	if err != nil {
		e.t.Fatal(err)
	}
	parsed, err := resource.ParsePropertyPath(path)
	if err != nil {
		e.t.Fatal(err)
	}
	value, found := parsed.Get(resource.NewObjectProperty(values))
	return show(value, found)
}

func show(value resource.PropertyValue, found bool) string {
	switch {
	case !found:
		return "none"
	case value.IsSecret():
		return "secret(" + show(value.SecretValue().Element, true) + ")"
	case value.IsComputed() || value.IsOutput():
		return "unknown"
	}
	return fmt.Sprint(value.V)
}
