package service

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/input"
	"gvisor-k3s/node/init/proc"

	"golang.org/x/sys/unix"
)

// ProcessesFile tells which processes are services. Where the kernel outlives sandbox-init, as on a machine that is a
// sandbox itself, a sandbox-init that was killed leaves them running.
const ProcessesFile = "/run/sandbox-init.processes.json"

// processesLimit is how large it may be.
const processesLimit = 1 << 20

// running is a service's process.
type running struct {
	proc.Process
	StopSeconds int `json:"stopSeconds"`
}

// noteProcesses writes down which processes are services.
func (s *Supervisor) noteProcesses() {
	if s.processesFile == "" {
		return
	}
	s.noting.Lock()
	defer s.noting.Unlock()
	all := map[string]running{}
	s.mu.Lock()
	for name, current := range maps.All(s.services) {
		if pid := current.state.PID; pid != 0 {
			all[name] = running{proc.Of(pid), current.service.StopSeconds}
		}
	}
	s.mu.Unlock()
	if err := files.WriteJSON(s.processesFile, 0o600, all); err != nil { // the service itself is none the worse for it
		fmt.Fprintln(os.Stderr, "sandbox-init: services will be left behind if this is killed:", err)
	}
}

// EndLeft ends the services that a sandbox-init has left behind because it was killed: another one would start each a
// second time.
func EndLeft(processesFile string) error {
	content, err := files.Read(processesFile, processesLimit)
	if files.IsAbsent(err) {
		return nil
	}
	left := map[string]running{}
	if err == nil {
		err = input.Decode(bytes.NewReader(content), &left)
	}
	if err != nil {
		return fmt.Errorf(
			"%s, which tells what a sandbox-init that was killed has left running, cannot be read (%w); end these "+
				"processes if there are any, remove the file, and run this again",
			processesFile,
			err,
		)
	}
	all := slices.Collect(maps.Values(left))
	patience := time.Duration(0)
	for _, one := range all {
		one.Signal(unix.SIGTERM)
		patience = max(patience, time.Duration(one.StopSeconds)*time.Second)
	}
	ended := func() bool { return !slices.ContainsFunc(all, func(one running) bool { return one.Runs() }) }
	if proc.Until(patience, ended) {
		return files.Remove([]string{processesFile})
	}
	err = proc.KillAll("services that a sandbox-init that was killed has left", func(pid int) bool {
		return slices.ContainsFunc(all, func(one running) bool { return one.PID == pid && one.Runs() })
	})
	if err != nil {
		return err
	}
	return files.Remove([]string{processesFile})
}
