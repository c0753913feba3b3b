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
	stale       uint64 // what used has too much, until it is asked for exactly
	files       map[int]uint64
	scores      map[int]int
	refusal     error
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, total: 4 << 30, scores: map[int]int{}, files: map[int]uint64{}}
	c.Watcher = newWatcher(t.TempDir(), func(_ context.Context, container string) error {
		c.told = append(c.told, container)
		return c.refusal
	})
	c.memory = func(exactly bool) (uint64, uint64, error) {
		if exactly {
			c.stale = 0
		}
		return c.total, c.used + c.stale, nil
	}
	c.mapped = func(pids []int) (bytes uint64) {
		for _, pid := range pids {
			bytes += c.files[pid]
		}
		return bytes
	}
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

// A limit that a resize has raised counts at once.
func TestRaisedLimit(t *testing.T) {
	c := newCluster(t)
	c.group("pod1", 100, 128)
	c.group("pod1/c", 100, 128, 11)
	for range newFor + 1 {
		c.look(t.Context())
	}
	c.group("pod1", 200, 256)
	c.group("pod1/c", 200, 256, 11)
	c.look(t.Context())
	c.expect("a look", "", "")
}

// A limit is written after its cgroup was made, which a look can fall between.
func TestLimitOfANewCgroup(t *testing.T) {
	c := newCluster(t)
	c.group("pod1", 100, 0)
	c.group("pod1/c", 100, 0, 11)
	c.look(t.Context())
	c.group("pod1/c", 100, 64, 11)
	c.look(t.Context())
	c.expect("the next look", "c", "11 SIGSTOP, 11 SIGKILL")
}

func TestCgroupsThatAreGoneAreForgotten(t *testing.T) {
	c := newCluster(t)
	c.group("pod1/c", 100, 0, 11)
	c.look(t.Context())
	if err := os.RemoveAll(filepath.Join(c.Root, "memory/kubepods/burstable/pod1")); err != nil {
		t.Fatal(err)
	}
	c.look(t.Context())
	if len(c.known) > 0 {
		t.Errorf("known are still %v", c.known)
	}
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

// Files that are mapped are the host's page cache: etcd has ten gigabytes of a small one.
func TestMappedFilesAreNoMemory(t *testing.T) {
	c := newCluster(t)
	c.files = map[int]uint64{11: 10 << 30, 12: 20 << 20, 13: 10 << 30}
	c.group("pod1", 10<<10+200, 256)
	c.group("pod1/etcd", 10<<10+100, 128, 11)
	c.group("pod1/other", 100, 0, 14)
	c.group("pod2", 0, 0)
	c.group("pod2/both", 150, 128, 12)
	c.group("pod3", 10<<10+300, 256)
	c.group("pod3/etcd", 10<<10+100, 0, 13)
	c.group("pod3/most", 200, 0, 15)
	c.look(t.Context())
	c.expect("a look", "both most", "12 SIGSTOP, 12 SIGKILL, 15 SIGSTOP, 15 SIGKILL")
}

func TestMachineWithMappedFiles(t *testing.T) {
	c := newCluster(t)
	c.files = map[int]uint64{11: 10 << 30}
	c.group("pod1", 0, 0)
	c.group("pod1/etcd", 10<<10+20, 0, 11)
	c.group("pod1/other", 100, 0, 12)
	c.scores = map[int]int{11: 1000, 12: 900}
	c.used, c.stale = 1<<30, 10<<30
	for range 2 {
		c.glance(t.Context())
	}
	c.expect("files were mapped since those were counted", "", "")
	c.used = 3900 << 20
	c.glance(t.Context())
	c.expect("it has no memory whose end would help", "other", "12 SIGSTOP, 12 SIGKILL")
}

func TestMappedFiles(t *testing.T) {
	proc := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		file := filepath.Join(proc, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	part := func(line string, resident, anonymous int) string {
		return fmt.Sprintf("%s\nSize: 9000 kB\nRss: %d kB\nPss: 0 kB\nAnonymous: %d kB\nVmFlags: rd\n",
			line, resident, anonymous)
	}
	program := part("00400000-01d07000 r-xp 00000000 00:38 4186    /my program", 100, 4)
	write("11/smaps", part("00069000-0006e000 r-xp 00000000 00:00 0    [usertrap]", 20, 20)+program+
		part("01d07000-0393c000 r--p 01907000 00:38 4186    /my program", 50, 0)+
		part("7f000000-7f100000 rw-s 00000000 00:1a 7    /dev/shm/PostgreSQL.1", 1000, 0)+
		part("7f200000-7f300000 rw-s 00000000 00:0b 8    /memfd:x (deleted)", 1000, 0)+
		part("7f400000-7f500000 rw-s 00000000 00:0c 9    /dev/zero (deleted)", 1000, 0))
	write("11/mountinfo", "432 406 0:56 / / ro - overlay none ro\n434 432 0:26 / /dev/shm rw,nosuid - tmpfs none rw\n")
	write("12/smaps", program+part("7f000000-7f100000 rw-s 00000000 00:12 7    /data", 1000, 0))
	write("12/mountinfo", "432 406 0:18 / / ro - 9p none ro\n")
	if got, want := mappedFiles(proc, []int{11, 12, 13}), uint64(96+50+1000)<<10; got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
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
