// Package proc tells of processes what /proc does.
package proc

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lookEvery is how often something is looked at that is waited for.
const lookEvery = 25 * time.Millisecond

// Process is one that may have ended since; its start tells it from a later one of the same pid.
type Process struct {
	PID int `json:"pid"`
	// StartTime is in clock ticks since boot; empty if there is none, or only a zombie.
	StartTime string `json:"startTime"`
}

// Of is the process that has this pid now.
func Of(pid int) Process { return Process{pid, StartTime(pid)} }

// Runs tells whether it still runs.
func (p Process) Runs() bool {
	return p.PID > 0 && p.StartTime != "" && StartTime(p.PID) == p.StartTime
}

// Signal sends a signal to the process, if it still runs.
func (p Process) Signal(signal unix.Signal) {
	if p.Runs() {
		unix.Kill(p.PID, signal)
	}
}

// Stat are the fields of a process from its state on; see proc_pid_stat(5), where that is the third. Nil if there is no
// such process.
func Stat(pid int) []string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
}

// StartTime is when a process started; see Process.
func StartTime(pid int) string {
	fields := Stat(pid)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// Others are all processes that run, but for this one.
func Others() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	var found []int
	for _, entry := range entries {
		pid, notNumber := strconv.Atoi(entry.Name())
		if notNumber == nil && pid != os.Getpid() && StartTime(pid) != "" {
			found = append(found, pid)
		}
	}
	return found, err
}

// CommandLine is what a process was started with; nil if it is a kernel's own, or has ended.
func CommandLine(pid int) []string {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(content) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(content), "\x00"), "\x00")
}

// Until polls for a condition, and tells whether it came in time.
func Until(limit time.Duration, condition func() bool) bool {
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(lookEvery)
	}
	return true
}

// killPatience is how long processes that are killed have to be gone.
const killPatience = 20 * time.Second

// KillAll kills every process of a kind, those that come meanwhile too, and waits until they are gone.
func KillAll(what string, belongs func(pid int) bool) error {
	var left []int
	var problem error
	gone := Until(killPatience, func() bool {
		var all []int
		all, problem = Others()
		left = nil
		for _, pid := range all {
			if belongs(pid) {
				left = append(left, pid)
				unix.Kill(pid, unix.SIGKILL) // it may have just ended
			}
		}
		return problem == nil && len(left) == 0
	})
	if !gone {
		return errors.Join(problem,
			fmt.Errorf("%s were killed, and are still there after %s: %d; run this again", what, killPatience, left))
	}
	return nil
}
