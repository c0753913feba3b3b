// Package limits keeps the limits that cgroups have and gVisor's kernel only remembers. It is what the kernel's
// out-of-memory killer is on Linux: a container over its own limit is killed, and so is one of a pod over the pod's;
// and when the machine itself has nearly no memory left, the one is that the kubelet has marked for it, before the host
// takes whatever process it likes, the server or the whole sandbox included.
package limits

import (
	"context"
	"fmt"
	"log"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookEvery is how often containers are looked at. A look has the kernel count the pages of each that has a limit.
	lookEvery = time.Second
	// readEvery is after how many looks a limit is read anew: only a resize changes one. One that has become smaller holds
	// by then; before a container is killed its limit is read, which may have grown.
	readEvery = 10
	// newFor is for how many looks a cgroup counts as new: its limits are written after it was made.
	newFor = 3
	// glanceLeast and glanceMost are the times between the glances at the machine's own memory, which one program can use
	// up in a second or two: the less there is, the sooner. fastest is how many bytes a second one is thought to take.
	glanceLeast = 100 * time.Millisecond
	glanceMost  = 500 * time.Millisecond
	fastest     = 4 << 30
	// settled is how long what a killed container had takes to be free.
	settled = time.Second
	// worthwhile is the part of the machine's memory that a container must have to be killed for the machine's sake: the
	// death of one with less helps nobody. What lies in a volume in memory of one that has ended is nobody's any more; the
	// kubelet evicts the pod.
	worthwhile = 128
	// sparePart is the part of the machine's memory that must be left, or a container is killed, and spareLeast the least:
	// the sandbox's kernel has its own memory from the same limit, which is not seen from inside. The kubelet evicts pods
	// before that (EvictionHard in node/server/kubelet.go), if it has the time.
	sparePart  = 12
	spareLeast = 64 << 20
	// unlimited is where figures begin that are no limit: cgroups have one near the largest number for none.
	unlimited = math.MaxInt64 / 2
	// sandboxScore is the oom_score_adj of what holds a pod's namespaces, which takes nothing and is never killed.
	sandboxScore = -998
)

// Watcher keeps limits.
type Watcher struct {
	// Root is where cgroups are: /sys/fs/cgroup.
	Root string
	// Tell is told of a container before it is killed, so that the runtime says OOMKilled.
	Tell func(ctx context.Context, container string) error

	signal func(pid int, signal unix.Signal) error
	score  func(pid int) int
	memory func(exactly bool) (total, used uint64, err error)
	mapped func(pids []int) (bytes uint64)
	dying  map[string]bool // cgroups whose processes were killed, and which may be there for a while
	before uint64          // what of the machine's memory was used at the last glance

	unified bool // cgroups are version 2: one tree, other names
	looks   int
	known   map[string]*group // by path
}

// group is what is known of a cgroup: its limit, and at which looks it was seen.
type group struct {
	limit       uint64
	first, last int
}

// New watches the cgroups of this machine.
func New(tell func(context.Context, string) error) *Watcher {
	return newWatcher("/sys/fs/cgroup", tell)
}

func newWatcher(root string, tell func(context.Context, string) error) *Watcher {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return &Watcher{
		Root:    root,
		Tell:    tell,
		signal:  unix.Kill,
		score:   scoreOf,
		memory:  (&machine{}).memory,
		mapped:  func(pids []int) uint64 { return mappedFiles("/proc", pids) },
		dying:   map[string]bool{},
		known:   map[string]*group{},
		unified: err == nil,
	}
}

// Run watches until the context ends.
func (w *Watcher) Run(ctx context.Context) {
	glance, look := time.NewTimer(glanceLeast), time.NewTicker(lookEvery)
	defer glance.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			w.look(ctx)
		case <-glance.C:
			glance.Reset(w.glance(ctx))
		}
	}
}

// look kills what is over a limit of its own, or of its pod.
func (w *Watcher) look(ctx context.Context) {
	w.looks++
	pods := w.pods()
	w.forget()
	for _, pod := range pods {
		pod.limit = w.limit(pod.path)
		w.limitProcesses(pod)
		var within []container
		for _, c := range pod.containers {
			if w.dying[c.path] {
				continue
			}
			limit := w.limit(c.path)
			if limit >= unlimited && pod.limit >= unlimited {
				continue
			}
			if c.usage = w.usage(c.path); c.usage > limit {
				limit = w.limitNow(c.path)
				c.usage = w.own(c)
			}
			if c.usage > limit {
				w.kill(ctx, c, fmt.Sprintf("it has %s, and its limit is %s", mebibytes(c.usage), mebibytes(limit)))
			} else {
				within = append(within, c)
			}
		}
		w.lookAtWhole(ctx, pod, within)
	}
	maps.DeleteFunc(w.known, func(_ string, g *group) bool { return g.last < w.looks })
}

// lookAtWhole kills the largest of a pod's containers if the pod is over its limit.
func (w *Watcher) lookAtWhole(ctx context.Context, pod pod, containers []container) {
	if pod.limit >= unlimited || len(containers) == 0 || w.anyDying(pod) {
		return
	}
	usage := w.usage(pod.path)
	if usage <= pod.limit {
		return
	}
	pod.limit = w.limitNow(pod.path)
	var largest container
	for _, c := range containers {
		whole := w.usage(c.path)
		c.usage = min(w.own(c), whole)
		usage -= min(whole-c.usage, usage)
		if c.usage > largest.usage {
			largest = c
		}
	}
	if usage > pod.limit && largest.path != "" {
		w.kill(ctx, largest, fmt.Sprintf("its pod has %s, and the pod's limit is %s; of its containers it has most",
			mebibytes(usage), mebibytes(pod.limit)))
	}
}

