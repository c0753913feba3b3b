package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"gvisor-k3s/cadvisor"
)

// fakeFactory stands for cAdvisor's own: it knows one cgroup, and its handlers have no statistics.
type fakeFactory struct{ root, knows string }

func (f *fakeFactory) String() string                 { return "fake" }
func (f *fakeFactory) DebugInfo() map[string][]string { return nil }
func (f *fakeFactory) CanHandleAndAccept(name string) (bool, bool, error) {
	return name == f.knows, true, nil
}
func (f *fakeFactory) NewContainerHandler(name string, _ []string, _ bool) (cadvisor.ContainerHandler, error) {
	mounts := map[string]string{"cpuacct": f.root + "/cpuacct", "memory": f.root + "/memory"}
	return &fakeHandler{paths: cadvisor.MakeCgroupPaths(mounts, name)}, nil
}

type fakeHandler struct {
	cadvisor.ContainerHandler
	paths map[string]string
}

func (h *fakeHandler) GetStats() (*cadvisor.ContainerStats, error) {
	return nil, errors.New("no statistics")
}
func (h *fakeHandler) GetCgroupPath(resource string) (string, error) {
	return h.paths[resource], nil
}
func (h *fakeHandler) GetContainerLabels() map[string]string {
	return map[string]string{"io.cri-containerd.kind": "sandbox"}
}
func (h *fakeHandler) ListProcesses(cadvisor.ListType) ([]int, error) {
	return []int{os.Getpid()}, nil
}

// gvisorCgroups makes the files that gVisor has in the cgroup name.
func gvisorCgroups(t *testing.T, name string) string {
	t.Helper()
	root := t.TempDir()
	for file, content := range map[string]string{
		"cpuacct/cpuacct.usage_user":               "1",
		"cpuacct" + name + "/cpuacct.usage_user":   "3000000000\n",
		"cpuacct" + name + "/cpuacct.usage_sys":    "500000000\n",
		"memory" + name + "/memory.usage_in_bytes": "104857600\n",
	} {
		path := filepath.Join(root, file)
		made := os.MkdirAll(filepath.Dir(path), 0o755)
		if err := errors.Join(made, os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	cgroups.TestMode = true // or files outside of a cgroup file system are refused
	t.Cleanup(func() { cgroups.TestMode = false })
	return root
}

// statsOf is what cAdvisor gets of a cgroup, in the order in which the kubelet has its parts registered.
func statsOf(t *testing.T, root, name string) (*cadvisor.ContainerStats, error) {
	t.Helper()
	t.Cleanup(cadvisor.ClearContainerHandlerFactories)
	readGVisorCgroups(root)
	cadvisor.Register(&fakeFactory{root, name})
	handler, accepted, err := cadvisor.NewHandler(name)
	if err != nil || !accepted {
		t.Fatal(accepted, err)
	}
	return handler.GetStats()
}

func TestStatsInGVisor(t *testing.T) {
	stats, err := statsOf(t, gvisorCgroups(t, "/pod"), "/pod")
	if err != nil {
		t.Fatal(err)
	}
	usage := stats.Cpu.Usage
	if usage.Total != 3_500_000_000 || usage.User != 3_000_000_000 || usage.System != 500_000_000 {
		t.Errorf("CPU: %+v", usage)
	}
	if stats.Memory.Usage != 100<<20 || stats.Memory.WorkingSet != 100<<20 || stats.Memory.RSS != 100<<20 {
		t.Errorf("memory: %+v", stats.Memory)
	}
	// A pointer or not, depending on the version of cAdvisor.
	if network, err := json.Marshal(stats.Network); err != nil || !strings.Contains(string(network), `"interfaces":[{`) {
		t.Errorf("a sandbox has no network statistics: %s %v", network, err)
	}
}

// The kubelet takes a container without memory for one that has ended, and tells nothing of its pod.
func TestStatsOfSmallContainer(t *testing.T) {
	root := gvisorCgroups(t, "/pod")
	if err := os.WriteFile(root+"/memory/pod/memory.usage_in_bytes", []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if stats, err := statsOf(t, root, "/pod"); err != nil || stats.Memory.WorkingSet == 0 || stats.Memory.RSS == 0 {
		t.Error(stats, err)
	}
}

// What the host may drop at any time is no memory in use; and the node's file system is the root's.
func TestStatsOfRoot(t *testing.T) {
	stats, err := statsOf(t, gvisorCgroups(t, "/"), "/")
	if err != nil {
		t.Fatal(err)
	}
	if stats.Memory.Usage != 100<<20 || stats.Memory.TotalInactiveFile == 0 ||
		stats.Memory.WorkingSet != stats.Memory.Usage-min(stats.Memory.Usage, stats.Memory.TotalInactiveFile) {
		t.Errorf("%+v", stats.Memory)
	}
	if len(stats.Filesystem) != 1 || stats.Filesystem[0].Device == "" || stats.Filesystem[0].Limit == 0 ||
		stats.Filesystem[0].Available == 0 {
		t.Errorf("file system: %+v", stats.Filesystem)
	}
}

// Where the kernel has all files, or another version of cgroups, cAdvisor reads them itself.
func TestStatsElsewhere(t *testing.T) {
	complete := gvisorCgroups(t, "/pod")
	if err := os.WriteFile(complete+"/cpuacct/cpuacct.usage_percpu", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{complete, t.TempDir()} {
		if _, err := statsOf(t, root, "/pod"); err == nil || err.Error() != "no statistics" {
			t.Errorf("got %v", err)
		}
		cadvisor.ClearContainerHandlerFactories()
	}
}

func TestUnknownCgroupIsLeftAlone(t *testing.T) {
	t.Cleanup(cadvisor.ClearContainerHandlerFactories)
	if handles, accepts, err := (statsFactory{}).CanHandleAndAccept("/other"); handles || accepts || err == nil {
		t.Errorf("got %v, %v, %v", handles, accepts, err)
	}
}
