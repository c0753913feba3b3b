package supervise

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor-k3s/host/backoff"
	"gvisor-k3s/host/cgroup"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/process"
)

const whole = `{
	"version": 1, "name": "dev", "state": "/state",
	"runsc": {"program": "/runsc", "root": "/state/runsc", "flags": ["--platform=systrap"], "bundle": "/state/bundle"},
	"boot": {
		"command": ["/init", "boot", "--forget"], "again": ["/init", "boot"], "replay": ["/init", "boot", "--replay"],
		"input": "text", "seconds": 20
	},
	"network": {"namespace": "gk-dev", "host": "10.107.1.1/30", "node": "10.107.1.2/30", "tap":
		{"device": "tap0", "address": "169.254.77.2/30", "gateway": "169.254.77.1/30", "mtu": 65000}},
	"filter": {"ports": [5000]}, "limits": {"memory": 4294967296, "cpus": 1.5},
	"egress": {"pods": "10.42.0.0/16", "resolvConf": "/etc/resolv.conf", "siblings": "gk-"},
	"restart": true, "stopSeconds": 30
}`

func wholeSpec(t *testing.T) Spec {
	t.Helper()
	spec, err := parseSpec([]byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestSpec(t *testing.T) {
	want := Spec{
		Version: 1, Name: "dev", State: "/state",
		Runsc: Runsc{"/runsc", "/state/runsc", []string{"--platform=systrap"}, "/state/bundle"},
		Boot: Boot{
			Command: []string{"/init", "boot", "--forget"}, Again: []string{"/init", "boot"},
			Replay: []string{"/init", "boot", "--replay"}, Input: "text", Seconds: 20,
		},
		Network: network.Network{
			Namespace: "gk-dev", Host: netip.MustParsePrefix("10.107.1.1/30"), Node: netip.MustParsePrefix("10.107.1.2/30"),
			Tap: &network.Tap{
				Device: "tap0", Address: netip.MustParsePrefix("169.254.77.2/30"),
				Gateway: netip.MustParsePrefix("169.254.77.1/30"), MTU: 65000,
			},
		},
		Filter: &Filter{Ports{List: []uint16{5000}}}, Limits: cgroup.Limits{Memory: 4 << 30, CPUs: 1.5},
		Egress:  &Egress{netip.MustParsePrefix("10.42.0.0/16"), "/etc/resolv.conf", "gk-"},
		Restart: true, StopSeconds: 30,
	}
	got := wholeSpec(t)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	// What is noted of it is read again as it was.
	for _, change := range []func(*Spec){
		func(*Spec) {}, func(s *Spec) { s.Filter = nil }, func(s *Spec) { s.Filter = &Filter{Ports{All: true}} },
		func(s *Spec) { s.Filter = &Filter{Ports{List: []uint16{}}} },
		func(s *Spec) { s.Egress, s.Network.Tap = nil, nil },
	} {
		spec := got
		change(&spec)
		text, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseSpec(text); err != nil || !reflect.DeepEqual(again, spec) {
			t.Errorf("%s: got %+v, %v", text, again, err)
		}
	}
}

func TestMistakesOfASpec(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{`"version": 1`, `"version": 2`, "its version is 2, and this program knows version 1"},
		{`"restart"`, `"restarts"`, `unknown field "restarts"`},
		{`"stopSeconds": 30`, `"stopSeconds": 30, "more": 1`, `unknown field "more"`},
		{`"mtu": 65000`, `"mtu": 65000, "more": 1`, `unknown field "more"`},
		{`"stopSeconds": 30`, `"stopSeconds": 601`, "stopSeconds is 601"},
		{`[5000]`, `[0]`, `[0] is neither a list of ports nor "all"`},
		{`[5000]`, `[65536]`, `[65536] is neither a list of ports nor "all"`},
		{`[5000]`, `"some"`, `"some" is neither`},
		{`[5000]`, `null`, `null is neither`},
		{`"--platform=systrap"`, `"--root=/elsewhere"`, `"--root=/elsewhere" is none that may be given`},
		{`"--platform=systrap"`, `"exec"`, `"exec" is none that may be given`},
		{`"/state/bundle"`, `"/state/../bundle"`, `runsc.bundle "/state/../bundle": an absolute path`},
		{`"dev"`, `"-dev"`, `name "-dev"`},
		{`["/init", "boot", "--replay"]`, `[]`, "each is needed"},
		{`"cpus": 1.5`, `"cpus": -1`, "cpus -1"},
		{`"tap":
		{"device": "tap0", "address": "169.254.77.2/30", "gateway": "169.254.77.1/30", "mtu": 65000}`, `"tap": null`,
			"egress: it takes network.tap"},
		{`"/etc/resolv.conf"`, `"resolv.conf"`, `egress.resolvConf "resolv.conf"`},
		{"\n}", "\n} {}", "after top-level value"},
		{`"ports": [5000]`, ``, "filter.ports is missing"},
	} {
		text := strings.Replace(whole, c.from, c.to, 1)
		if text == whole {
			t.Fatalf("%s is not in the spec", c.from)
		}
		if _, err := parseSpec([]byte(text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.to, err, c.want)
		}
	}
	_, err := parseSpec(bytes.Repeat([]byte(" "), longestSpec+1))
	if err == nil || !strings.Contains(err.Error(), "it has more than") {
		t.Errorf("got %v", err)
	}
}

func TestReplaced(t *testing.T) {
	now := wholeSpec(t)
	now.Network.Tap, now.Egress = nil, nil
	wanted := wholeSpec(t)
	wanted.StopSeconds = 7
	got, restarts := now.replaced(wanted)
	if !slices.Equal(restarts, []string{"network"}) || got.StopSeconds != 7 {
		t.Errorf("got %+v, %v", got, restarts)
	}
	if got.Network.Tap != nil || got.Egress != nil {
		t.Errorf("a way out without a tap: %+v", got)
	}
	if got, restarts := wanted.replaced(wholeSpec(t)); len(restarts) > 0 || !reflect.DeepEqual(got, wholeSpec(t)) {
		t.Errorf("got %+v, %v", got, restarts)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff.Backoff
	for i, c := range []struct{ lived, want time.Duration }{
		{0, 1}, {0, 2}, {time.Minute, 4}, {0, 8}, {0, 16}, {0, 32}, {0, 60}, {0, 60}, {5 * time.Minute, 1}, {0, 2},
	} {
		if got := b.Next(c.lived); got != c.want*time.Second {
			t.Errorf("%d: got %s, want %d s", i, got, c.want)
		}
	}
}

func newStore(t *testing.T) *store {
	return &store{
		file: filepath.Join(t.TempDir(), "supervisor.json"), log: log.New(&bytes.Buffer{}, "", 0),
		state: State{Version: stateVersion},
	}
}

func TestState(t *testing.T) {
	s := newStore(t)
	if state, err := readState(s.file); err != nil || state != (State{}) {
		t.Errorf("without a file: %+v, %v", state, err)
	}
	self, _ := process.Of(os.Getpid())
	s.change(func(state *State) {
		state.ID, state.BootID, state.Starts, state.Sandbox = self, bootID(), 3, &Part{self, 3}
	})
	s.wrong(egressTrouble, errors.New("no way out"))
	s.wrong(specTrouble, errors.New("no spec"))
	s.wrong(egressTrouble, errors.New("still none"))
	got, err := readState(s.file)
	if err != nil || got.Error != "still none\nno spec" || got.Starts != 3 || got.runs(got.Sandbox) == nil {
		t.Errorf("got %+v, %v", got, err)
	}
	info, err := os.Stat(s.file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	s.egressStarted(self)
	s.wrong(specTrouble, nil)
	got, _ = readState(s.file)
	if got.Error != "" || *got.Egress != (Part{self, 1}) {
		t.Errorf("got %+v", got)
	}
	// In another boot the same numbers are others.
	got.BootID = "another"
	if got.runs(got.Sandbox) != nil {
		t.Error("a process of another boot runs")
	}
	for text, want := range map[string]string{"{": "JSON", `{"version":2}`: "version 1"} {
		os.WriteFile(s.file, []byte(text), 0o600)
		if _, err := readState(s.file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What was written half is never there under the name, and does not stay under another.
func TestHalfWritten(t *testing.T) {
	s := newStore(t)
	half := filepath.Join(filepath.Dir(s.file), ".supervisor.json123")
	other := filepath.Join(filepath.Dir(s.file), ".supervisor.spec.json123")
	for _, file := range []string{half, other} {
		os.WriteFile(file, nil, 0o600)
	}
	removeHalf(s.file)
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there still: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	// A folder that takes no files, as on a disk that is full, ends nothing.
	s.file = filepath.Join(filepath.Dir(s.file), "nothing", "supervisor.json")
	s.change(func(state *State) { state.Starts = 4 })
	if s.current().Starts != 4 {
		t.Error("the state is not kept")
	}
}

func newKeeper(t *testing.T) *logKeeper {
	t.Helper()
	spec := wholeSpec(t)
	spec.State = t.TempDir()
	spec.Runsc.Root = filepath.Join(spec.State, "runsc")
	if err := os.MkdirAll(spec.runscLogs(), 0o700); err != nil {
		t.Fatal(err)
	}
	return newLogKeeper(spec, log.New(os.Stderr, "", 0))
}

func fill(t *testing.T, file string, size int64, end string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size-int64(len(end))); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteString(end)
}

func size(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestLogsBeginAnew(t *testing.T) {
	k := newKeeper(t)
	at := func(name string) string { return filepath.Join(k.folder, name) }
	fill(t, at("sandbox.log"), mostLog+1, "the end")
	fill(t, at("egress.log"), mostLog, "the end")
	fill(t, at("runsc/boot.txt"), 1<<40, "the end") // with a hole: it is not read
	fill(t, at("supervisor.log"), mostLog+1, "the end")
	fill(t, at("supervisor-2026-11-25T00-00-00.000.log"), mostLog+1, "the end")
	writer, err := os.OpenFile(at("sandbox.log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	for range 2 {
		k.tidy()
	}
	writer.WriteString("goes on")
	for name, want := range map[string]int64{
		"sandbox.log": int64(len("goes on")), "sandbox.log.1": mostLog, "egress.log": mostLog, "runsc/boot.txt": 0,
		"runsc/boot.txt.1": mostLog, "supervisor.log": mostLog + 1, "supervisor-2026-11-25T00-00-00.000.log": mostLog + 1,
	} {
		if got := size(t, at(name)); got != want {
			t.Errorf("%s has %d bytes, want %d", name, got, want)
		}
	}
	if got := endOf(at("sandbox.log.1")); !strings.HasSuffix(got, "the end") {
		t.Errorf("what is kept ends in %.20q", got[max(0, len(got)-20):])
	}
	if left, _ := filepath.Glob(at(".*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

func TestRunscsOldLogsAreRemoved(t *testing.T) {
	k := newKeeper(t)
	name := func(i int) string { return filepath.Join(k.debug, fmt.Sprintf("runsc.log.%02d.txt", i)) }
	for i := range mostDebugLogs + 5 {
		fill(t, name(i), 10, "")
		when := time.Now().Add(time.Duration(i-100) * time.Hour)
		if err := os.Chtimes(name(i), when, when); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, name(0)+oldSuffix, 10, "")
	fill(t, name(24)+oldSuffix, 10, "")
	fill(t, filepath.Join(k.debug, "panic.log"), 10, "")
	old := time.Now().Add(-1000 * time.Hour)
	os.Chtimes(filepath.Join(k.debug, "panic.log"), old, old)
	// A process of the sandbox's has one of the oldest open.
	open, err := os.OpenFile(name(1), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	holder := exec.Command("/bin/sh", "-c", "read line", "sandbox", k.root)
	holder.ExtraFiles = []*os.File{open}
	input, _ := holder.StdinPipe()
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	left := func() []string {
		k.tidy()
		files, _ := filepath.Glob(filepath.Join(k.debug, "*"))
		for i := range files {
			files[i] = filepath.Base(files[i])
		}
		return files
	}
	want := []string{"panic.log", "runsc.log.01.txt"}
	for i := 5; i < mostDebugLogs+5; i++ {
		want = append(want, fmt.Sprintf("runsc.log.%02d.txt", i))
	}
	want = append(want, "runsc.log.24.txt.1")
	if got := left(); !slices.Equal(got, want) {
		t.Errorf("with one open: got %v, want %v", got, want)
	}
	input.Close()
	holder.Wait()
	want = slices.Delete(want, 1, 2)
	if got := left(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLogsAreWatched(t *testing.T) {
	k := newKeeper(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := k.watch(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sandbox.log", "runsc/boot.txt"} {
		file := filepath.Join(k.folder, name)
		fill(t, file, mostLog+1, "")
		deadline := time.Now().Add(30 * time.Second)
		for size(t, file) > 0 {
			if time.Now().After(deadline) {
				t.Fatalf("%s has %d bytes still", name, size(t, file))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}
