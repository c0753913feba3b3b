package machine

import (
	"bytes"
	"time"

	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/service"

	"golang.org/x/sys/unix"
)

// Observe is what is asked of a machine.
type Observe struct {
	Node
	Files []string `json:"files"`
}

// Observed is how a machine is found.
type Observed struct {
	Record   *Record                  `json:"record"`   // null if there is no node
	Alive    bool                     `json:"alive"`    // its sandbox-init runs
	Answers  bool                     `json:"answers"`  // and answers
	Files    map[string]files.Sum     `json:"files"`    // those that were asked for
	Services map[string]service.State `json:"services"` // by name
	Free     uint64                   `json:"free"`     // MiB for a node
	Arch     string                   `json:"arch"`     // as `uname -m` tells it
	GVisor   bool                     `json:"gvisor"`   // its kernel is gVisor
	Taken    []string                 `json:"taken"`    // folders of a node, or of a container runtime
}

// observePatience is how long sandbox-init has to answer.
var observePatience = 5 * time.Second

// Run looks at the machine, and changes nothing.
func (o Observe) Run() (Observed, error) {
	if err := asked(o.Node.problems()); err != nil {
		return Observed{}, err
	}
	record, err := o.readRecord()
	if err != nil {
		return Observed{}, err
	}
	observed := Observed{Record: record, Alive: record.isAlive(), Services: map[string]service.State{}}
	if observed.Files, err = files.Hash(o.Files); err != nil {
		return Observed{}, err
	}
	if states, err := client().Within(observePatience).Status(); err == nil {
		observed.Answers, observed.Services = true, states
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dataFolder, &fs); err != nil {
		return Observed{}, err
	}
	observed.Free = fs.Bavail * uint64(fs.Bsize) / (1 << 20)
	if observed.Arch, observed.GVisor, err = kernel(); err != nil {
		return Observed{}, err
	}
	observed.Taken, err = taken()
	return observed, err
}

// kernel tells the architecture, and whether the kernel is gVisor, which says so in its log.
func kernel() (arch string, isGVisor bool, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", false, err
	}
	log := make([]byte, 1<<20)
	count, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, log)
	if err != nil { // it is for root alone; newer ones have it in their release, too
		return unix.ByteSliceToString(name.Machine[:]), bytes.Contains(name.Release[:], []byte("gvisor")), nil
	}
	return unix.ByteSliceToString(name.Machine[:]), bytes.Contains(log[:count], []byte("Starting gVisor")), nil
}
