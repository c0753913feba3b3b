package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/internal/testnet"
	"gvisor-k3s/host/supervise"
)

// inGvisor is this program in a sandbox of a real runsc: process 1, and what is run beside it.
func inGvisor(args []string) error {
	switch args[0] {
	case "init":
		fmt.Println("process 1 says hello")
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGTERM)
		<-signals
		return nil
	case "boot", "again":
		input, err := io.ReadAll(os.Stdin)
		if err != nil || string(input) != "what boots" {
			return fmt.Errorf("got %q, %v", input, err)
		}
		return os.WriteFile("/run/"+args[0], input, 0o600) // a tmpfs, so that it is gone with the sandbox
	case "replay":
		_, err := os.Stat("/run/again")
		return errors.Join(err, os.WriteFile("/run/replayed", nil, 0o600))
	case "replayed":
		_, err := os.Stat("/run/replayed")
		return err
	case "ask": // somebody outside, by TCP, a question
		conn, err := net.DialTimeout("tcp4", args[1], 30*time.Second)
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprint(conn, "question")
		conn.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(conn)
		fmt.Printf("%s", answer)
		return err
	}
	return fmt.Errorf("what is %q?", args)
}

// realBox is a sandbox of the runsc that RUNSC names.
func realBox(t *testing.T) *box {
	t.Helper()
	runsc := os.Getenv("RUNSC")
	if runsc == "" {
		t.Skip("runs where RUNSC names a runsc binary")
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "CGO_ENABLED" && setting.Value == "1" {
				t.Fatal("this program is what runs in the sandbox, where it has no libraries: test it with CGO_ENABLED=0")
			}
		}
	}
	platform := os.Getenv("RUNSC_PLATFORM")
	if platform == "" {
		platform = "systrap"
	}
	b := newBox(t)
	rootfs := filepath.Join(b.state, "bundle", "rootfs")
	for _, folder := range []string{"proc", "dev", "run"} {
		if err := os.MkdirAll(filepath.Join(rootfs, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(rootfs, "init"), self, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	mount := func(at, kind string) map[string]any {
		return map[string]any{"destination": at, "type": kind, "source": kind}
	}
	spec := map[string]any{
		"ociVersion": "1.1.0",
		"process": map[string]any{
			"user": map[string]any{"uid": 0, "gid": 0}, "args": []string{"/init", "test-gvisor", "init"}, "cwd": "/",
			"env": []string{"PATH=/"}, "capabilities": map[string]any{}, // without which an old runsc panics
		},
		"root":     map[string]any{"path": rootfs, "readonly": false},
		"hostname": b.name,
		"mounts":   []any{mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/run", "tmpfs")},
		"linux": map[string]any{
			"namespaces": []any{
				map[string]any{"type": "pid"}, map[string]any{"type": "ipc"}, map[string]any{"type": "uts"},
				map[string]any{"type": "mount"},
				map[string]any{"type": "network", "path": "/run/netns/" + testnet.Inside},
			},
			"cgroupsPath": "/gvisor-k3s/" + b.name,
			// Others than those that the supervisor sets, to see whose hold.
			"resources": map[string]any{"memory": map[string]any{"limit": 2 << 30}},
		},
	}
	text, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(b.state, "bundle", "config.json"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.set("runsc.program", runsc)
	b.set("runsc.flags", []string{
		"--platform=" + platform, "--network=sandbox", "--overlay2=none", "--cpu-num-from-quota",
	})
	b.set("boot.command", []string{"/init", "test-gvisor", "boot"})
	b.set("boot.again", []string{"/init", "test-gvisor", "again"})
	b.set("boot.replay", []string{"/init", "test-gvisor", "replay"})
	return b
}

// exec runs this program in the sandbox.
func (b *box) exec(args ...string) (string, error) {
	runsc := b.spec["runsc"].(map[string]any)
	command := append([]string{"--root=" + runsc["root"].(string), "exec", b.name, "/init", "test-gvisor"}, args...)
	output, err := exec.Command(runsc["program"].(string), command...).CombinedOutput()
	return string(output), err
}

func (b *box) asks() {
	b.t.Helper()
	if answer, err := b.exec("ask", echoed); err != nil || answer != "question" {
		b.t.Errorf("the sandbox got %q, %v\n%s", answer, err, b.log())
	}
}

func TestWithRunsc(t *testing.T) {
	b := realBox(t)
	echo(t)
	p := b.up()
	first := b.told()
	if !runs(first) {
		t.Fatalf("got %+v", first)
	}
	b.asks()
	if _, err := b.exec("replayed"); err == nil {
		t.Error("something was brought back into a sandbox that is new")
	}
	if !b.inGroup(first.Sandbox.PID) || b.limits().Memory != 1<<30 {
		t.Errorf("the sandbox has the limits %+v, or is in another group", b.limits())
	}
	text, _ := os.ReadFile(filepath.Join(b.state, "log", "sandbox.log"))
	if !strings.Contains(string(text), "process 1 says hello") {
		t.Errorf("the sandbox's log says %q", text)
	}

	t.Log("the limits change while it runs")
	b.set("limits.memory", 1536<<20)
	hash := b.write()
	p.kill(t, unix.SIGHUP)
	b.await("the limits are others", func(s supervise.State) bool { return s.Spec == hash })
	if b.limits().Memory != 1536<<20 {
		t.Errorf("the limits are %+v", b.limits())
	}

	t.Log("the supervisor is killed")
	p.kill(t, unix.SIGKILL)
	p.end(t)
	p = b.up()
	if second := b.told(); !runs(second) || second.Sandbox.ID != first.Sandbox.ID {
		t.Fatalf("got %+v after %+v", second, first)
	}
	b.asks()

	t.Log("the sandbox is killed")
	unix.Kill(first.Sandbox.PID, unix.SIGKILL)
	third := b.await("the sandbox runs again", func(s supervise.State) bool { return runs(s) && s.Sandbox.Starts == 2 })
	b.asks()
	if output, err := b.exec("replayed"); err != nil {
		t.Errorf("nothing was brought back: %v %s\n%s", err, output, b.log())
	}
	if !b.inGroup(third.Sandbox.PID) || b.limits().Memory != 1536<<20 {
		t.Errorf("the sandbox has the limits %+v, or is in another group", b.limits())
	}

	t.Log("it is told to end")
	p.kill(t, unix.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Errorf("it ended with %d: %s", code, p.output)
	}
	if strings.Contains(b.log(), "and is killed") {
		t.Errorf("the sandbox did not end by itself:\n%s", b.log())
	}
	b.nothingLeft()
}

func TestRunscsOwnWords(t *testing.T) {
	b := realBox(t)
	b.set("runsc.flags", []string{"--platform=nonexistent"})
	b.write()
	p := start(t, "supervise", b.file)
	for _, want := range []string{"exit code ", "nonexistent"} {
		if p.said == nil || !strings.Contains(p.said.Error(), want) {
			t.Errorf("got %v, want %q", p.said, want)
		}
	}
	p.end(t)
	b.nothingLeft()
}
