package supervise

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gvisor-k3s/host/cgroup"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/publish"
)

// specVersion is that of the form of a spec.
const specVersion = 1

// A spec is text for people; one that is longer is none.
const longestSpec = 4 << 20

// Spec describes a sandbox.
type Spec struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	// State is the folder of what is kept of the sandbox. The sandbox sees nothing of it.
	State   string          `json:"state"`
	Runsc   Runsc           `json:"runsc"`
	Boot    Boot            `json:"boot"`
	Network network.Network `json:"network"`
	// Filter keeps it from the host's services; without one nothing is filtered.
	Filter *Filter       `json:"filter"`
	Limits cgroup.Limits `json:"limits"`
	// Egress is its way out; without one it has none.
	Egress *Egress `json:"egress"`
	// Publish are ports of it that are answered at addresses of the host.
	Publish []publish.Port `json:"publish"`
	// Restart has it started again when it has ended.
	Restart bool `json:"restart"`
	// StopSeconds is how long it has to end in good order.
	StopSeconds int `json:"stopSeconds"`
}

// Runsc is how the sandbox is run.
type Runsc struct {
	Program string   `json:"program"`
	Root    string   `json:"root"`
	Flags   []string `json:"flags"`
	Bundle  string   `json:"bundle"`
}

// Boot is what is run in the sandbox when it has been started.
type Boot struct {
	// Command is run at the first start, and Again when a sandbox that died is started again. It gets the input, and is
	// run until it succeeds, for so many seconds.
	Command []string `json:"command"`
	Again   []string `json:"again"`
	Input   string   `json:"input"`
	Seconds int      `json:"seconds"`
	// Replay brings back what ran in a sandbox that is started again.
	Replay []string `json:"replay"`
}

// Filter is what the sandbox reaches of the host.
type Filter struct {
	Ports Ports `json:"ports"`
}

// Ports are the host's: a list, or "all".
type Ports struct {
	List []uint16
	All  bool
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Ports) UnmarshalJSON(text []byte) error {
	*p = Ports{}
	if string(text) == `"all"` {
		p.All = true
		return nil
	}
	if err := json.Unmarshal(text, &p.List); err != nil || p.List == nil || slices.Contains(p.List, 0) {
		return fmt.Errorf(`filter.ports: %.100s is neither a list of ports nor "all"`, text)
	}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (p Ports) MarshalJSON() ([]byte, error) {
	if p.All {
		return json.Marshal("all")
	}
	return json.Marshal(p.List)
}

// Egress is the way out of a sandbox that has a tap.
type Egress struct {
	Pods       netip.Prefix `json:"pods"`
	ResolvConf string       `json:"resolvConf"`
	// Siblings is what the names of all sandboxes' links begin with, whose networks it leads nowhere in; "" for none.
	Siblings string `json:"siblings"`
}

// readSpec reads a spec, and its hash.
func readSpec(file string) (Spec, string, error) {
	opened, err := os.Open(file)
	if err != nil {
		return Spec{}, "", fmt.Errorf("the sandbox's spec: %w", err)
	}
	defer opened.Close()
	text, err := io.ReadAll(io.LimitReader(opened, longestSpec+1))
	if err != nil {
		return Spec{}, "", fmt.Errorf("the sandbox's spec: %w", err)
	}
	hash := sha256.Sum256(text)
	spec, err := parseSpec(text)
	if err != nil {
		err = fmt.Errorf("the sandbox's spec %s: %w", file, err)
	}
	return spec, hex.EncodeToString(hash[:]), err
}

func parseSpec(text []byte) (Spec, error) {
	if len(text) > longestSpec {
		return Spec{}, fmt.Errorf("it has more than %d bytes", longestSpec)
	}
	// The version comes first: what another one has is not known here. Unlike a decoder this takes nothing that follows.
	var form struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &form); err != nil {
		return Spec{}, err
	}
	if form.Version != specVersion {
		return Spec{}, fmt.Errorf("its version is %d, and this program knows version %d: both have to be of one release",
			form.Version, specVersion)
	}
	var spec Spec
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&spec); err != nil {
		return Spec{}, err
	}
	return spec, errors.Join(spec.problems()...)
}

