package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// group is one of this machine's, of a name that nobody else has.
func group(t *testing.T) *Group {
	t.Helper()
	g, err := Find(fmt.Sprintf("test-%d", os.Getpid()))
	if errors.Is(err, errNone) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, g) })
	return g
}

func remove(t *testing.T, g *Group) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := g.Remove(ctx); err != nil {
		t.Error(err)
	}
	for _, mount := range g.all {
		if _, err := os.Stat(g.folder(mount)); err == nil {
			t.Errorf("%s is there still", g.folder(mount))
		}
	}
}

// limits are those that the kernel has.
func limits(t *testing.T, g *Group) string {
	t.Helper()
	files := []string{
		filepath.Join(g.folder(g.memory), "memory.limit_in_bytes"), filepath.Join(g.folder(g.cpu), "cpu.cfs_quota_us"),
		filepath.Join(g.folder(g.cpu), "cpu.cfs_period_us"),
	}
	if g.version2 {
		files = []string{filepath.Join(g.folder(g.memory), "memory.max"), filepath.Join(g.folder(g.cpu), "cpu.max")}
	}
	var all []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.TrimSpace(string(text)))
	}
	return strings.Join(all, " ")
}

// shell runs a script, once it was told to go on.
func shell(t *testing.T, script string) (*exec.Cmd, io.WriteCloser) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read line; "+script)
	goOn, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, goOn
}

func TestLimits(t *testing.T) {
	g := group(t)
	const none1, none2 = "9223372036854771712 -1 100000", "max max 100000"
	for _, c := range []struct {
		Limits
		version1, version2 string
	}{
		{Limits{Memory: 512 << 20, CPUs: 1.5}, "536870912 150000 100000", "536870912 150000 100000"},
		{Limits{Memory: 64 << 20, CPUs: 0.001}, "67108864 1000 100000", "67108864 1000 100000"},
		{Limits{}, none1, none2},
		{Limits{CPUs: 2}, "9223372036854771712 200000 100000", "max 200000 100000"},
	} {
		for _, set := range []func(Limits) error{g.Make, g.Set, g.Make} {
			if err := set(c.Limits); err != nil {
				t.Fatal(err)
			}
			want := c.version1
			if g.version2 {
				want = c.version2
			}
			if got := limits(t, g); got != want {
				t.Errorf("%+v: got %q, want %q", c.Limits, got, want)
			}
		}
	}
}

