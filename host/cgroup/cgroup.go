// Package cgroup has a sandbox in a group of the host's, with the limits of what it may use. It is made before runsc is
// started, which then says "Using pre-created cgroup", and neither sets the limits nor removes it (runsc/cgroup).
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// The folder of all sandboxes' groups, as runsc is told it in a sandbox's spec.
	parent = "gvisor-k3s"
	// The kernel's default, in µs, and the least quota that it takes.
	period     = 100_000
	leastQuota = 1_000
	// How often a group is tried to be removed: version 1 tells nobody when the last process has left.
	retry = 20 * time.Millisecond
)

// Limits are what a sandbox may use; 0 is no limit.
type Limits struct {
	// Memory is in bytes.
	Memory int64 `json:"memory"`
	// CPUs is how many CPUs' worth of time.
	CPUs float64 `json:"cpus"`
}

// None tells whether nothing is limited.
func (l Limits) None() bool { return l == Limits{} }

// Group is a sandbox's group. Where cgroups are of version 1 it is one in each hierarchy that has a limit.
type Group struct {
	name     string
	all      []string // the hierarchies' mounts
	memory   string
	cpu      string
	version2 bool
}

// errNone is a host without cgroups that limit anything.
var errNone = errors.New("this host has no cgroups with memory and cpu (see /proc/self/mountinfo)")

// Find looks for the host's cgroups: of version 1, of version 2, or of both, where version 1 has the controllers.
func Find(name string) (*Group, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	mounts, err := mountinfo.GetMountsFromReader(file, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("looking for cgroups: %w", err)
	}
	return find(name, mounts)
}

func find(name string, mounts []*mountinfo.Info) (*Group, error) {
	g := &Group{name: name}
	unified := ""
	for _, mount := range mounts {
		g.all = append(g.all, mount.Mountpoint)
		if mount.FSType == "cgroup2" {
			unified = mount.Mountpoint
			continue
		}
		controllers := strings.Split(mount.VFSOptions, ",")
		if slices.Contains(controllers, "memory") {
			g.memory = mount.Mountpoint
		}
		if slices.Contains(controllers, "cpu") {
			g.cpu = mount.Mountpoint
		}
	}
	if g.memory == "" && g.cpu == "" && unified != "" {
		g.memory, g.cpu, g.version2 = unified, unified, true
	}
	if g.memory == "" || g.cpu == "" {
		return nil, errNone
	}
	return g, nil
}

// Make makes the group, or takes one that is there, and sets the limits.
func (g *Group) Make(limits Limits) error {
	for _, folder := range g.folders() {
		err := os.MkdirAll(folder, 0o755)
		if errors.Is(err, fs.ErrNotExist) { // the last other sandbox has just removed the folder of all
			err = os.MkdirAll(folder, 0o755)
		}
		if err != nil {
			return fmt.Errorf("making a cgroup: %w", err)
		}
	}
	if g.version2 {
		for _, folder := range []string{g.memory, filepath.Join(g.memory, parent)} {
			if err := write(filepath.Join(folder, "cgroup.subtree_control"), "+cpu +memory"); err != nil {
				return fmt.Errorf("having cgroups below %s limit memory and cpu: %w; it must have no processes of its own",
					folder, err)
			}
		}
	}
	return g.Set(limits)
}

// folders are the group's own.
func (g *Group) folders() []string {
	return slices.Compact([]string{g.folder(g.memory), g.folder(g.cpu)})
}

func (g *Group) folder(mount string) string { return filepath.Join(mount, parent, g.name) }

// Set sets the limits of a group that may have processes. A limit of the memory below what is used is refused.
func (g *Group) Set(limits Limits) error {
	if err := g.setMemory(limits.Memory); err != nil {
		return err
	}
	quota := int64(-1)
	if limits.CPUs > 0 {
		quota = max(leastQuota, int64(limits.CPUs*period+0.5))
	}
	folder := g.folder(g.cpu)
	if !g.version2 {
		return errors.Join(
			write(filepath.Join(folder, "cpu.cfs_period_us"), strconv.Itoa(period)),
			write(filepath.Join(folder, "cpu.cfs_quota_us"), strconv.FormatInt(quota, 10)))
	}
	most := "max"
	if quota > 0 {
		most = strconv.FormatInt(quota, 10)
	}
	return write(filepath.Join(folder, "cpu.max"), fmt.Sprintf("%s %d", most, period))
}

func (g *Group) setMemory(limit int64) error {
	folder := g.folder(g.memory)
	if !g.version2 {
		if limit == 0 {
			limit = -1
		}
		err := write(filepath.Join(folder, "memory.limit_in_bytes"), strconv.FormatInt(limit, 10))
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%w: more than %d bytes are in use; end something in the sandbox, or restart it", err, limit)
		}
		return err
	}
	if limit == 0 {
		return write(filepath.Join(folder, "memory.max"), "max")
	}
	// Version 2 does not refuse a limit below what is used, but kills. So the kernel first frees what it can.
	text := strconv.FormatInt(limit, 10)
	if err := write(filepath.Join(folder, "memory.high"), text); err != nil {
		return err
	}
	defer write(filepath.Join(folder, "memory.high"), "max")
	used, err := number(filepath.Join(folder, "memory.current"))
	if err != nil {
		return err
	}
	if used > limit {
		return fmt.Errorf("limiting the memory to %d bytes: %d are in use; end something in the sandbox, or restart it",
			limit, used)
	}
	return write(filepath.Join(folder, "memory.max"), text)
}

// Add has a process in the group, with all its threads.
func (g *Group) Add(pid int) error {
	for _, folder := range g.folders() {
		if err := write(filepath.Join(folder, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("having process %d in the sandbox's cgroup: %w", pid, err)
		}
	}
	return nil
}

// Processes are those in the group.
func (g *Group) Processes() []int {
	var all []int
	for _, folder := range g.folders() {
		text, _ := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 { // 0 is one of another pid namespace
				all = append(all, pid)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Killed is how many processes of the group the kernel has killed because its memory was used up.
func (g *Group) Killed() int64 {
	file := "memory.oom_control"
	if g.version2 {
		file = "memory.events"
	}
	text, _ := os.ReadFile(filepath.Join(g.folder(g.memory), file))
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == "oom_kill" {
			count, _ := strconv.ParseInt(value, 10, 64)
			return count
		}
	}
	return 0
}

// Remove removes the group, and what runsc has made of it in other hierarchies. Its processes have to have been killed;
// one leaves its group when the last of its threads has ended, which is after it looks gone.
func (g *Group) Remove(ctx context.Context) error {
	for _, mount := range g.all {
		if err := removeAll(ctx, g.folder(mount)); err != nil {
			return err
		}
		os.Remove(filepath.Join(mount, parent)) // which has other sandboxes' groups, or is not there
	}
	return nil
}

func removeAll(ctx context.Context, folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeAll(ctx, filepath.Join(folder, entry.Name())); err != nil {
				return err
			}
		}
	}
	for {
		err := unix.Rmdir(folder)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY {
			return fmt.Errorf("removing the cgroup %s: %w", folder, err)
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return fmt.Errorf("removing the cgroup %s: %w (%w)", folder, err, context.Cause(ctx))
		}
	}
}

func number(file string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// write writes into a file of the kernel's, which is there.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", value, err)
	}
	return nil
}
