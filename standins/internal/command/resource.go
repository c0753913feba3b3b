package command

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/mapper"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/structpb"
)

// ProcessInputs say how a command runs.
type ProcessInputs struct {
	// Interpreter is the program and its first arguments; the command is its last one. Default: /bin/sh -c.
	Interpreter *[]string `pulumi:"interpreter,optional"`
	// Dir is the directory to run in, which must exist. Default: the provider's, which is the engine's.
	Dir *string `pulumi:"dir,optional"`
	// Environment is added to the engine's environment.
	Environment *map[string]string `pulumi:"environment,optional"`
	// Stdin is what the process reads from its standard input. Default: nothing.
	Stdin *string `pulumi:"stdin,optional"`
	// Logging says which output is shown while the command runs. The outputs are kept either way. Default: both.
	Logging *Logging `pulumi:"logging,optional"`
	// AddPreviousOutputInEnv is whether the process finds the outputs of the command before it in its environment,
	// as PULUMI_COMMAND_STDOUT and PULUMI_COMMAND_STDERR. Default: true.
	AddPreviousOutputInEnv *bool `pulumi:"addPreviousOutputInEnv,optional"`
	// AssetPaths are globs, relative to Dir, of the files to return as assets.
	AssetPaths *[]string `pulumi:"assetPaths,optional"`
	// ArchivePaths are globs, relative to Dir, of the files to return as one archive.
	ArchivePaths *[]string `pulumi:"archivePaths,optional"`
}

// Inputs are what a program gives the resource. Each is part of its diff.
type Inputs struct {
	ProcessInputs
	// Triggers are values of any type whose change replaces the resource.
	Triggers *[]any `pulumi:"triggers,optional"`
	// Create is run on creation, and on an update when there is no Update. Default: nothing is run.
	Create *string `pulumi:"create,optional"`
	// Update is run when any input but Triggers changed, Delete included. Default: Create.
	Update *string `pulumi:"update,optional"`
	// Delete is run on deletion. Default: nothing is run.
	Delete *string `pulumi:"delete,optional"`
}

// RunInputs are the arguments of the function command:local:run.
type RunInputs struct {
	ProcessInputs
	// Command is the command to run, in previews too.
	Command string `pulumi:"command"`
}

// ProcessOutputs are what a command left behind. As in the real provider a secret input does not make them secret:
// that is for the resource's additionalSecretOutputs to say.
type ProcessOutputs struct {
	// Stdout is what was written to standard output, without the last newline.
	Stdout string
	// Stderr is what was written to standard error, without the last newline.
	Stderr string
	// Assets are the files that AssetPaths selected, by path relative to the directory. Nil without AssetPaths.
	Assets map[string]*resource.Asset
	// Archive holds the files that ArchivePaths selected. Nil without ArchivePaths.
	Archive *resource.Archive
}

// The outputs' names in the state.
const (
	stdoutKey  = resource.PropertyKey("stdout")
	stderrKey  = resource.PropertyKey("stderr")
	assetsKey  = resource.PropertyKey("assets")
	archiveKey = resource.PropertyKey("archive")
)

// decode reads the known properties of one of the input structs: secrets are unwrapped, and unknowns, which only
// previews have, are left out.
func decode[T any](s *structpb.Struct) (T, error) {
	var target T
	all, err := plugin.UnmarshalProperties(s, plugin.MarshalOptions{KeepUnknowns: true, SkipNulls: true})
	if err != nil {
		return target, fmt.Errorf("reading the engine's request: %w", err)
	}
	if err := mapper.MapI(knownIn(all), &target); err != nil {
		return target, err
	}
	return target, nil
}

// knownIn returns the properties that are known, looking into objects. A list is known as a whole.
func knownIn(all resource.PropertyMap) map[string]any {
	known := map[string]any{}
	for key, value := range all {
		switch {
		case value.IsObject():
			known[string(key)] = knownIn(value.ObjectValue())
		case !value.ContainsUnknowns():
			known[string(key)] = value.Mappable()
		}
	}
	return known
}

// diffInputs compares inputs as the engine holds them. Properties that the engine adds for itself do not count.
func diffInputs(olds, news resource.PropertyMap) *pulumirpc.DiffResponse {
	news = news.Copy()
	for key := range news {
		if key == "version" || strings.HasPrefix(string(key), "__") {
			delete(news, key)
		}
	}
	response := &pulumirpc.DiffResponse{Changes: pulumirpc.DiffResponse_DIFF_NONE, HasDetailedDiff: true}
	changes := plugin.NewDetailedDiffFromObjectDiff(olds.Diff(news), false)
	if len(changes) == 0 {
		return response
	}
	response.Changes = pulumirpc.DiffResponse_DIFF_SOME
	response.DetailedDiff = make(map[string]*pulumirpc.PropertyDiff, len(changes))
	for path, change := range changes {
		property, _, _ := strings.Cut(path, ".")
		property, _, _ = strings.Cut(property, "[")
		if !slices.Contains(response.Diffs, property) {
			response.Diffs = append(response.Diffs, property)
		}
		if path == "triggers" {
			change.Kind = change.Kind.AsReplace()
			response.Replaces = []string{path}
		}
		response.DetailedDiff[path] = &pulumirpc.PropertyDiff{Kind: pulumirpc.PropertyDiff_Kind(change.Kind)}
	}
	slices.Sort(response.Diffs)
	return response
}

// lastOutputs are what the last command left in the state.
func lastOutputs(state *structpb.Struct) (ProcessOutputs, error) {
	known, err := plugin.UnmarshalProperties(state, plugin.MarshalOptions{SkipNulls: true})
	if err != nil {
		return ProcessOutputs{}, fmt.Errorf("reading the resource's state: %w", err)
	}
	var out ProcessOutputs
	if v := known[stdoutKey]; v.IsString() {
		out.Stdout = v.StringValue()
	}
	if v := known[stderrKey]; v.IsString() {
		out.Stderr = v.StringValue()
	}
	if v := known[assetsKey]; v.IsObject() {
		out.Assets = map[string]*resource.Asset{}
		for path, asset := range v.ObjectValue() {
			if asset.IsAsset() {
				out.Assets[string(path)] = asset.AssetValue()
			}
		}
	}
	if v := known[archiveKey]; v.IsArchive() {
		out.Archive = v.ArchiveValue()
	}
	return out, nil
}

// addOutputs puts out into state.
func addOutputs(state resource.PropertyMap, out ProcessOutputs) {
	state[stdoutKey] = resource.NewStringProperty(out.Stdout)
	state[stderrKey] = resource.NewStringProperty(out.Stderr)
	if out.Assets != nil {
		assets := resource.PropertyMap{}
		for path, asset := range out.Assets {
			assets[resource.PropertyKey(path)] = resource.NewAssetProperty(asset)
		}
		state[assetsKey] = resource.NewObjectProperty(assets)
	}
	if out.Archive != nil {
		state[archiveKey] = resource.NewArchiveProperty(out.Archive)
	}
}

// markUnknown makes what a command would write unknown in a preview's state. Without a command to run, which may
// itself be unknown yet, the outputs are known to stay.
func markUnknown(state resource.PropertyMap) {
	has := func(key resource.PropertyKey) bool {
		_, ok := state[key]
		return ok
	}
	if !has("create") && !has("update") {
		return
	}
	unknown := resource.MakeComputed(resource.NewStringProperty(""))
	state[stdoutKey], state[stderrKey] = unknown, unknown
	if has("assetPaths") {
		state[assetsKey] = unknown
	}
	if has("archivePaths") {
		state[archiveKey] = unknown
	}
}