func TestProcesses(t *testing.T) {
	g := group(t)
	if err := g.Make(Limits{Memory: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if got := g.Processes(); len(got) > 0 {
		t.Errorf("it has %v", got)
	}
	cmd, goOn := shell(t, "exit 0")
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if got := g.Processes(); !slices.Equal(got, []int{cmd.Process.Pid}) {
		t.Errorf("it has %v, and not %d", got, cmd.Process.Pid)
	}
	for _, folder := range g.folders() {
		if err := os.Mkdir(filepath.Join(folder, "nested"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// It cannot be removed while it has processes, and what is waited for is bounded.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Remove(ctx); !errors.Is(err, unix.EBUSY) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	removed := make(chan struct{})
	go func() {
		remove(t, g)
		close(removed)
	}()
	goOn.Close()
	cmd.Wait()
	<-removed
	if err := g.Add(os.Getpid()); err == nil {
		t.Error("a process was added to no group")
	}
}

func TestMemoryThatIsInUse(t *testing.T) {
	g := group(t)
	if err := g.Make(Limits{Memory: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	// tail keeps all of what has no lines.
	cmd := exec.Command("/bin/sh", "-c", "read line; (head -c 50000000 /dev/zero; echo kept >&2; sleep 1000) | tail")
	goOn, _ := cmd.StdinPipe()
	words, _ := cmd.StderrPipe()
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
	})
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	goOn.Write([]byte("\n"))
	if _, err := io.ReadFull(words, make([]byte, len("kept\n"))); err != nil {
		t.Fatal(err)
	}
	err := g.Set(Limits{Memory: 8 << 20})
	if err == nil || !strings.Contains(err.Error(), "in use; end something in the sandbox, or restart it") {
		t.Errorf("got %v", err)
	}
	if got := limits(t, g); !strings.HasPrefix(got, "268435456 ") {
		t.Errorf("the limits are %s", got)
	}
	if killed := g.Killed(); killed != 0 {
		t.Errorf("%d processes were killed", killed)
	}
}

func TestTheKernelKills(t *testing.T) {
	g := group(t)
	if err := g.Make(Limits{Memory: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	cmd, goOn := shell(t, "head -c 100000000 /dev/zero | tail")
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	goOn.Write([]byte("\n"))
	cmd.Wait()
	if g.Killed() == 0 {
		t.Error("nothing is told of it")
	}
}

func mount(kind, at, options string) *mountinfo.Info {
	return &mountinfo.Info{FSType: kind, Mountpoint: at, VFSOptions: options}
}

func TestHierarchies(t *testing.T) {
	const root = "/sys/fs/cgroup"
	unified := mount("cgroup2", root+"/unified", "rw")
	memory := mount("cgroup", root+"/memory", "rw,memory")
	for name, c := range map[string]struct {
		mounts []*mountinfo.Info
		want   []string
	}{
		"version 1": {
			[]*mountinfo.Info{mount("cgroup", root+"/cpu,cpuacct", "rw,cpu,cpuacct"), memory},
			[]string{root + "/memory/gvisor-k3s/x", root + "/cpu,cpuacct/gvisor-k3s/x"},
		},
		"both": {
			[]*mountinfo.Info{unified, mount("cgroup", root+"/cpu", "rw,cpu"), memory},
			[]string{root + "/memory/gvisor-k3s/x", root + "/cpu/gvisor-k3s/x"},
		},
		"version 2":      {[]*mountinfo.Info{mount("cgroup2", root, "rw,nsdelegate")}, []string{root + "/gvisor-k3s/x"}},
		"no controllers": {[]*mountinfo.Info{mount("cgroup", root+"/systemd", "rw,name=systemd"), memory}, nil},
		"nothing":        {nil, nil},
	} {
		g, err := find("x", c.mounts)
		if c.want == nil {
			if !errors.Is(err, errNone) {
				t.Errorf("%s: got %v", name, err)
			}
			continue
		}
		if err != nil || !slices.Equal(g.folders(), c.want) {
			t.Errorf("%s: got %v, %v", name, g, err)
		}
	}
}

// Folders with files that stand for the kernel's of version 2, which this machine may not have.
func TestVersion2(t *testing.T) {
	root := t.TempDir()
	own := filepath.Join(root, parent, "x")
	files := map[string]string{
		filepath.Join(root, "cgroup.subtree_control"):         "",
		filepath.Join(root, parent, "cgroup.subtree_control"): "",
	}
	for _, name := range []string{"memory.max", "memory.high", "cpu.max", "cgroup.procs"} {
		files[filepath.Join(own, name)] = ""
	}
	files[filepath.Join(own, "memory.current")] = "1000000\n"
	files[filepath.Join(own, "memory.events")] = "low 0\noom 4\noom_kill 3\n"
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range files {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g, err := find("x", []*mountinfo.Info{mount("cgroup2", root, "rw")})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(file, want string) {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil || strings.TrimRight(string(text), "\x00") != want {
			t.Errorf("%s has %q, %v, want %q", file, text, err, want)
		}
		os.Truncate(file, 0) // a file of the kernel's takes one value after another
	}
	if err := g.Make(Limits{Memory: 2000000, CPUs: 0.5}); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{root, filepath.Join(root, parent)} {
		expect(filepath.Join(folder, "cgroup.subtree_control"), "+cpu +memory")
	}
	expect(filepath.Join(own, "memory.max"), "2000000")
	expect(filepath.Join(own, "cpu.max"), "50000 100000")
	err = g.Set(Limits{Memory: 500000})
	if err == nil || !strings.Contains(err.Error(), "1000000 are in use; end something in the sandbox, or restart it") {
		t.Errorf("got %v", err)
	}
	expect(filepath.Join(own, "memory.max"), "")
	if err := g.Set(Limits{}); err != nil {
		t.Fatal(err)
	}
	expect(filepath.Join(own, "memory.max"), "max")
	expect(filepath.Join(own, "cpu.max"), "max 100000")
	if killed := g.Killed(); killed != 3 {
		t.Errorf("%d processes were killed", killed)
	}
	if err := g.Add(42); err != nil {
		t.Fatal(err)
	}
	if got := g.Processes(); !slices.Equal(got, []int{42}) {
		t.Errorf("it has %v", got)
	}
	// One that may not be divided tells so.
	os.Remove(filepath.Join(root, "cgroup.subtree_control"))
	if err := g.Make(Limits{}); err == nil || !strings.Contains(err.Error(), "it must have no processes of its own") {
		t.Errorf("got %v", err)
	}
}
