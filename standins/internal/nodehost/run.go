package nodehost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/config"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

const (
	// userWasTold is the runner's exit code for "the error is on the user's screen already".
	userWasTold = 32
	// stopGrace is how long a stopped program has between SIGINT and SIGKILL. The engine itself kills a host that is
	// not gone five seconds after it was told to stop, and then nobody is left to kill the program.
	stopGrace = 3 * time.Second
)

// Run runs a program to its end. That a program fails is part of the response; an error is this host's own.
//
// The runner talks to the engine's resource monitor directly, where the real host puts a proxy between them: the
// engine knows Node.js by its gRPC client's user agent, and no released SDK of version 3 makes the synchronous
// invokes that the proxy's pipes are for.
func (h *Host) Run(ctx context.Context, req *pulumirpc.RunRequest) (*pulumirpc.RunResponse, error) {
	if h.engineAddress == "" {
		return nil, errors.New("the engine's address is not known: it must be the host's argument or come with Handshake")
	}
	// The program must stop with the request, with Cancel and with the host.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.lifetime, cancel)()

	cmd, err := h.programCommand(ctx, req)
	if err != nil {
		return &pulumirpc.RunResponse{Error: err.Error()}, nil
	}
	heap := &heapWatch{to: os.Stderr}
	// node may switch its standard streams to non-blocking mode, which would hit this process if it had the same
	// files; hidden in a struct they are copied through pipes.
	cmd.Stdout = struct{ io.Writer }{os.Stdout}
	cmd.Stderr = heap

	return response(ctx, runGroup(ctx, cmd), heap.exhausted), nil
}

// programCommand is the command that runs the program.
func (h *Host) programCommand(ctx context.Context, req *pulumirpc.RunRequest) (*exec.Cmd, error) {
	if req.GetAttachDebugger() {
		return nil, notHere("attaching a debugger (--attach-debugger)")
	}
	info := req.GetInfo()
	opts, err := parseOptions(info.GetOptions().AsMap())
	if err != nil {
		return nil, err
	}
	node, err := findNode()
	if err != nil {
		return nil, err
	}
	runner, err := resolveModule(ctx, node, info.GetProgramDirectory(), "@pulumi/pulumi/cmd/run")
	if err != nil {
		return nil, err
	}
	configuration, err := configVariables(req)
	if err != nil {
		return nil, err
	}

	args := append(opts.nodeArgs, runner)
	args = append(args, h.runnerArguments(req)...)
	cmd := exec.CommandContext(ctx, node, args...)
	cmd.Env = slices.Concat(os.Environ(), configuration, opts.environment())
	return cmd, nil
}

// runnerArguments are what @pulumi/pulumi/cmd/run takes: its flags, the program, and the program's own arguments.
func (h *Host) runnerArguments(req *pulumirpc.RunRequest) []string {
	var args []string
	flag := func(name, value string) {
		if value != "" {
			args = append(args, "--"+name, value)
		}
	}
	flag("monitor", req.GetMonitorAddress())
	flag("engine", h.engineAddress)
	flag("organization", req.GetOrganization())
	flag("project", req.GetProject())
	flag("root-directory", req.GetInfo().GetRootDirectory())
	flag("stack", req.GetStack())
	flag("pwd", req.GetInfo().GetProgramDirectory())
	if req.GetDryRun() {
		args = append(args, "--dry-run")
	}
	flag("parallel", strconv.Itoa(int(req.GetParallel())))
	args = append(args, req.GetInfo().GetEntryPoint())
	return append(args, req.GetArgs()...)
}

// configVariables are the stack's configuration as the SDK reads it from its environment: the values, which keep the
// old form of their keys (project:config:key), and which of them are secret.
func configVariables(req *pulumirpc.RunRequest) ([]string, error) {
	values := make(map[string]string, len(req.GetConfig()))
	for name, value := range req.GetConfig() {
		key, err := config.ParseKey(name)
		if err != nil {
			return nil, fmt.Errorf("configuration key %q: %w", name, err)
		}
		values[key.Namespace()+":config:"+key.Name()] = value
	}
	secrets := req.GetConfigSecretKeys()
	if secrets == nil {
		secrets = []string{}
	}
	valuesJSON, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	secretsJSON, err := json.Marshal(secrets)
	if err != nil {
		return nil, err
	}
	return []string{"PULUMI_CONFIG=" + string(valuesJSON), "PULUMI_CONFIG_SECRET_KEYS=" + string(secretsJSON)}, nil
}

func findNode() (string, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return "", fmt.Errorf("node is not on PATH: install Node.js, or put its directory on PATH: %w", err)
	}
	return node, nil
}

// resolveModule finds a module of the SDK as node does for programs in dir: first by node's plain rule, in process, as
// a node of its own takes a while to start, and failing that by asking node, which knows of more places (Yarn's
// Plug'n'Play, NODE_PATH).
func resolveModule(ctx context.Context, node, dir, module string) (string, error) {
	for parent := dir; ; parent = filepath.Dir(parent) {
		path := filepath.Join(parent, "node_modules", filepath.FromSlash(module), "index.js")
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return filepath.EvalSymlinks(path) // as node does, or the SDK would be loaded twice when it is linked
		}
		if parent == filepath.Dir(parent) {
			break
		}
	}
	cmd := exec.CommandContext(ctx, node, "-p", "require.resolve(process.argv[1])", module)
	cmd.Dir = dir
	path, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("the Pulumi SDK (npm package @pulumi/pulumi) is not installed for %s: run `pulumi install` "+
			"there, or the package manager's install", dir)
	}
	return strings.TrimSpace(string(path)), nil
}

// runGroup runs cmd in a process group of its own. When ctx ends first the group gets SIGINT and, after stopGrace,
// SIGKILL, so that nothing that a program started outlives a cancelled run.
func runGroup(ctx context.Context, cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = stopGrace
	err := cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // gone already is the usual case
	}
	return err
}

// response turns a program's end into the answer to the engine.
func response(ctx context.Context, err error, heapExhausted bool) *pulumirpc.RunResponse {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return &pulumirpc.RunResponse{}
	case ctx.Err() != nil:
		return &pulumirpc.RunResponse{Error: "the program was stopped: the operation was cancelled"}
	case !errors.As(err, &exit):
		return &pulumirpc.RunResponse{Error: fmt.Sprintf("the program could not be started: %v", err)}
	case exit.ExitCode() == userWasTold:
		return &pulumirpc.RunResponse{Bail: true}
	case heapExhausted:
		return &pulumirpc.RunResponse{Error: fmt.Sprintf("the program ended with %v: node's heap is full. Give it more, "+
			"for example 4 GiB with runtime.options.nodeargs: --max-old-space-size=4096 in Pulumi.yaml", exit)}
	case exit.ExitCode() < 0: // by a signal
		return &pulumirpc.RunResponse{Error: fmt.Sprintf("the program ended with %v", exit)}
	default:
		return &pulumirpc.RunResponse{Error: fmt.Sprintf("Program exited with non-zero exit code: %d", exit.ExitCode())}
	}
}

// heapWatch passes on what node writes to standard error and notices when it ran out of heap.
type heapWatch struct {
	to        io.Writer
	last      string // what the marker may have begun in
	exhausted bool
}

const heapMarker = "JavaScript heap out of memory"

func (w *heapWatch) Write(data []byte) (int, error) {
	seen := w.last + string(data)
	w.exhausted = w.exhausted || strings.Contains(seen, heapMarker)
	w.last = seen[max(0, len(seen)-len(heapMarker)):]
	return w.to.Write(data)
}