// own is what a container has but for files' pages. It has each of its processes asked, which is worth while only for
// one that seems to have too much.
func (w *Watcher) own(c container) uint64 {
	usage := w.usage(c.path)
	return usage - min(w.mapped(w.processes(c.path)), usage)
}

// glance kills the container that the kubelet would have the kernel kill first, if the machine has nearly no memory
// left, or will have at the next glance if it goes on like that. It returns when to glance again.
func (w *Watcher) glance(ctx context.Context) time.Duration {
	total, used, err := w.memory(false)
	if err != nil || total == 0 {
		return glanceMost
	}
	if w.before == 0 {
		w.before = used
	}
	isLittle := func() bool {
		grown := used - min(w.before, used)
		return used+grown+max(total/sparePart, spareLeast) >= total
	}
	little := isLittle()
	if little { // or files were mapped since those were last counted
		if total, used, err = w.memory(true); err != nil {
			return glanceMost
		}
		little = isLittle()
	}
	w.before = used
	if !little {
		soon := time.Duration(float64(total-used) / fastest * float64(time.Second))
		return min(max(soon, glanceLeast), glanceMost)
	}
	pods := w.pods()
	w.forget()
	var first container
	worst := math.Inf(-1)
	for _, pod := range pods {
		for _, c := range pod.containers {
			if w.dying[c.path] {
				return glanceLeast // what it has comes back first
			}
			pids := w.processes(c.path)
			if len(pids) == 0 {
				continue
			}
			score := w.score(pids[0])
			if score <= sandboxScore {
				continue
			}
			// As the kernel's oom_badness: what it has, and a thousandth of all for each point.
			badness := func() float64 { return float64(c.usage) + float64(score)*float64(total)/1000 }
			isWorse := func() bool { return c.usage >= total/worthwhile && badness() > worst }
			if c.usage = w.usage(c.path); !isWorse() {
				continue
			}
			if c.usage = w.own(c); isWorse() { // which takes longer to say
				first, worst = c, badness()
			}
		}
	}
	if first.path == "" {
		return glanceLeast
	}
	w.kill(ctx, first, fmt.Sprintf("the machine has %s of %s left, and it is the first to go; it has %s",
		mebibytes(total-min(used, total)), mebibytes(total), mebibytes(first.usage)))
	return settled
}

// kill ends a container as the kernel would where memory.oom.group is set: all of it. It is stopped first, so that it
// takes no more while the runtime is told.
func (w *Watcher) kill(ctx context.Context, c container, why string) {
	if len(w.processes(c.path)) == 0 {
		return // it has ended, and what it had is being taken back
	}
	w.dying[c.path] = true
	log.Printf("container %s is killed: %s", c.id(), why)
	w.signalAll(c.path, unix.SIGSTOP)
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	if err := w.Tell(ctx, c.id()); err != nil {
		log.Printf("container %s: containerd is not told that it is out of memory: %v", c.id(), err)
	}
	w.signalAll(c.path, unix.SIGKILL)
}

// signalAll reaches also those that are made meanwhile.
func (w *Watcher) signalAll(cgroup string, signal unix.Signal) {
	reached := map[int]bool{}
	for more := true; more; {
		more = false
		for _, pid := range w.processes(cgroup) {
			if reached[pid] {
				continue
			}
			reached[pid], more = true, true
			_ = w.signal(pid, signal) // it has ended, which is as good
		}
	}
}

func (w *Watcher) anyDying(p pod) bool {
	for _, c := range p.containers {
		if w.dying[c.path] {
			return true
		}
	}
	return false
}

// forget forgets killed cgroups that are gone, or empty.
func (w *Watcher) forget() {
	for path := range w.dying {
		if len(w.processes(path)) == 0 {
			delete(w.dying, path)
		}
	}
}

// machine is asked for its memory, and for its files' pages now and then only: that takes the reading of a file.
type machine struct {
	asked time.Time
	files uint64
	total uint64
}

// memory is the machine's, and what is used of it, but for files' pages, which the host can drop.
func (m *machine) memory(exactly bool) (total, used uint64, err error) {
	var info unix.Sysinfo_t
	if exactly || time.Since(m.asked) >= lookEvery {
		if m.files, err = filePages(); err != nil {
			return 0, 0, err
		}
		m.asked = time.Now()
	}
	if err := unix.Sysinfo(&info); err != nil {
		return 0, 0, err
	}
	total = uint64(info.Totalram) * uint64(info.Unit)
	used = total - min(uint64(info.Freeram)*uint64(info.Unit), total)
	// With mapped files used may be more than there is, and gVisor says then that there is more (usage.TotalMemory).
	if m.total == 0 || total < m.total {
		m.total = total
	}
	return m.total, used - min(m.files, used), nil
}

func filePages() (bytes uint64, err error) {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(content)) {
		name, rest, _ := strings.Cut(line, ":")
		if fields := strings.Fields(rest); len(fields) > 0 && strings.HasSuffix(name, "ctive(file)") {
			kibibytes, _ := strconv.ParseUint(fields[0], 10, 64)
			bytes += kibibytes << 10
		}
	}
	return bytes, nil
}

// scoreOf is a process's oom_score_adj, by which the kubelet tells who is to go first.
func scoreOf(pid int) int {
	content, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "oom_score_adj"))
	if err != nil {
		return 0
	}
	score, _ := strconv.Atoi(strings.TrimSpace(string(content)))
	return score
}

func mebibytes(bytes uint64) string { return fmt.Sprintf("%d MiB", bytes>>20) }