// A name is the part of paths, and an argument of runsc's.
var sandboxName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$`)

// problems are all that is wrong.
func (s Spec) problems() []error {
	problems := s.Network.Problems()
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !sandboxName.MatchString(s.Name) {
		wrong("name %q: 1 to 63 letters, digits, dots, dashes and underscores are allowed", s.Name)
	}
	for what, path := range map[string]string{
		"state": s.State, "runsc.program": s.Runsc.Program, "runsc.root": s.Runsc.Root, "runsc.bundle": s.Runsc.Bundle,
	} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
			wrong("%s %q: an absolute path is needed, without . and ..", what, path)
		}
	}
	for _, flag := range s.Runsc.Flags {
		if !strings.HasPrefix(flag, "--") || strings.HasPrefix(flag, "--root=") {
			wrong("runsc.flags: %q is none that may be given", flag)
		}
	}
	if len(s.Boot.Command) == 0 || len(s.Boot.Again) == 0 || len(s.Boot.Replay) == 0 {
		wrong("boot.command, boot.again and boot.replay: each is needed")
	}
	if s.Boot.Seconds < 1 || s.Boot.Seconds > 600 {
		wrong("boot.seconds is %d: 1 to 600 is allowed", s.Boot.Seconds)
	}
	if s.StopSeconds < 0 || s.StopSeconds > 600 {
		wrong("stopSeconds is %d: 0 to 600 is allowed", s.StopSeconds)
	}
	if s.Limits.Memory < 0 || s.Limits.CPUs < 0 {
		wrong("limits: memory %d and cpus %g: neither is less than 0, which is no limit", s.Limits.Memory, s.Limits.CPUs)
	}
	if s.Filter != nil && !s.Filter.Ports.All && s.Filter.Ports.List == nil {
		wrong("filter.ports is missing")
	}
	for _, port := range s.Publish {
		problems = append(problems, port.Problems())
	}
	if s.Egress == nil {
		return problems
	}
	if s.Network.Tap == nil {
		wrong("egress: it takes network.tap")
	}
	if !s.Egress.Pods.Addr().Is4() {
		wrong("egress.pods is %q: an IPv4 network is needed, such as 10.42.0.0/16", s.Egress.Pods)
	}
	if !filepath.IsAbs(s.Egress.ResolvConf) {
		wrong("egress.resolvConf %q: an absolute path is needed", s.Egress.ResolvConf)
	}
	return problems
}

// replaced is what a sandbox that runs gets of another spec, and the names of what it would have to be restarted for.
func (s Spec) replaced(by Spec) (Spec, []string) {
	var restarts []string
	for _, part := range []struct {
		name    string
		now, to any
	}{
		{"name", s.Name, by.Name}, {"state", s.State, by.State}, {"runsc", s.Runsc, by.Runsc},
		{"network", s.Network, by.Network},
	} {
		if !reflect.DeepEqual(part.now, part.to) {
			restarts = append(restarts, part.name)
		}
	}
	by.Name, by.State, by.Runsc, by.Network = s.Name, s.State, s.Runsc, s.Network
	if by.Egress != nil && by.Network.Tap == nil {
		by.Egress = nil // the tap comes with the restart
	}
	return by, restarts
}

// What is where in the state folder. The sandbox sees none of it.
func (s Spec) in(names ...string) string {
	return filepath.Join(append([]string{s.State}, names...)...)
}

func (s Spec) stateFile() string   { return s.in("supervisor.json") }
func (s Spec) appliedFile() string { return s.in("supervisor.spec.json") }
func (s Spec) lockFile() string    { return s.in("supervisor.lock") }
func (s Spec) logs() string        { return s.in("log") }
func (s Spec) runscLogs() string   { return s.in("log", "runsc") }
func (s Spec) ownLog() string      { return s.in("log", "supervisor.log") }
func (s Spec) sandboxLog() string  { return s.in("log", "sandbox.log") }
func (s Spec) egressLog() string   { return s.in("log", "egress.log") }
func (s Spec) panicLog() string    { return s.in("log", "runsc", "panic.log") }

// pidFile is where runsc notes the sandbox's process.
func (s Spec) pidFile() string { return filepath.Join(s.Runsc.Root, "pid") }

// rootArgument is in the command line of each of the sandbox's processes.
func (s Spec) rootArgument() string { return "--root=" + s.Runsc.Root }
