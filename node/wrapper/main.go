// Command runc-wrapper changes the OCI spec of a container by rules and becomes the OCI runtime.
//
// containerd's shim calls it by the runtime's own command line. For the commands that read a bundle's config.json
// (create, run, restore) the rules are applied to that file first; every other command passes through untouched. Its
// rules lie beside it, in rules.json. What no rule names stays byte for byte as it was.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Config is the content of rules.json.
type Config struct {
	Runtime []string `json:"runtime"` // what starts the OCI runtime: its absolute path, or a loader's with its arguments
	Rules   []Rule   `json:"rules"`   // applied in order
}

func main() {
	if os.Args[0] == showName {
		if err := show(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, showName+":", err)
			os.Exit(1)
		}
		return
	}
	// The shim takes a runtime's standard error into containerd's log, so this is where an error must go.
	fmt.Fprintln(os.Stderr, "runc-wrapper:", run(os.Args))
	os.Exit(1)
}

// run returns only if it fails: else the runtime takes this process over.
func run(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	rulesFile := filepath.Join(filepath.Dir(self), "rules.json")
	content, err := os.ReadFile(rulesFile)
	if err != nil {
		return err
	}
	var config Config
	if err := json.Unmarshal(content, &config); err != nil {
		return fmt.Errorf("%s: %w", rulesFile, err)
	}
	if len(config.Runtime) == 0 {
		return fmt.Errorf("%s: it names no runtime", rulesFile)
	}
	if bundle, reads := bundleOf(args[1:]); reads {
		if err := rewrite(bundle, config.Rules, self); err != nil {
			return err
		}
	}
	err = syscall.Exec(config.Runtime[0], slices.Concat(config.Runtime, args[1:]), os.Environ())
	return fmt.Errorf("exec %s: %w", config.Runtime[0], err)
}

// globalOptionsWithValue are runc's and crun's options before the command that take the next argument as their value.
var globalOptionsWithValue = map[string]bool{
	"--root": true, "--log": true, "--log-format": true, "--criu": true, "--rootless": true, "--log-level": true,
	"--cgroup-manager": true,
}

// bundleOf finds the bundle of a command that reads one: the value of --bundle or -b, else the current folder.
func bundleOf(args []string) (bundle string, reads bool) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		if globalOptionsWithValue[args[0]] && len(args) > 1 {
			args = args[1:]
		}
		args = args[1:]
	}
	if len(args) == 0 || (args[0] != "create" && args[0] != "run" && args[0] != "restore") {
		return "", false
	}
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if name != "--bundle" && name != "-b" && name != "-bundle" {
			continue
		}
		if !joined && i+1 < len(args) {
			value = args[i+1]
		}
		return value, true
	}
	return ".", true
}

// rewrite applies the rules to a bundle's spec; the file is replaced at once or not at all.
func rewrite(bundle string, rules []Rule, self string) error {
	path := filepath.Join(bundle, "config.json")
	spec, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed, err := Apply(spec, rules)
	if err == nil && slices.ContainsFunc(rules, func(rule Rule) bool { return rule.Sysctls != "" }) {
		changed, err = showSysctls(changed, bundle, self)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	temporary := path + ".tmp"
	if err := errors.Join(os.WriteFile(temporary, changed, 0o600), os.Rename(temporary, path)); err != nil {
		return err
	}
	return nil
}
