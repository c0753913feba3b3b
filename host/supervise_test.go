package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/cgroup"
	"gvisor-k3s/host/internal/testnet"
	"gvisor-k3s/host/netns"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/process"
	"gvisor-k3s/host/supervise"
)

// box is a sandbox, or what stands for one, and all that is known of it.
type box struct {
	t      *testing.T
	name   string
	state  string // the folder
	file   string // of its spec
	folder string // of what the fake runsc is to do
	spec   map[string]any
}

const echoed = testnet.Remote + ":8080"

// newBox describes a sandbox with a fake runsc, on a host that reaches a machine outside.
func newBox(t *testing.T) *box {
	t.Helper()
	testnet.UpOutside(t)
	// The cgroups are those of all of this machine.
	b := &box{t: t, name: "test-" + strings.ToLower(rand.Text()[:8]), state: t.TempDir(), folder: t.TempDir()}
	b.file = filepath.Join(b.state, "spec.json")
	program := filepath.Join(b.folder, "runsc")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' test-runsc '%s' \"$@\"\n", self, b.folder)
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	b.knob("namespace", network.File(testnet.Inside))
	sandbox := testnet.Sandbox()
	b.spec = map[string]any{
		"version": 1, "name": b.name, "state": b.state,
		"runsc": map[string]any{
			"program": program, "root": filepath.Join(b.state, "runsc"), "flags": []string{"--platform=systrap"},
			"bundle": filepath.Join(b.state, "bundle"),
		},
		"boot": map[string]any{
			"command": []string{"/bin/true"}, "again": []string{"/bin/true"}, "input": "what boots",
			"replay": []string{"/bin/echo", "replayed"}, "seconds": 20,
		},
		"network": map[string]any{
			"namespace": sandbox.Namespace, "host": sandbox.Host, "node": sandbox.Node,
			"tap": map[string]any{
				"device": sandbox.Tap.Device, "address": sandbox.Tap.Address, "gateway": sandbox.Tap.Gateway,
				"mtu": sandbox.Tap.MTU,
			},
		},
		"filter":  map[string]any{"ports": []int{5000}},
		"limits":  map[string]any{"memory": 1 << 30, "cpus": 1.5},
		"egress":  map[string]any{"pods": "10.42.0.0/16", "resolvConf": "/etc/resolv.conf"},
		"restart": true, "stopSeconds": 30,
	}
	t.Cleanup(b.clear)
	return b
}

// clear removes what a test has left.
func (b *box) clear() {
	b.t.Helper()
	own := func() []int { // the supervisor comes first, which would start the sandbox again
		root := "--root=" + filepath.Join(b.state, "runsc")
		return append(process.WithArgument(b.file), process.WithArgument(root)...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second) // the test's own has ended
	defer cancel()
	if err := process.Kill(ctx, "what the test has started", own); err != nil {
		b.t.Error(err)
	}
	if err := network.Down(ctx, testnet.Inside); err != nil {
		b.t.Error(err)
	}
	if group, err := cgroup.Find(b.name); err == nil {
		if err := group.Remove(ctx); err != nil {
			b.t.Error(err)
		}
	}
}

func (b *box) knob(name, content string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.folder, name), []byte(content), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// noted is what the fake runsc has noted, by lines.
func (b *box) noted(file string) []string {
	text, _ := os.ReadFile(filepath.Join(b.folder, file))
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// count is how often the fake runsc was called for something.
func (b *box) count(prefix string) int {
	count := 0
	for _, line := range b.noted("calls") {
		if strings.HasPrefix(line, prefix) {
			count++
		}
	}
	return count
}

// write writes the spec, and returns its hash.
func (b *box) write() string {
	b.t.Helper()
	text, err := json.Marshal(b.spec)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.file, text, 0o600); err != nil {
		b.t.Fatal(err)
	}
	hash := sha256.Sum256(text)
	return hex.EncodeToString(hash[:])
}

func (b *box) set(path string, value any) {
	part := b.spec
	names := strings.Split(path, ".")
	for _, name := range names[:len(names)-1] {
		part = part[name].(map[string]any)
	}
	part[names[len(names)-1]] = value
}

// up starts a supervisor, which has to be ready.
func (b *box) up() *program {
	b.t.Helper()
	b.write()
	p := start(b.t, "supervise", b.file)
	if p.said != nil {
		b.t.Fatalf("it is not ready: %v\n%s", p.said, b.log())
	}
	return p
}

func (b *box) log() string {
	text, _ := os.ReadFile(filepath.Join(b.state, "log", "supervisor.log"))
	return string(text)
}

func (b *box) told() supervise.State {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.state, "supervisor.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	var state supervise.State
	if err := json.Unmarshal(text, &state); err != nil {
		b.t.Fatalf("%q: %v", text, err)
	}
	return state
}

// await waits until the state is so.
func (b *box) await(what string, is func(supervise.State) bool) supervise.State {
	b.t.Helper()
	defer func() {
		if b.t.Failed() {
			b.t.Logf("%+v\n%s", b.told(), b.log())
		}
	}()
	testnet.Eventually(b.t, what, func() bool { return is(b.told()) })
	return b.told()
}

// runs tells that all runs, and well.
func runs(s supervise.State) bool {
	return s.Sandbox != nil && s.Sandbox.Alive() && !s.Replaying && s.Egress != nil && s.Egress.Alive() && s.Error == ""
}

// echo answers whoever reaches the machine outside.
func echo(t *testing.T) {
	listener := testnet.Listen(t, 8080)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(conn, conn)
				conn.Close()
			}()
		}
	}()
}

