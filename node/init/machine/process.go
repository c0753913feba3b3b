package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gvisor-k3s/node/init/proc"

	"golang.org/x/sys/unix"
)

// stopPatience is how long sandbox-init has to end at least, beside what its services have.
const stopPatience = 30 * time.Second

// isNodes tells that a process is the node's: one of its programs, a shim, or in a pod. Containers and their shims live
// on without containerd. sandbox-init as a tool is not: somebody may hold a lock with it, or be doing this very thing.
func isNodes(pid int) bool {
	own, ownErr := os.ReadFile("/proc/self/cgroup")
	its, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if ownErr == nil && err == nil && inPod(string(own), string(its)) {
		return true
	}
	command := proc.CommandLine(pid)
	if len(command) == 0 {
		return false
	}
	if strings.HasPrefix(command[0], artifactsLink+"/") {
		return filepath.Base(command[0]) != "sandbox-init" || isInit(pid)
	}
	at := slices.Index(command, "-address")
	return at > 0 && at+1 < len(command) && command[at+1] == "/run/containerd/containerd.sock"
}

// inPod tells by the cgroups of a process, as /proc tells them, that a container has it: the kubelet's are below
// kubepods, and containerd's, where nobody tells it where, below k8s.io. Both are seen from this process's own cgroups:
// the whole machine may be in a pod of somebody else's.
func inPod(own, its string) bool {
	roots := map[string]string{}
	for line := range strings.Lines(own) {
		if _, rest, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			controllers, path, _ := strings.Cut(rest, ":")
			roots[controllers] = strings.TrimSuffix(path, "/")
		}
	}
	for line := range strings.Lines(its) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		root, known := roots[controllers]
		path, below := strings.CutPrefix(path, root)
		if known && below && (strings.HasPrefix(path, "/kubepods/") || strings.HasPrefix(path, "/k8s.io/")) {
			return true
		}
	}
	return false
}

// isInit tells that a process is a sandbox-init that supervises services.
func isInit(pid int) bool {
	command := proc.CommandLine(pid)
	return len(command) == 2 && strings.HasPrefix(command[0], artifactsLink+"/") &&
		filepath.Base(command[0]) == "sandbox-init" && command[1] == "run"
}

// endInit has the sandbox-init of a record end its services and itself. It tells whether it did so in time.
func (r *Record) endInit() bool {
	if !r.isAlive() {
		return true
	}
	limit := stopPatience
	if details, err := client().Within(5 * time.Second).Details(background); err == nil {
		for _, detail := range details {
			limit += time.Duration(detail.StopSeconds) * time.Second
		}
	}
	r.Signal(unix.SIGTERM)
	r.Signal(unix.SIGCONT) // somebody may have stopped it
	return proc.Until(limit, func() bool { return !r.Runs() })
}
