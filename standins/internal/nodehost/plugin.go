package nodehost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"sync"

	"github.com/pulumi/pulumi/sdk/v3/go/common/apitype"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

// RunPlugin runs a provider that is itself a Node.js program, until the engine hangs up. Policy packs are not done
// here: they need a proxy that takes the stack's configuration for them.
func (h *Host) RunPlugin(req *pulumirpc.RunPluginRequest, server pulumirpc.LanguageRuntime_RunPluginServer) error {
	if req.GetKind() == string(apitype.AnalyzerPlugin) {
		return notHere("running a policy pack (--policy-pack)")
	}
	if req.GetAttachDebugger() {
		return notHere("attaching a debugger (--attach-debugger)")
	}
	info := req.GetInfo()
	opts, err := parseOptions(info.GetOptions().AsMap())
	if err != nil {
		return err
	}
	node, err := findNode()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(server.Context())
	defer cancel()
	defer context.AfterFunc(h.lifetime, cancel)()
	runner, err := resolveModule(ctx, node, info.GetProgramDirectory(), "@pulumi/pulumi/cmd/run-plugin")
	if err != nil {
		return err
	}
	streams, stdout, stderr, err := rpcutil.MakeRunPluginStreams(server, false)
	if err != nil {
		return err
	}
	defer streams.Close()
	stdout, stderr = inTurn(stdout, stderr)

	cmd := exec.CommandContext(ctx, node,
		slices.Concat(opts.nodeArgs, []string{runner, info.GetProgramDirectory()}, req.GetArgs())...)
	cmd.Dir = req.GetPwd()
	cmd.Env = append(req.GetEnv(), opts.environment()...)
	cmd.Stdout, cmd.Stderr = stdout, stderr

	var exit *exec.ExitError
	if err := runGroup(ctx, cmd); errors.As(err, &exit) {
		return fmt.Errorf("the plugin in %s ended with %v", info.GetProgramDirectory(), exit)
	} else if err != nil {
		return fmt.Errorf("the plugin in %s could not be started: %w", info.GetProgramDirectory(), err)
	}
	return streams.Close()
}

// inTurn has two writers written to one at a time: both send on the same gRPC stream, which takes one message at a time
// (https://pkg.go.dev/google.golang.org/grpc#ServerStream), and Pulumi's own streams do not see to it.
func inTurn(stdout, stderr io.Writer) (io.Writer, io.Writer) {
	var mu sync.Mutex
	return &lockedWriter{&mu, stdout}, &lockedWriter{&mu, stderr}
}

type lockedWriter struct {
	mu *sync.Mutex
	to io.Writer
}

func (w *lockedWriter) Write(data []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(data)
}
