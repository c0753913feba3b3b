// Package process finds, watches and ends processes that are not this one's children.
package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ID tells a process from any other, also one that gets its number later.
type ID struct {
	PID int `json:"pid"`
	// StartTime is when it started, in clock ticks since the host's boot.
	StartTime string `json:"startTime"`
}

// Of is the process of a number. There is none where it has ended, which a zombie has, unless others of its threads
// have not: until the last one has, its files are open, and what it has locked is.
func Of(pid int) (ID, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ID{}, false
	}
	// From field 3 on, since the second one is a name that may have blanks and brackets; see proc_pid_stat(5).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" && (fields[17] == "0" || fields[17] == "1") || fields[0] == "X" {
		return ID{}, false
	}
	return ID{pid, fields[19]}, true
}

// Alive tells whether the process runs.
func (id ID) Alive() bool {
	current, ok := Of(id.PID)
	return ok && current == id
}

// Watched is a process whose end is waited for.
type Watched struct {
	ID
	ended chan struct{}
	file  *os.File
}

// Watch waits for the end of a process. It fails where the process has ended.
func Watch(id ID) (*Watched, error) {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", id.PID, err)
	}
	// The number may have been another process's by then.
	if !id.Alive() {
		unix.Close(fd)
		return nil, fmt.Errorf("process %d: %w", id.PID, unix.ESRCH)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the runtime waits for it, and no thread
		unix.Close(fd)
		return nil, err
	}
	w := &Watched{id, make(chan struct{}), os.NewFile(uintptr(fd), "pidfd")}
	raw, err := w.file.SyscallConn()
	if err != nil {
		w.file.Close()
		return nil, err
	}
	go func() {
		if raw.Read(hasEnded) == nil {
			close(w.ended)
		}
	}()
	return w, nil
}

// hasEnded tells of a process by its descriptor, which is readable from then on.
func hasEnded(fd uintptr) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	for err == unix.EINTR {
		n, err = unix.Poll(poll, 0)
	}
	return err == nil && n > 0
}

// Ended is closed when the process has ended.
func (w *Watched) Ended() <-chan struct{} { return w.ended }

// Signal sends a signal to this very process. One that has ended is no error.
func (w *Watched) Signal(signal unix.Signal) error {
	var failure error
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) { failure = unix.PidfdSendSignal(int(fd), signal, nil, 0) }); err != nil {
		return err
	}
	if failure == unix.ESRCH {
		return nil
	}
	return failure
}

// Close ends the watch, and leaves the process alone.
func (w *Watched) Close() { w.file.Close() }

// WithArgument are the processes that were started with this very argument, but for this one.
func WithArgument(argument string) []int {
	return matching(func(pid int) bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err == nil && slices.Contains(strings.Split(string(text), "\x00"), argument)
	})
}

func matching(is func(pid int) bool) []int {
	folders, _ := filepath.Glob("/proc/[0-9]*")
	var all []int
	for _, folder := range folders {
		pid, err := strconv.Atoi(filepath.Base(folder))
		if err == nil && pid != os.Getpid() && is(pid) {
			all = append(all, pid)
		}
	}
	return all
}

// Kill kills every process that is found, until none is, and waits for their ends.
func Kill(ctx context.Context, what string, find func() []int) error {
	for {
		found := false
		for _, pid := range find() {
			id, alive := Of(pid)
			if !alive {
				continue
			}
			found = true
			if err := kill(ctx, id); err != nil {
				return fmt.Errorf("ending %s: %w", what, err)
			}
		}
		if !found {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("ending %s: there are always more: %w", what, context.Cause(ctx))
		}
	}
}

func kill(ctx context.Context, id ID) error {
	w, err := Watch(id)
	if err != nil {
		if !id.Alive() {
			return nil
		}
		return err
	}
	defer w.Close()
	if err := w.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("process %d: %w", id.PID, err)
	}
	select {
	case <-w.Ended():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d was sent SIGKILL, and has not ended: %w", id.PID, context.Cause(ctx))
	}
}
