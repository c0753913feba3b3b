package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fscommon"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
	"gvisor-k3s/cadvisor"
)

// readGVisorCgroups has cAdvisor, which the kubelet knows its containers' usage from, read gVisor's cgroups. They
// account CPU time and memory, and lack cpuacct.usage_percpu and memory.stat, without which runc's library, which
// cAdvisor reads cgroups with, gives nothing at all. (containerd's library has nothing either, so the runtime's own
// statistics are no way out.) Elsewhere nothing is changed.
func readGVisorCgroups(root string) {
	has := func(file string) bool {
		_, err := os.Stat(filepath.Join(root, "cpuacct", file))
		return err == nil
	}
	if has("cpuacct.usage_user") && !has("cpuacct.usage_percpu") {
		// Factories are asked in the order of their registration, and cAdvisor's own register when the kubelet starts it.
		cadvisor.Register(statsFactory{})
	}
}

// statsFactory makes what the other factories make, with statistics of its own.
type statsFactory struct{}

func (statsFactory) String() string                 { return "gvisor" }
func (statsFactory) DebugInfo() map[string][]string { return nil }

// CanHandleAndAccept leaves what is not accepted to the other factories, which are asked next.
func (statsFactory) CanHandleAndAccept(name string) (bool, bool, error) {
	_, accept, err := factoryOf(name)
	return accept, accept, err
}

func (statsFactory) NewContainerHandler(
	name string,
	environment []string,
	inHostNamespace bool,
) (cadvisor.ContainerHandler, error) {
	factory, _, err := factoryOf(name)
	if err != nil {
		return nil, err
	}
	handler, err := factory.NewContainerHandler(name, environment, inHostNamespace)
	if err != nil {
		return nil, err
	}
	return withStats(name, handler)
}

// factoryOf is the first of the other factories that knows this cgroup, as in cAdvisor's own NewContainerHandler.
func factoryOf(name string) (cadvisor.ContainerHandlerFactory, bool, error) {
	var problems []error
	for _, factory := range cadvisor.Factories() {
		if factory == (statsFactory{}) {
			continue
		}
		handles, accepts, err := factory.CanHandleAndAccept(name)
		if handles {
			return factory, accepts, nil
		}
		problems = append(problems, err)
	}
	return nil, false, errors.Join(append(problems, fmt.Errorf("no factory knows %s", name))...)
}

// statsHandler is another factory's handler, whose own GetStats fails in gVisor.
type statsHandler struct {
	cadvisor.ContainerHandler
	stats *cadvisor.StatsHandler
	root  bool
}

func (h *statsHandler) GetStats() (*cadvisor.ContainerStats, error) {
	stats, err := h.stats.GetStats()
	if err != nil || !h.root {
		return stats, err
	}
	// The kubelet takes what it says of the node's file system from here, and has no summary without it.
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/"))
	if err != nil || len(mounts) == 0 {
		return stats, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return stats, err
	}
	block := uint64(fs.Frsize)
	stats.Filesystem = []cadvisor.FsStats{{
		Device:     mounts[0].Source,
		Limit:      block * fs.Blocks,
		Usage:      block * (fs.Blocks - fs.Bfree),
		Available:  block * fs.Bavail,
		HasInodes:  true,
		Inodes:     fs.Files,
		InodesFree: fs.Ffree,
	}}
	return stats, nil
}

func withStats(name string, handler cadvisor.ContainerHandler) (*statsHandler, error) {
	cpuacct, cpuErr := handler.GetCgroupPath("cpuacct")
	memory, memoryErr := handler.GetCgroupPath("memory")
	if err := errors.Join(cpuErr, memoryErr); err != nil {
		return nil, err
	}
	root, process := name == "/", 0
	// The network's statistics are the node's for the root, and a pod's for its sandbox, whose process is in the pod's
	// network.
	if root {
		process = 1
	} else if handler.GetContainerLabels()["io.cri-containerd.kind"] == "sandbox" {
		if processes, err := handler.ListProcesses(cadvisor.ListSelf); err == nil && len(processes) > 0 {
			process = processes[0]
		}
	}
	cgroup := gvisorCgroup{cpuacct: cpuacct, memory: memory, root: root}
	return &statsHandler{handler, cadvisor.NewStatsHandler(cgroup, "/", process, cadvisor.Network), root}, nil
}

// gvisorCgroup reads a cgroup's statistics from the files that gVisor has.
type gvisorCgroup struct {
	cgroups.Manager // of which no more than GetStats is asked for
	cpuacct, memory string
	root            bool
}

func (g gvisorCgroup) GetStats() (*cgroups.Stats, error) {
	user, userErr := fscommon.GetCgroupParamUint(g.cpuacct, "cpuacct.usage_user")
	system, systemErr := fscommon.GetCgroupParamUint(g.cpuacct, "cpuacct.usage_sys")
	memory, memoryErr := fscommon.GetCgroupParamUint(g.memory, "memory.usage_in_bytes")
	if err := errors.Join(userErr, systemErr, memoryErr); err != nil {
		return nil, err
	}
	stats := cgroups.NewStats()
	stats.CpuStats.CpuUsage = cgroups.CpuUsage{TotalUsage: user + system, UsageInUsermode: user, UsageInKernelmode: system}
	// gVisor charges some pages to nobody. To the kubelet and to metrics-server what has no memory has ended.
	memory = max(memory, uint64(os.Getpagesize()))
	stats.MemoryStats.Usage.Usage = memory
	stats.MemoryStats.Stats["rss"] = memory // of a container it is all: files are the host's
	if !g.root {
		return stats, nil
	}
	// The root's memory, and no other's, has the files in it that are mapped: page cache of the host, which is free to
	// drop it. Counted as in use it would have the kubelet evict pods from a small sandbox that has memory left.
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return nil, err
	}
	info, err := proc.Meminfo()
	if err != nil {
		return nil, err
	}
	if info.ActiveFileBytes != nil && info.InactiveFileBytes != nil {
		files := *info.ActiveFileBytes + *info.InactiveFileBytes
		stats.MemoryStats.Stats["total_inactive_file"] = files
		stats.MemoryStats.Stats["rss"] = memory - min(memory, files)
	}
	return stats, nil
}
