package limits

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cluster is a tree of cgroups with processes that end when they are killed.
type cluster struct {
	*Watcher
	t           *testing.T
	told        []string
	signals     []string
	total, used uint64
	scores      map[int]int
	refusal     error
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, total: 4 << 30, scores: map[int]int{}}
	c.Watcher = newWatcher(t.TempDir(), func(_ context.Context, container string) error {
		c.told = append(c.told, container)
		return c.refusal
	})
	c.memory = func() (uint64, uint64, error) { return c.total, c.used, nil }
	c.score = func(pid int) int { return c.scores[pid] }
	c.Watcher.signal = func(pid int, signal unix.Signal) error {
		c.signals = append(c.signals, fmt.Sprint(pid, " ", unix.SignalName(signal)))
		if signal != unix.SIGKILL {
			return nil
		}
		files, _ := filepath.Glob(filepath.Join(c.Root, "memory/kubepods/*/*/*/cgroup.procs"))
		for _, file := range files {
			content, _ := os.ReadFile(file)
			var left []string
			for _, other := range strings.Fields(string(content)) {
				if other != strconv.Itoa(pid) {
					left = append(left, other)
				}
			}
			c.write(file, strings.Join(left, "\n"))
		}
		return nil
	}
	return c
}

func (c *cluster) write(file, content string) {
	c.t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// group makes a cgroup of a pod or a container: its usage and its limit in MiB, of which 0 is none.
func (c *cluster) group(path string, usage, limit uint64, pids ...int) {
	bytes := uint64(9223372036854775807)
	if limit > 0 {
		bytes = limit << 20
	}
	folder := filepath.Join(c.Root, "memory/kubepods/burstable", path)
	c.write(filepath.Join(folder, "memory.usage_in_bytes"), fmt.Sprintln(usage<<20))
	c.write(filepath.Join(folder, "memory.limit_in_bytes"), fmt.Sprintln(bytes))
	c.write(filepath.Join(folder, "cgroup.procs"), strings.Trim(fmt.Sprint(pids), "[]"))
}

func (c *cluster) expect(what string, told, signals string) {
	c.t.Helper()
	if got := strings.Join(c.told, " "); got != told {
		c.t.Errorf("%s: told %q, want %q", what, got, told)
	}
	if got := strings.Join(c.signals, ", "); got != signals {
		c.t.Errorf("%s: signals %q, want %q", what, got, signals)
	}
	c.told, c.signals = nil, nil
}

func TestContainerOverItsLimit(t *testing.T) {
	c := newCluster(t)
	c.group("pod1", 130, 0)
	c.group("pod1/over", 129, 128, 11, 12)
	c.group("pod1/within", 128, 128, 13)
	c.group("pod1/free", 900, 0, 14)
	c.look(t.Context())
	c.expect("the first look", "over", "11 SIGSTOP, 12 SIGSTOP, 11 SIGKILL, 12 SIGKILL")
	c.look(t.Context())
	c.expect("it has ended, and its memory is not free yet", "", "")
}

// A limit that a resize has lowered counts after a few looks, and those who are within theirs are left alone.
func TestLoweredLimit(t *testing.T) {
	c := newCluster(t)
	c.group("pod1", 100, 0)
	c.group("pod1/c", 100, 128, 11)
	c.look(t.Context())
	c.group("pod1/c", 100, 64, 11)
	for range readEvery {
		c.look(t.Context())
	}
	c.expect("several looks", "c", "11 SIGSTOP, 11 SIGKILL")
}

func TestKilledOnceWhileItEnds(t *testing.T) {
	c := newCluster(t)
	c.Watcher.signal = func(int, unix.Signal) error { return nil } // in the kernel for a while
	c.group("pod1", 300, 200)
	c.group("pod1/over", 250, 128, 11)
	c.group("pod1/other", 50, 0, 12)
	c.look(t.Context())
	c.look(t.Context())
	c.expect("two looks", "over", "")
}

func TestPodOverItsLimit(t *testing.T) {
	c := newCluster(t)
	c.group("pod1", 257, 256)
	c.group("pod1/pause", 1, 0, 10)
	c.group("pod1/most", 150, 0, 11)
	c.group("pod1/less", 106, 200, 12)
	c.group("pod2", 256, 256)
	c.group("pod2/c", 256, 256, 13)
	c.look(t.Context())
	c.expect("a look", "most", "11 SIGSTOP, 11 SIGKILL")
}

// One that containerd can't be told of is killed all the same.
func TestContainerdDoesNotAnswer(t *testing.T) {
	c := newCluster(t)
	c.refusal = errors.New("no socket")
	c.group("pod1", 129, 0)
	c.group("pod1/over", 129, 128, 11)
	c.look(t.Context())
	c.expect("a look", "over", "11 SIGSTOP, 11 SIGKILL")
}

func TestMachineWithoutMemory(t *testing.T) {
	c := newCluster(t)
	c.group("pod1", 3000, 0)
	c.group("pod1/pause", 1, 0, 10)
	c.group("pod1/guaranteed", 3000, 0, 11)
	c.group("pod2", 500, 0)
	c.group("pod2/pause", 1, 0, 12)
	c.group("pod2/burstable", 400, 0, 13)
	c.group("pod2/best-effort", 100, 0, 14)
	c.scores = map[int]int{10: -998, 11: -997, 12: -998, 13: 900, 14: 1000}
	c.used = 3600 << 20
	c.glance(t.Context())
	c.expect("some is left", "", "")
	c.used = 3640 << 20
	c.glance(t.Context())
	c.expect("some is left, and not much more is taken", "", "")
	c.used = 3900 << 20
	c.glance(t.Context())
	c.expect("nearly none is left", "best-effort", "14 SIGSTOP, 14 SIGKILL")
	c.group("pod2/best-effort", 0, 0)
	c.glance(t.Context())
	c.expect("still", "burstable", "13 SIGSTOP, 13 SIGKILL")
	c.group("pod2/burstable", 0, 0)
	c.glance(t.Context())
	c.expect("it is the last", "guaranteed", "11 SIGSTOP, 11 SIGKILL")
	c.group("pod1/guaranteed", 0, 0)
	c.glance(t.Context())
	c.expect("what holds a pod is never killed", "", "")
	c.group("pod2/small", 31, 0, 15)
	c.glance(t.Context())
	c.expect("one whose death helps nobody", "", "")
}

// What takes memory so fast that none will be left at the next glance is ended while there is some.
func TestMachineWithoutMemorySoon(t *testing.T) {
	c := newCluster(t)
	c.group("pod1", 3000, 0)
	c.group("pod1/fast", 3000, 0, 11)
	for _, used := range []uint64{2400, 2900} {
		c.used = used << 20
		c.glance(t.Context())
	}
	c.expect("there is time", "", "")
	c.used = 3400 << 20
	c.glance(t.Context())
	c.expect("there is none", "fast", "11 SIGSTOP, 11 SIGKILL")
}

func TestUnifiedCgroups(t *testing.T) {
	c := newCluster(t)
	c.unified = true
	for path, files := range map[string]map[string]string{
		"pod1":      {"memory.current": "3", "memory.max": "max"},
		"pod1/over": {"memory.current": "3", "memory.max": "2", "cgroup.procs": "11"},
	} {
		for name, content := range files {
			c.write(filepath.Join(c.Root, "kubepods", path, name), content+"\n")
		}
	}
	c.look(t.Context())
	if len(c.told) != 1 || c.told[0] != "over" {
		t.Errorf("told %v", c.told)
	}
}

func TestProcessesOfAPod(t *testing.T) {
	c := newCluster(t)
	c.group("pod1", 1, 0)
	limit := func(path string) string { return filepath.Join(c.Root, "pids/kubepods/burstable", path, "pids.max") }
	for _, name := range []string{"none", "more", "less"} {
		c.group("pod1/"+name, 1, 0, 11)
	}
	for path, max := range map[string]string{"pod1": "50", "pod1/none": "max", "pod1/more": "60", "pod1/less": "40"} {
		c.write(limit(path), max+"\n")
	}
	c.look(t.Context())
	for path, want := range map[string]string{"pod1/none": "50", "pod1/more": "50", "pod1/less": "40"} {
		if got, _ := os.ReadFile(limit(path)); strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, want %s", path, got, want)
		}
	}
}

func TestContainerdIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	// google.rpc.Status{code: 3, message: "no"}, as the first field.
	answers := []string{"", "\x0a\x06\x08\x03\x12\x02no"}
	requests := make(chan string, len(answers))
	go func() {
		for _, answer := range answers {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			head := make([]byte, header)
			io.ReadFull(connection, head)
			body := make([]byte, binary.BigEndian.Uint32(head))
			io.ReadFull(connection, body)
			requests <- string(body)
			head = binary.BigEndian.AppendUint32(nil, uint32(len(answer)))
			connection.Write(append(head, 0, 0, 0, 1, typeResponse, 0))
			connection.Write([]byte(answer))
			connection.Close()
		}
	}()
	tell := Containerd(socket)
	if err := tell(t.Context(), "the-container"); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"Forward", "k8s.io", "/tasks/oom", "containerd.events.TaskOOM", "the-container"} {
		if got := <-requests; !strings.Contains(got, want) {
			t.Errorf("%q has no %s", got, want)
		} else {
			requests <- got
		}
	}
	if err := tell(t.Context(), "x"); err == nil || !strings.HasSuffix(err.Error(), ": no") {
		t.Errorf("a refusal: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := tell(ctx, "x"); err == nil {
		t.Error("nobody answers, and that is no error")
	}
}
