package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/internal/testnet"
	"gvisor-k3s/host/process"
	"gvisor-k3s/host/supervise"
)

// savable is a sandbox that runs, with something on its disk, and a folder to keep it in.
func savable(t *testing.T) (b *box, supervisor *program, folder string) {
	t.Helper()
	b = newBox(t)
	b.set("limits", map[string]any{"memory": 0, "cpus": 0})
	root := filepath.Join(b.state, "bundle", "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "data"), []byte("of now"), 0o600); err != nil {
		t.Fatal(err)
	}
	return b, b.up(), t.TempDir()
}

// save runs the command to its end.
func (b *box) save(args ...string) (supervise.Saved, string, error) {
	b.t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"save"}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	text, err := cmd.Output()
	var saved supervise.Saved
	if err == nil {
		err = json.Unmarshal(text, &saved)
	}
	return saved, said.String(), err
}

// after is what runsc was called for since a save began, by its commands.
func (b *box) after(calls int) string {
	var commands []string
	for _, line := range b.noted("calls")[calls:] {
		command, _, _ := strings.Cut(line, " ")
		commands = append(commands, command)
	}
	return strings.Join(commands, " ")
}

func TestWhatIsKeptOfASandbox(t *testing.T) {
	b, _, folder := savable(t)
	before, calls := b.told(), len(b.noted("calls"))
	saved, said, err := b.save("--memory", b.file, folder)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if got := b.after(calls); got != "exec pause checkpoint resume" {
		t.Errorf("runsc was called for %s", got)
	}
	sum := sha256.Sum256([]byte("what is in memory"))
	hash := hex.EncodeToString(sum[:])
	memory, disk := saved.Files["memory/pages.img"], saved.Files["disk"]
	if memory.Size != 17 || memory.SHA256 != hash || disk.Size == 0 || len(disk.SHA256) != len(hash) ||
		len(saved.Files) != 2 {
		t.Errorf("got %+v", saved)
	}
	for name := range saved.Files {
		info, err := os.Stat(filepath.Join(folder, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if now := b.told(); !runs(now) || now.Sandbox.PID != before.Sandbox.PID {
		t.Errorf("got %+v", now)
	}

	made := filepath.Join(t.TempDir(), "made")
	archive := filepath.Join(folder, "disk")
	unpack := func(hash, to string) (string, error) {
		said, err := exec.Command("/proc/self/exe", "unpack", "--sha256="+hash, archive, to).CombinedOutput()
		return string(said), err
	}
	if said, err := unpack(disk.SHA256, made); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if content, err := os.ReadFile(filepath.Join(made, "data")); err != nil || string(content) != "of now" {
		t.Errorf("got %q, %v", content, err)
	}
	if said, err := unpack(memory.SHA256, made+"2"); err == nil || !strings.Contains(said, "is damaged") {
		t.Errorf("of another hash: %v, %s", err, said)
	}
}

func TestASaveThatFails(t *testing.T) {
	b, _, folder := savable(t)
	b.knob("checkpoint.fails", "checkpoint failed: it cannot be encoded\n"+strings.Repeat("a line of a trace\n", 100))
	before, calls := b.told(), len(b.noted("calls"))
	_, said, err := b.save("--memory", b.file, folder)
	if err == nil || !strings.Contains(said, "it cannot be encoded") || strings.Contains(said, "trace") {
		t.Errorf("got %v: %s", err, said)
	}
	if got := b.after(calls); got != "exec pause checkpoint resume" {
		t.Errorf("runsc was called for %s", got)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	if now := b.told(); !runs(now) || now.Sandbox.PID != before.Sandbox.PID {
		t.Errorf("got %+v", now)
	}
}

// A sandbox goes on also where what has stopped it is killed.
func TestASaveThatIsKilled(t *testing.T) {
	b, _, folder := savable(t)
	b.knob("checkpoint.hangs", "")
	cmd := exec.Command("/proc/self/exe", "save", "--memory", b.file, folder)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, "the sandbox is stopped", func() bool { return b.count("checkpoint") == 1 })
	cmd.Process.Signal(unix.SIGKILL)
	cmd.Wait()
	testnet.Eventually(t, "the sandbox goes on", func() bool { return b.count("resume") == 1 })
	testnet.Eventually(t, "the guard ends", func() bool { return len(process.WithArgument("thaw")) == 0 })
}

func TestASandboxThatIsKeptAndEnded(t *testing.T) {
	b, p, folder := savable(t)
	saved, said, err := b.save("--memory", "--end", b.file, folder)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if len(saved.Files) != 1 || saved.Files["memory/pages.img"].Size != 17 {
		t.Errorf("got %+v", saved)
	}
	p.Wait()
	if b.count("resume") != 0 || len(process.WithArgument("--root="+filepath.Join(b.state, "runsc"))) > 0 {
		t.Errorf("it runs on: %q", b.noted("calls"))
	}
}

func TestASandboxThatBeginsWithAMemory(t *testing.T) {
	b := newBox(t)
	b.write()
	p := start(t, "supervise", "--restore=/kept/memory", b.file)
	if p.said != nil {
		t.Fatalf("it is not ready: %v\n%s", p.said, b.log())
	}
	want := "restore --image-path=/kept/memory --background --direct --detach --pid-file="
	if !strings.HasPrefix(b.noted("calls")[0], want) {
		t.Errorf("runsc was called for %q", b.noted("calls"))
	}
	if b.count("exec") != 0 {
		t.Errorf("something was run in it: %q", b.noted("calls"))
	}
	// Whatever it began with, a sandbox that died is started as any other.
	unix.Kill(b.told().Sandbox.PID, unix.SIGKILL)
	b.await("the sandbox runs again", func(s supervise.State) bool { return runs(s) && s.Sandbox.Starts == 2 })
	if b.count("run --detach") != 1 || b.count("exec "+b.name+" /bin/echo replayed") != 1 {
		t.Errorf("runsc was called for %q", b.noted("calls"))
	}
}

func TestASandboxThatBeginsAgain(t *testing.T) {
	b := newBox(t)
	b.write()
	if p := start(t, "supervise", "--again", b.file); p.said != nil {
		t.Fatalf("it is not ready: %v\n%s", p.said, b.log())
	}
	b.await("what ran is back", runs)
	if b.count("exec "+b.name+" /bin/echo replayed") != 1 {
		t.Errorf("runsc was called for %q", b.noted("calls"))
	}
}
