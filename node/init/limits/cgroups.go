package limits

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pod is a pod's cgroup: path is that below the controller's folder.
type pod struct {
	path       string
	limit      uint64
	containers []container
}

// container is a container's cgroup, whose folder is called as containerd calls the container.
type container struct {
	path  string
	usage uint64
}

func (c container) id() string { return filepath.Base(c.path) }

// kubepods is the kubelet's folder: with pods in it, and with folders of pods, one for each QoS class but the best.
const kubepods = "kubepods"

// pods are those that have cgroups now.
func (w *Watcher) pods() (pods []pod) {
	parents := []string{kubepods, kubepods + "/burstable", kubepods + "/besteffort"}
	for _, parent := range parents {
		for _, name := range w.folders(parent) {
			if !strings.HasPrefix(name, "pod") {
				continue
			}
			path := filepath.Join(parent, name)
			p := pod{path: path}
			for _, id := range w.folders(path) {
				p.containers = append(p.containers, container{path: filepath.Join(path, id)})
			}
			pods = append(pods, p)
		}
	}
	return pods
}

func (w *Watcher) file(controller, path, name string) string {
	if w.unified {
		controller = ""
	}
	return filepath.Join(w.Root, controller, path, name)
}

func (w *Watcher) memoryFile(path, old, unified string) string {
	if w.unified {
		return w.file("", path, unified)
	}
	return w.file("memory", path, old)
}

func (w *Watcher) folders(path string) (names []string) {
	entries, _ := os.ReadDir(w.file("memory", path, ""))
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names
}

// limit is the most that a cgroup may have, as far as is known.
func (w *Watcher) limit(path string) uint64 {
	g := w.known[path]
	if g == nil {
		g = &group{first: w.looks}
		w.known[path] = g
	}
	g.last = w.looks
	if age := w.looks - g.first; age < newFor || age%readEvery == 0 {
		g.limit = w.limitNow(path)
	}
	return g.limit
}

// limitNow is the most that a cgroup may have; one that is gone has none.
func (w *Watcher) limitNow(path string) uint64 {
	limit, ok := number(w.memoryFile(path, "memory.limit_in_bytes", "memory.max"))
	if !ok || limit == 0 {
		return math.MaxUint64
	}
	return limit
}

// usage is what a cgroup has: private memory, and what it wrote into a tmpfs; an emptyDir of medium Memory is one.
func (w *Watcher) usage(path string) uint64 {
	usage, _ := number(w.memoryFile(path, "memory.usage_in_bytes", "memory.current"))
	return usage
}

func (w *Watcher) processes(path string) (pids []int) {
	content, _ := os.ReadFile(w.file("memory", path, "cgroup.procs"))
	for _, word := range strings.Fields(string(content)) {
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// limitProcesses has a pod's limit of processes hold for each of its containers: gVisor refuses a fork in a cgroup that
// is full, and asks nothing of those above it, where the kubelet has written podPidsLimit.
func (w *Watcher) limitProcesses(p pod) {
	isNew := func(c container) bool {
		g := w.known[c.path]
		return g == nil || w.looks-g.first < newFor
	}
	if !slices.ContainsFunc(p.containers, isNew) {
		return
	}
	limit, limited := number(w.file("pids", p.path, "pids.max"))
	if !limited {
		return
	}
	for _, c := range p.containers {
		file := w.file("pids", c.path, "pids.max")
		if own, has := number(file); !has || own > limit {
			_ = os.WriteFile(file, []byte(strconv.FormatUint(limit, 10)), 0o644)
		}
	}
}

// number is what a file holds, if that is one: "max" is none. It is read without package os, which takes three times as
// many calls of the system, for hundreds of files.
func number(file string) (uint64, bool) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var buffer [32]byte // the largest has 20 digits
	n, err := unix.Read(fd, buffer[:])
	if err != nil {
		return 0, false
	}
	value, err := strconv.ParseUint(strings.TrimSpace(string(buffer[:n])), 10, 64)
	return value, err == nil
}
