// Package nodehost is the language runtime of Node.js programs: what the Pulumi engine asks of a language host to run
// a program, short of generating code. The program itself runs in the SDK's own runner, @pulumi/pulumi/cmd/run.
package nodehost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
	"github.com/pulumi/pulumi/sdk/v3/nodejs/npm"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Version is the Pulumi release that this host was written for and reports, such as "3.250.0".
func Version() string { return sdk.Version.String() }

// Host serves the engine's requests. Its zero value is not usable: see [New].
type Host struct {
	pulumirpc.UnimplementedLanguageRuntimeServer
	engineAddress string
	lifetime      context.Context // ends with the process, or when the engine cancels
	cancel        context.CancelFunc
}

// New returns a host that stops its programs when ctx ends. engineAddress may be empty if the engine calls
// [Host.Handshake] before it runs a program.
func New(ctx context.Context, engineAddress string) *Host {
	lifetime, cancel := context.WithCancel(ctx)
	return &Host{engineAddress: engineAddress, lifetime: lifetime, cancel: cancel}
}

// Handshake takes the address of an engine that attached to a running host.
func (h *Host) Handshake(
	_ context.Context, req *pulumirpc.LanguageHandshakeRequest,
) (*pulumirpc.LanguageHandshakeResponse, error) {
	h.engineAddress = req.GetEngineAddress()
	return &pulumirpc.LanguageHandshakeResponse{}, nil
}

// GetPluginInfo reports [Version].
func (h *Host) GetPluginInfo(context.Context, *emptypb.Empty) (*pulumirpc.PluginInfo, error) {
	return &pulumirpc.PluginInfo{Version: Version()}, nil
}

// Cancel stops every program that runs.
func (h *Host) Cancel(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	h.cancel()
	return &emptypb.Empty{}, nil
}

// GetRequiredPackages lists the provider plugins that the installed npm packages say they need.
func (h *Host) GetRequiredPackages(
	_ context.Context, req *pulumirpc.GetRequiredPackagesRequest,
) (*pulumirpc.GetRequiredPackagesResponse, error) {
	packages, err := requiredPackages(req.GetInfo().GetProgramDirectory())
	if err != nil {
		return nil, err
	}
	return &pulumirpc.GetRequiredPackagesResponse{Packages: packages}, nil
}

// About says which node and package manager a program gets.
func (h *Host) About(ctx context.Context, req *pulumirpc.AboutRequest) (*pulumirpc.AboutResponse, error) {
	manager, err := packageManager(req.GetInfo())
	if err != nil {
		return nil, err
	}
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, fmt.Errorf("node is not on PATH: %w", err)
	}
	// A version that cannot be found out is left out, as it is in the real host: this is information, not a check.
	response := &pulumirpc.AboutResponse{Executable: node, Metadata: map[string]string{"packagemanager": manager.Name()}}
	if version, err := exec.CommandContext(ctx, node, "--version").Output(); err == nil {
		response.Version = strings.TrimSpace(string(version))
	}
	if version := managerVersion(manager); version != "" {
		response.Metadata["packagemanagerVersion"] = version
	}
	return response, nil
}

// managerVersion is the version of a package manager, or "". The engine asks on every update, so npm, which takes
// half a second to say, is not asked: its package.json is read.
func managerVersion(manager npm.PackageManager) string {
	if manager.Name() == "npm" {
		if version := npmVersion(); version != "" {
			return version
		}
	}
	version, err := manager.Version()
	if err != nil {
		return ""
	}
	return version.String()
}

// npmVersion reads the version of the npm on PATH from its installation, or returns "" if that looks unusual.
func npmVersion() string {
	path, err := exec.LookPath("npm")
	if err != nil {
		return ""
	}
	if path, err = filepath.EvalSymlinks(path); err != nil { // npm is a link to PACKAGE/bin/npm-cli.js
		return ""
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "..", "package.json"))
	if err != nil {
		return ""
	}
	var manifest struct{ Name, Version string }
	if err := json.Unmarshal(text, &manifest); err != nil || manifest.Name != "npm" {
		return ""
	}
	return manifest.Version
}

// GetProgramDependencies lists the npm packages of the program's lock file.
func (h *Host) GetProgramDependencies(
	ctx context.Context, req *pulumirpc.GetProgramDependenciesRequest,
) (*pulumirpc.GetProgramDependenciesResponse, error) {
	manager, err := packageManager(req.GetInfo())
	if err != nil {
		return nil, err
	}
	packages, err := manager.ListPackages(ctx, req.GetInfo().GetProgramDirectory(), req.GetTransitiveDependencies())
	if err != nil {
		return nil, fmt.Errorf("listing the program's npm packages: %w", err)
	}
	response := &pulumirpc.GetProgramDependenciesResponse{}
	for _, pkg := range packages {
		response.Dependencies = append(response.Dependencies,
			&pulumirpc.DependencyInfo{Name: pkg.Name, Version: pkg.Version})
	}
	return response, nil
}

