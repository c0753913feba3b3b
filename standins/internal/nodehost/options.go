package nodehost

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/shlex"
	"github.com/pulumi/pulumi/sdk/v3/nodejs/npm"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

// options are those of `runtime: {name: nodejs, options: …}` in Pulumi.yaml.
type options struct {
	// typescript makes the runner load TypeScript through ts-node, with a type check. Default: true. With false the
	// program is loaded by node itself, which from version 24 strips the types.
	typescript bool
	// tsconfig is the path of the tsconfig.json for ts-node. Default: the one in the program's directory.
	tsconfig string
	// nodeArgs are arguments for node, before those of the program.
	nodeArgs []string
	// packageManager installs the dependencies. Default: told by the lock file.
	packageManager npm.PackageManagerType
}

// packageManagers are the values of the option packagemanager.
var packageManagers = map[string]npm.PackageManagerType{
	"auto": npm.AutoPackageManager,
	"npm":  npm.NpmPackageManager,
	"yarn": npm.YarnPackageManager,
	"pnpm": npm.PnpmPackageManager,
	"bun":  npm.BunPackageManager,
}

// parseOptions reports every wrong option at once. Options that it does not know are left to other hosts.
func parseOptions(raw map[string]any) (options, error) {
	opts := options{typescript: true, packageManager: npm.AutoPackageManager}
	var problems []error
	wrong := func(name, allowed string) {
		problems = append(problems, fmt.Errorf("runtime option %s is %v (%T); it must be %s, "+
			"in Pulumi.yaml under runtime.options", name, raw[name], raw[name], allowed))
	}
	text := func(name string) (value string, ok bool) {
		if raw[name] == nil {
			return "", false
		}
		if value, ok = raw[name].(string); !ok {
			wrong(name, "a string")
		}
		return value, ok
	}

	if value, given := raw["typescript"]; given {
		on, ok := value.(bool)
		if !ok {
			wrong("typescript", "true or false")
		}
		opts.typescript = on
	}
	opts.tsconfig, _ = text("tsconfig")
	if args, ok := text("nodeargs"); ok {
		var err error
		if opts.nodeArgs, err = shlex.Split(args); err != nil {
			wrong("nodeargs", "words as a shell takes them ("+err.Error()+")")
		}
	}
	if name, ok := text("packagemanager"); ok {
		manager, known := packageManagers[name]
		if !known {
			wrong("packagemanager", "one of "+strings.Join(sortedKeys(packageManagers), ", "))
		}
		opts.packageManager = manager
	}
	return opts, errors.Join(problems...)
}

// environment is what the SDK's runners read of the options.
func (o options) environment() []string {
	var env []string
	if o.typescript {
		env = append(env, "PULUMI_NODEJS_TYPESCRIPT=true")
	}
	if o.tsconfig != "" {
		env = append(env, "PULUMI_NODEJS_TSCONFIG_PATH="+o.tsconfig)
	}
	return env
}

// packageManager resolves the package manager of a program.
func packageManager(info *pulumirpc.ProgramInfo) (npm.PackageManager, error) {
	opts, err := parseOptions(info.GetOptions().AsMap())
	if err != nil {
		return nil, err
	}
	return npm.ResolvePackageManager(opts.packageManager, info.GetProgramDirectory())
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
