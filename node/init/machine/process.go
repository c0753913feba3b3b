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
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && strings.Contains(string(cgroups), ":/k8s.io/") {
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