// InstallDependencies installs the program's npm packages with the package manager of its options or lock file.
func (h *Host) InstallDependencies(
	req *pulumirpc.InstallDependenciesRequest, server pulumirpc.LanguageRuntime_InstallDependenciesServer,
) error {
	streams, stdout, stderr, err := rpcutil.MakeInstallDependenciesStreams(server, req.GetIsTerminal())
	if err != nil {
		return err
	}
	defer streams.Close()
	if !req.GetIsTerminal() { // else both are the terminal itself
		stdout, stderr = inTurn(stdout, stderr)
	}

	opts, err := parseOptions(req.GetInfo().GetOptions().AsMap())
	if err != nil {
		return err
	}
	root := req.GetInfo().GetProgramDirectory()
	fmt.Fprint(stdout, "Installing dependencies...\n\n")
	if workspace, err := npm.FindWorkspaceRoot(root); err == nil {
		fmt.Fprintf(stdout, "Detected workspace root at %s\n", workspace)
		root = workspace
	} else if !errors.Is(err, npm.ErrNotInWorkspace) {
		return fmt.Errorf("looking for the npm workspace of %s: %w", root, err)
	}
	if _, err := npm.Install(server.Context(), opts.packageManager, root, false, stdout, stderr); err != nil {
		return err
	}
	fmt.Fprint(stdout, "Finished installing dependencies\n\n")
	return streams.Close()
}

// RuntimeOptionsPrompts lets `pulumi new` ask for the package manager when the project does not name one.
func (h *Host) RuntimeOptionsPrompts(
	_ context.Context, req *pulumirpc.RuntimeOptionsRequest,
) (*pulumirpc.RuntimeOptionsResponse, error) {
	if _, chosen := req.GetInfo().GetOptions().AsMap()["packagemanager"]; chosen {
		return &pulumirpc.RuntimeOptionsResponse{}, nil
	}
	return &pulumirpc.RuntimeOptionsResponse{Prompts: []*pulumirpc.RuntimeOptionPrompt{{
		Key:         "packagemanager",
		Description: "The package manager to use for installing dependencies",
		PromptType:  pulumirpc.RuntimeOptionPrompt_STRING,
		Choices:     plugin.MakeExecutablePromptChoices("npm", "pnpm", "yarn", "bun"),
		Default: &pulumirpc.RuntimeOptionPrompt_RuntimeOptionValue{
			PromptType: pulumirpc.RuntimeOptionPrompt_STRING, StringValue: "npm",
		},
	}}}, nil
}

// Template has nothing to adjust in a new project.
func (h *Host) Template(context.Context, *pulumirpc.TemplateRequest) (*pulumirpc.TemplateResponse, error) {
	return &pulumirpc.TemplateResponse{}, nil
}

// GenerateProgram is not done here.
func (h *Host) GenerateProgram(
	context.Context, *pulumirpc.GenerateProgramRequest,
) (*pulumirpc.GenerateProgramResponse, error) {
	return nil, notHere("generating a program (pulumi convert, pulumi import)")
}

// GenerateProject is not done here.
func (h *Host) GenerateProject(
	context.Context, *pulumirpc.GenerateProjectRequest,
) (*pulumirpc.GenerateProjectResponse, error) {
	return nil, notHere("generating a project (pulumi convert)")
}

// GeneratePackage is not done here.
func (h *Host) GeneratePackage(
	context.Context, *pulumirpc.GeneratePackageRequest,
) (*pulumirpc.GeneratePackageResponse, error) {
	return nil, notHere("generating an SDK (pulumi package add, pulumi package gen-sdk)")
}

// Pack is not done here.
func (h *Host) Pack(context.Context, *pulumirpc.PackRequest) (*pulumirpc.PackResponse, error) {
	return nil, notHere("packing an SDK (pulumi package pack-sdk)")
}

// Link is not done here.
func (h *Host) Link(context.Context, *pulumirpc.LinkRequest) (*pulumirpc.LinkResponse, error) {
	return nil, notHere("linking an SDK into a project (pulumi package add)")
}

func notHere(what string) error {
	return status.Errorf(codes.Unimplemented, "%s is not done by gvisor-k3s's stand-in for pulumi-language-nodejs, which "+
		"only runs programs: use the host that comes with Pulumi %s", what, Version())
}