// reaches fails the test unless the sandbox reaches the machine outside.
func (b *box) reaches() {
	b.t.Helper()
	conn, err := testnet.Dial(testnet.Node, echoed)
	if err != nil {
		b.t.Fatalf("the sandbox reaches nobody: %v\n%s", err, b.log())
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	conn.Write([]byte("question"))
	conn.CloseWrite()
	if answer, err := io.ReadAll(conn); err != nil || string(answer) != "question" {
		b.t.Fatalf("the sandbox got %q, %v", answer, err)
	}
}

// nothingLeft fails the test where anything of the sandbox is there outside its folder.
func (b *box) nothingLeft() {
	b.t.Helper()
	if left := process.WithArgument("--root=" + filepath.Join(b.state, "runsc")); len(left) > 0 {
		b.t.Errorf("processes %v are left", left)
	}
	if left := process.WithArgument("-netns=" + network.File(testnet.Inside)); len(left) > 0 {
		b.t.Errorf("ways out %v are left", left)
	}
	if _, err := netlink.LinkByName(testnet.Inside); err == nil {
		b.t.Error("the link is left")
	}
	if _, err := os.Stat(network.File(testnet.Inside)); err == nil {
		b.t.Error("the network namespace is left")
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/gvisor-k3s/" + b.name)
	unified, _ := filepath.Glob("/sys/fs/cgroup/gvisor-k3s/" + b.name)
	if left := append(groups, unified...); len(left) > 0 {
		b.t.Errorf("cgroups %v are left", left)
	}
	if left, _ := os.ReadDir(filepath.Join(b.state, "runsc")); len(left) > 0 {
		b.t.Errorf("runsc's folder has %v", left)
	}
	if b.t.Failed() {
		b.t.Log(b.log())
	}
}

func (p *program) kill(t *testing.T, signal unix.Signal) {
	t.Helper()
	if err := unix.Kill(p.Process.Pid, signal); err != nil {
		t.Fatal(err)
	}
}

// end waits for the end of a supervisor, and returns its exit code.
func (p *program) end(t *testing.T) int {
	t.Helper()
	err := p.Wait()
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		return ended.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}

func TestASandboxIsKeptRunning(t *testing.T) {
	b := newBox(t)
	echo(t)
	hash := b.write()
	p := b.up()
	first := b.told()
	if !runs(first) || first.Version != 1 || first.PID != p.Process.Pid || !first.Alive() || first.Spec != hash ||
		first.Sandbox.Starts != 1 || first.Starts != 1 || first.Egress.Starts != 1 {
		t.Errorf("got %+v", first)
	}
	if got := b.noted("inputs"); !slices.Equal(got, []string{"what boots"}) {
		t.Errorf("it was booted with %q", got)
	}
	if got := b.count("exec " + b.name + " /bin/echo replayed"); got != 0 {
		t.Errorf("%d replays of a sandbox that is new", got)
	}
	flags := b.noted("flags")[0]
	for _, want := range []string{
		"--root=" + b.state + "/runsc --platform=systrap --debug-log=" + b.state + "/log/runsc/ " +
			"--panic-log=" + b.state + "/log/runsc/panic.log",
	} {
		if flags != want {
			t.Errorf("runsc was given %q", flags)
		}
	}
	b.reaches()

	unix.Kill(first.Sandbox.PID, unix.SIGKILL)
	second := b.await("the sandbox runs again", func(s supervise.State) bool {
		return runs(s) && s.Sandbox.Starts == 2
	})
	if second.PID != first.PID || second.Sandbox.PID == first.Sandbox.PID || second.Egress.PID == first.Egress.PID ||
		second.Egress.Starts != 2 {
		t.Errorf("got %+v after %+v", second, first)
	}
	if got := b.count("exec " + b.name + " /bin/echo replayed"); got != 1 {
		t.Errorf("%d replays", got)
	}
	for _, want := range []string{"a word of the sandbox's", "brought back what ran in the sandbox: \n    replayed"} {
		if !strings.Contains(b.log(), want) {
			t.Errorf("the log does not say %q:\n%s", want, b.log())
		}
	}
	b.reaches()

	p.kill(t, unix.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Errorf("it ended with %d: %s", code, p.output)
	}
	if last := b.told(); last.Sandbox != nil || last.Egress != nil || last.Error != "" || last.Starts != 2 {
		t.Errorf("in the end: %+v", last)
	}
	if got := b.noted("signals"); !slices.Equal(got, []string{"TERM"}) {
		t.Errorf("the sandbox got %q", got)
	}
	b.nothingLeft()
}

func TestAKilledSupervisorIsFollowed(t *testing.T) {
	b := newBox(t)
	echo(t)
	p := b.up()
	first := b.told()
	calls := len(b.noted("calls"))
	p.kill(t, unix.SIGKILL)
	p.end(t)
	testnet.Eventually(t, "the way out ends with it", func() bool { return !first.Egress.Alive() })
	if !first.Sandbox.Alive() {
		t.Fatal("the sandbox ended with it")
	}
	b.up()
	second := b.told()
	if !runs(second) || second.Sandbox.ID != first.Sandbox.ID || second.Sandbox.Starts != 1 || second.Spec != first.Spec ||
		second.Egress.PID == first.Egress.PID {
		t.Errorf("got %+v after %+v", second, first)
	}
	if got := b.noted("calls"); len(got) != calls {
		t.Errorf("runsc was called for %q", got[calls:])
	}
	b.reaches()
	// The second one keeps it as the first one did.
	unix.Kill(second.Sandbox.PID, unix.SIGKILL)
	b.await("the sandbox runs again", func(s supervise.State) bool { return runs(s) && s.Sandbox.Starts == 2 })
	b.reaches()
}

// A supervisor is killed before it has brought back what ran in the sandbox.
func TestAReplayIsMadeUpFor(t *testing.T) {
	b := newBox(t)
	p := b.up()
	hanging := []string{"/bin/sh", "-c", "echo begun; sleep 1000"}
	b.set("boot.replay", hanging)
	hash := b.write()
	p.kill(t, unix.SIGHUP)
	b.await("the replay is another one", func(s supervise.State) bool { return s.Spec == hash })
	unix.Kill(b.told().Sandbox.PID, unix.SIGKILL)
	state := b.await("the sandbox answers", func(s supervise.State) bool {
		return s.Sandbox != nil && s.Sandbox.Starts == 2 && s.Replaying
	})
	testnet.Eventually(t, "it is brought back", func() bool {
		return b.count("exec "+b.name+" /bin/sh -c echo begun") == 1
	})
	p.kill(t, unix.SIGKILL)
	p.end(t)
	b.set("boot.replay", []string{"/bin/echo", "replayed"})
	b.up()
	last := b.told()
	if !runs(last) || last.Sandbox.ID != state.Sandbox.ID {
		t.Errorf("got %+v after %+v", last, state)
	}
	if got := b.count("exec " + b.name + " /bin/echo replayed"); got != 1 {
		t.Errorf("%d replays", got)
	}
}

// A sandbox and its supervisor are both killed; and a way out that lives on for whatever reason.
func TestBothAreKilled(t *testing.T) {
	b := newBox(t)
	echo(t)
	p := b.up()
	first := b.told()
	p.kill(t, unix.SIGKILL)
	p.end(t)
	unix.Kill(first.Sandbox.PID, unix.SIGKILL)
	testnet.Eventually(t, "it is dead", func() bool { return !first.Sandbox.Alive() })
	p = b.up()
	if second := b.told(); !runs(second) || second.Sandbox.Starts != 2 || second.Starts != 2 {
		t.Errorf("got %+v", second)
	}
	b.reaches()
	p.kill(t, unix.SIGTERM)
	p.end(t)
	b.nothingLeft()
}

// The supervisor was told something else while nobody was there to hear it.
func TestAChangeBetweenSupervisors(t *testing.T) {
	b := newBox(t)
	p := b.up()
	first := b.told()
	p.kill(t, unix.SIGKILL)
	p.end(t)
	b.set("limits.memory", 512<<20)
	b.set("runsc.flags", []string{"--platform=ptrace"})
	hash := b.write()
	b.up()
	second := b.told()
	if second.Sandbox == nil || second.Sandbox.ID != first.Sandbox.ID || second.Spec != first.Spec ||
		second.Refused != hash || !strings.Contains(second.Error, "the sandbox runs with another runsc") {
		t.Errorf("got %+v", second)
	}
	if got := b.limits(); got.Memory != 512<<20 {
		t.Errorf("the limits are %+v", got)
	}
	// It is started again as it was started, as long as nobody restarts it otherwise.
	unix.Kill(second.Sandbox.PID, unix.SIGKILL)
	b.await("the sandbox runs again", func(s supervise.State) bool {
		return s.Sandbox != nil && s.Sandbox.Starts == 2
	})
	if got := b.noted("flags"); len(got) != 2 || got[0] != got[1] {
		t.Errorf("runsc was given %q", got)
	}
}

func TestAKilledWayOut(t *testing.T) {
	b := newBox(t)
	echo(t)
	b.up()
	first := b.told()
	for i := range 2 {
		unix.Kill(b.told().Egress.PID, unix.SIGKILL)
		b.await("the way out runs again", func(s supervise.State) bool { return runs(s) && s.Egress.Starts == i+2 })
		b.reaches()
	}
	if last := b.told(); last.Sandbox.ID != first.Sandbox.ID {
		t.Errorf("got %+v after %+v", last, first)
	}
	if !strings.Contains(b.log(), "the way out (egress): it ended: signal: killed") {
		t.Errorf("the log does not say why:\n%s", b.log())
	}
}

// limits are those that the kernel has for the sandbox.
func (b *box) limits() cgroup.Limits {
	b.t.Helper()
	read := func(patterns ...string) string {
		for _, pattern := range patterns {
			files, _ := filepath.Glob(pattern)
			if len(files) > 0 {
				text, _ := os.ReadFile(files[0])
				return string(text)
			}
		}
		return ""
	}
	var limits cgroup.Limits
	fmt.Sscan(read("/sys/fs/cgroup/memory/gvisor-k3s/"+b.name+"/memory.limit_in_bytes",
		"/sys/fs/cgroup/gvisor-k3s/"+b.name+"/memory.max"), &limits.Memory)
	var quota float64
	fmt.Sscan(read("/sys/fs/cgroup/cpu*/gvisor-k3s/"+b.name+"/cpu.cfs_quota_us",
		"/sys/fs/cgroup/gvisor-k3s/"+b.name+"/cpu.max"), &quota)
	limits.CPUs = quota / 100000
	return limits
}

// inGroup tells whether a process is in the sandbox's cgroup.
func (b *box) inGroup(pid int) bool {
	b.t.Helper()
	group, err := cgroup.Find(b.name)
	if err != nil {
		b.t.Fatal(err)
	}
	return slices.Contains(group.Processes(), pid)
}

func TestLimits(t *testing.T) {
	b := newBox(t)
	p := b.up()
	first := b.told()
	if got, want := b.limits(), (cgroup.Limits{Memory: 1 << 30, CPUs: 1.5}); got != want {
		t.Errorf("the limits are %+v", got)
	}
	for what, pid := range map[string]int{"the sandbox": first.Sandbox.PID, "the way out": first.Egress.PID} {
		if !b.inGroup(pid) {
			t.Errorf("%s is not limited", what)
		}
	}
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", first.Egress.PID))
	if err != nil || string(score) != "1000\n" {
		t.Errorf("the way out is killed by a score of %q, %v", score, err)
	}
	for _, want := range []cgroup.Limits{{Memory: 2 << 30, CPUs: 0.5}, {Memory: 256 << 20, CPUs: 1}} {
		b.set("limits", map[string]any{"memory": want.Memory, "cpus": want.CPUs})
		hash := b.write()
		p.kill(t, unix.SIGHUP)
		b.await("the limits are others", func(s supervise.State) bool { return s.Spec == hash })
		if got := b.limits(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	b.set("limits", map[string]any{"memory": 0, "cpus": 0})
	hash := b.write()
	p.kill(t, unix.SIGHUP)
	b.await("nothing is limited", func(s supervise.State) bool { return s.Spec == hash })
	if got := b.limits(); got.Memory < 1<<60 && got.Memory != 0 || got.CPUs > 0 {
		t.Errorf("the limits are %+v", got)
	}
	// Less than is in use is refused, and what was there before stays.
	b.set("limits", map[string]any{"memory": 4096, "cpus": 1})
	refused := b.write()
	p.kill(t, unix.SIGHUP)
	state := b.await("the limits are refused", func(s supervise.State) bool { return s.Refused == refused })
	if state.Spec != hash || !strings.Contains(state.Error, "limits:") || b.limits().CPUs > 0 {
		t.Errorf("got %+v, with the limits %+v", state, b.limits())
	}
	if !runs(supervise.State{Sandbox: first.Sandbox, Egress: first.Egress}) {
		t.Error("something was restarted")
	}
}

func TestChangesWithoutARestart(t *testing.T) {
	b := newBox(t)
	echo(t)
	p := b.up()
	first := b.told()
	service, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	port := service.Addr().(*net.TCPAddr).Port
	reachesHost := func() bool {
		_, err := netns.In(network.File(testnet.Inside), func() (any, error) {
			dialer := &net.Dialer{Timeout: time.Second}
			conn, err := dialer.Dial("tcp4", netip.AddrPortFrom(testnet.Sandbox().Host.Addr(), uint16(port)).String())
			if err == nil {
				conn.Close()
			}
			return nil, err
		})
		return err == nil
	}
	change := func(what string) supervise.State {
		t.Helper()
		hash := b.write()
		p.kill(t, unix.SIGHUP)
		return b.await(what+" is applied", func(s supervise.State) bool { return s.Spec == hash && s.Error == "" })
	}
	if reachesHost() {
		t.Error("a port of the host's is reached that was not given")
	}
	for _, c := range []struct {
		filter any
		want   bool
	}{
		{map[string]any{"ports": []int{port, 5000}}, true}, {map[string]any{"ports": []int{}}, false},
		{map[string]any{"ports": "all"}, true}, {map[string]any{"ports": []int{5000}}, false}, {nil, true},
	} {
		b.set("filter", c.filter)
		change("the filter")
		if got := reachesHost(); got != c.want {
			t.Errorf("with the filter %v: reached = %t", c.filter, got)
		}
	}
	if last := b.told(); last.Egress.ID != first.Egress.ID {
		t.Error("the way out was restarted")
	}
	b.set("egress.pods", "10.99.0.0/16")
	last := change("the way out")
	if last.Egress.ID == first.Egress.ID || last.Egress.Starts != 2 {
		t.Errorf("got %+v", last.Egress)
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", last.Egress.PID))
	if err != nil || !bytes.Contains(line, []byte("-pods=10.99.0.0/16")) {
		t.Errorf("it was started as %q, %v", line, err)
	}
	b.reaches()
	b.set("egress", nil)
	last = change("no way out")
	if last.Egress != nil {
		t.Errorf("got %+v", last.Egress)
	}
	b.set("boot.replay", []string{"/bin/echo", "another replay"})
	change("what boots it")
	b.set("restart", false)
	last = change("to start it no more")
	if last.Sandbox.ID != first.Sandbox.ID {
		t.Errorf("got %+v after %+v", last, first)
	}
	unix.Kill(first.Sandbox.PID, unix.SIGKILL)
	if code := p.end(t); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	b.nothingLeft()
}

func TestWhatTakesARestartIsRefused(t *testing.T) {
	b := newBox(t)
	p := b.up()
	first := b.told()
	hangup := func(is func(supervise.State) bool) supervise.State {
		t.Helper()
		p.kill(t, unix.SIGHUP)
		return b.await("the change is refused", is)
	}
	original := maps.Clone(b.spec)
	for name, change := range map[string]func(){
		"runsc": func() {
			b.set("runsc", map[string]any{"program": "/x", "root": "/y", "flags": nil, "bundle": "/z"})
		},
		"network": func() {
			b.set("network", map[string]any{
				"namespace": "x", "host": "10.0.0.1/30", "node": "10.0.0.2/30", "tap": nil,
			})
		},
		"name":  func() { b.set("name", "another") },
		"state": func() { b.set("state", "/another") },
	} {
		b.spec = maps.Clone(original)
		change()
		b.set("egress", nil)
		b.set("stopSeconds", 7)
		hash := b.write()
		state := hangup(func(s supervise.State) bool { return s.Refused == hash })
		if state.Spec != first.Spec || !strings.Contains(state.Error, "the sandbox runs with another "+name+":") {
			t.Errorf("%s: got %+v", name, state)
		}
	}
	for want, content := range map[string]string{
		"unknown field \"more\"": `{"version":1,"more":2}`, "its version is 2": `{"version":2}`, "JSON input": "{",
		"boot.seconds is 0": `{"version":1}`,
	} {
		if err := os.WriteFile(b.file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		hash := sha256.Sum256([]byte(content))
		state := hangup(func(s supervise.State) bool { return s.Refused == hex.EncodeToString(hash[:]) })
		if state.Spec != first.Spec || !strings.Contains(state.Error, want) {
			t.Errorf("%s: got %+v", content, state)
		}
	}
	b.spec = original
	hash := b.write()
	p.kill(t, unix.SIGHUP)
	last := b.await("all is well", func(s supervise.State) bool {
		return s.Spec == hash && s.Error == "" && s.Refused == ""
	})
	if last.Sandbox.ID != first.Sandbox.ID {
		t.Errorf("got %+v after %+v", last, first)
	}
}

func TestAStartThatFailsLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(b *box)
		command string
		want    []string
	}{
		"runsc refuses": {
			func(b *box) { b.knob("run.fails", "running container: unknown platform \x1b[31mx\n") }, "supervise",
			[]string{
				"starting the sandbox: exit code 3: ", "/runsc --root=",
				"\n    running container: unknown platform ?[31mx",
			},
		},
		"runsc is not there": {
			func(b *box) { b.set("runsc.program", "/nonexistent/runsc") }, "supervise",
			[]string{"/nonexistent/runsc", "no such file or directory"},
		},
		"runsc notes nothing": {
			func(b *box) { b.knob("run.silent", "") }, "supervise", []string{"runsc has noted no process"},
		},
		"the sandbox ends at once": {
			func(b *box) { b.knob("run.short", "") }, "supervise",
			[]string{"the sandbox ended at once", "a word of the sandbox's"},
		},
		"the boot fails": {
			func(b *box) {
				b.knob("exec.fails", "no such program\n")
				b.set("boot.seconds", 5)
			}, "supervise",
			[]string{"the sandbox does not answer within 5s; the last attempt: exit code 3", "no such program"},
		},
		"the boot hangs": {
			func(b *box) {
				b.knob("exec.hangs", "")
				b.set("boot.seconds", 1)
			}, "supervise",
			[]string{"the sandbox does not answer within 1s"},
		},
		"the boot prints for ever": {
			func(b *box) {
				b.knob("exec.floods", "")
				b.set("boot.seconds", 3)
			}, "supervise",
			[]string{"the sandbox does not answer within 3s", "a line of a flood"},
		},
		"there is no way out": {
			func(*box) {}, "test-few-files",
			[]string{"the way out (egress): the host lets this process open 4000 files"},
		},
		"the network is taken": {
			func(b *box) {
				bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: testnet.Inside}}
				if err := netlink.LinkAdd(bridge); err != nil {
					b.t.Fatal(err)
				}
				b.t.Cleanup(func() { netlink.LinkDel(bridge) })
			}, "supervise",
			[]string{"the link gk-inside is none of a sandbox's"},
		},
		"limits that nothing has": {
			func(*box) {}, "test-no-cgroups", []string{"this host has no cgroups"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			c.prepare(b)
			b.write()
			args := []string{"supervise", b.file}
			if c.command != "supervise" {
				args = append([]string{c.command}, args...)
			}
			p := start(t, args...)
			for _, want := range c.want {
				if p.said == nil || !strings.Contains(p.said.Error(), want) {
					t.Errorf("got %v, want %q", p.said, want)
				}
			}
			if code := p.end(t); code != 1 {
				t.Errorf("it ended with %d", code)
			}
			if p.said != nil && len(p.said.Error()) > 32<<10 {
				t.Errorf("the error has %d bytes", len(p.said.Error()))
			}
			if state := b.told(); state.Error == "" || state.Sandbox != nil || state.Egress != nil {
				t.Errorf("it tells %+v", state)
			}
			if name == "the network is taken" {
				return // and left alone
			}
			b.nothingLeft()
		})
	}
}

func TestWithoutCgroups(t *testing.T) {
	b := newBox(t)
	b.set("limits", map[string]any{"memory": 0, "cpus": 0})
	b.write()
	p := start(t, "test-no-cgroups", "supervise", b.file)
	if p.said != nil {
		t.Fatal(p.said)
	}
	if flags := b.noted("flags")[0]; !strings.Contains(flags, " --ignore-cgroups ") {
		t.Errorf("runsc was given %q", flags)
	}
	b.set("limits.memory", 1<<30)
	hash := b.write()
	p.kill(t, unix.SIGHUP)
	state := b.await("the limits are refused", func(s supervise.State) bool { return s.Refused == hash })
	if !strings.Contains(state.Error, "limits: the sandbox has no cgroup") {
		t.Errorf("got %q", state.Error)
	}
	p.kill(t, unix.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	b.nothingLeft()
}

func TestToldToEndWhileItStarts(t *testing.T) {
	b := newBox(t)
	b.knob("exec.hangs", "")
	b.write()
	p := make(chan *program)
	go func() { p <- start(t, "supervise", b.file) }()
	testnet.Eventually(t, "the sandbox is booted", func() bool { return b.count("exec") > 0 })
	if err := unix.Kill(b.told().PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := <-p
	if ended.said == nil || !strings.Contains(ended.said.Error(), "it was told to end") {
		t.Errorf("got %v", ended.said)
	}
	if code := ended.end(t); code != 1 {
		t.Errorf("it ended with %d", code)
	}
	b.nothingLeft()
}

func TestAStubbornSandbox(t *testing.T) {
	b := newBox(t)
	b.knob("stubborn", "")
	b.set("stopSeconds", 1)
	p := b.up()
	p.kill(t, unix.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	if !strings.Contains(b.log(), "the sandbox has not ended within 1 s, and is killed") {
		t.Errorf("the log says\n%s", b.log())
	}
	b.nothingLeft()
}

func TestASandboxThatIsNotStartedAgain(t *testing.T) {
	b := newBox(t)
	b.set("restart", false)
	p := b.up()
	unix.Kill(b.told().Sandbox.PID, unix.SIGKILL)
	if code := p.end(t); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	state := b.told()
	if state.Sandbox != nil || state.Egress != nil || !strings.Contains(state.Error, "the sandbox has ended") {
		t.Errorf("it tells %+v", state)
	}
	b.nothingLeft()
}

func TestASandboxThatKeepsFailing(t *testing.T) {
	b := newBox(t)
	p := b.up()
	b.knob("run.fails", "no room\n")
	unix.Kill(b.told().Sandbox.PID, unix.SIGKILL)
	state := b.await("it fails again", func(s supervise.State) bool {
		return strings.Contains(s.Error, "no room") && strings.Contains(s.Error, "it starts again in 2s")
	})
	if state.Sandbox != nil || state.Egress != nil {
		t.Errorf("it tells %+v", state)
	}
	b.nothingLeft()
	// It takes changes meanwhile, and begins again with what is right.
	b.set("limits.memory", 768<<20)
	hash := b.write()
	p.kill(t, unix.SIGHUP)
	b.await("the change is taken", func(s supervise.State) bool { return s.Spec == hash })
	if err := os.Remove(filepath.Join(b.folder, "run.fails")); err != nil {
		t.Fatal(err)
	}
	b.await("the sandbox runs again", runs)
	if got := b.limits(); got.Memory != 768<<20 {
		t.Errorf("the limits are %+v", got)
	}
	// And it ends at once where it waits for the next start.
	b.knob("run.fails", "no room\n")
	unix.Kill(b.told().Sandbox.PID, unix.SIGKILL)
	b.await("it has ended", func(s supervise.State) bool { return s.Sandbox == nil && s.Error != "" })
	p.kill(t, unix.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	b.nothingLeft()
}

func TestTwoSupervisors(t *testing.T) {
	b := newBox(t)
	first := b.up()
	before := b.told()
	second := start(t, "supervise", b.file)
	want := fmt.Sprintf("another supervisor (process %d) has the sandbox %s already", first.Process.Pid, b.name)
	if second.said == nil || !strings.Contains(second.said.Error(), want) {
		t.Errorf("got %v, want %q", second.said, want)
	}
	if code := second.end(t); code != 1 {
		t.Errorf("it ended with %d", code)
	}
	if after := b.told(); !runs(after) || after.Sandbox.ID != before.Sandbox.ID || after.PID != before.PID {
		t.Errorf("got %+v after %+v", after, before)
	}
}

// It has its lock until the last of its threads has ended, and counts as alive until then.
func TestASupervisorThatWasKilledMakesWay(t *testing.T) {
	b := newBox(t)
	p := b.up()
	for range 5 {
		killed := b.told().ID
		p.kill(t, unix.SIGKILL)
		for killed.Alive() { // without a pause, in which it would be gone
		}
		p = b.up()
		if told := b.told(); !runs(told) || told.PID == killed.PID {
			t.Errorf("got %+v after process %d", told, killed.PID)
		}
	}
}

// A sandbox may print as much as it likes, and as fast.
func TestWhatASandboxPrintsIsBounded(t *testing.T) {
	b := newBox(t)
	b.knob("floods", fmt.Sprint(64<<20))
	b.up()
	const most = 10 << 20
	size := func(name string) int64 {
		info, err := os.Stat(filepath.Join(b.state, "log", name))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	testnet.Eventually(t, "the log is short", func() bool {
		return size("sandbox.log.1") > 0 && size("sandbox.log") <= most
	})
	if old := size("sandbox.log.1"); old > most {
		t.Errorf("%d bytes are kept", old)
	}
}

func TestMistakesOfASpec(t *testing.T) {
	b := newBox(t)
	b.set("name", "../x")
	b.set("runsc.root", "relative")
	b.set("boot.seconds", 0)
	b.set("network.node", "10.9.9.9/30")
	b.set("limits.memory", -1)
	b.set("egress.pods", "fe80::/64")
	b.write()
	p := start(t, "supervise", b.file)
	for _, want := range []string{
		`name "../x"`, `runsc.root "relative"`, "boot.seconds is 0", "limits: memory -1", `egress.pods is "fe80::/64"`,
		"network.host 10.107.1.1/30 and network.node 10.9.9.9/30",
	} {
		if p.said == nil || !strings.Contains(p.said.Error(), want) {
			t.Errorf("got %v, want %q", p.said, want)
		}
	}
	if code := p.end(t); code != 1 {
		t.Errorf("it ended with %d", code)
	}
	if p = start(t, "supervise"); p.end(t) != 2 || p.said == nil {
		t.Errorf("without a spec: %v", p.said)
	}
}
