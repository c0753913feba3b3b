package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/cgroup"
	"gvisor-k3s/host/linkfilter"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/process"
	"gvisor-k3s/host/program"
)

const (
	// How long runsc has to start a sandbox.
	runTimeout = 30 * time.Second
	// How long it has for anything else that does not run in the sandbox.
	toolTimeout = 10 * time.Second
	// How long one attempt to boot has. Others follow while there is time.
	attemptTimeout = 10 * time.Second
	// How soon after an attempt that failed the next one is made: at first, and at most.
	firstAttempt = 20 * time.Millisecond
	lastAttempt  = 500 * time.Millisecond
	// How long what ran in the sandbox has to be brought back.
	replayTimeout = 5 * time.Minute
	// How long what is left of a sandbox may take to vanish.
	clearTimeout = 20 * time.Second
	// How much of a log is told.
	toldLines = 15
	toldBytes = 4 << 10
)

// sandbox is the one that the supervisor keeps, whether it runs or not.
type sandbox struct {
	spec Spec
	log  *log.Logger
	// group is nil where the host has none and nothing is limited.
	group *cgroup.Group
}

// start makes all that the sandbox takes and starts it, with the memory that is kept in a folder, or none. What it
// leaves where it fails is cleared by the caller.
func (s *sandbox) start(ctx context.Context, memory string) (*process.Watched, error) {
	if err := s.makeNetwork(ctx); err != nil {
		return nil, err
	}
	ignore, err := s.makeGroup()
	if err != nil {
		return nil, err
	}
	running, err := s.run(ctx, ignore, memory)
	if err != nil {
		return nil, err
	}
	if s.findGroup(running.PID); s.group == nil && !s.spec.Limits.None() {
		return nil, fmt.Errorf("the sandbox's process %d is not in its cgroup, so that nothing would be limited: do "+
			"runsc.flags have --ignore-cgroups, or its spec another linux.cgroupsPath?", running.PID)
	}
	return running, nil
}

// findGroup finds the group that the sandbox is in, if it is in its own.
func (s *sandbox) findGroup(pid int) {
	s.group = nil
	if group, err := cgroup.Find(s.spec.Name); err == nil && slices.Contains(group.Processes(), pid) {
		s.group = group
	}
}

func (s *sandbox) makeNetwork(ctx context.Context) error {
	if err := network.Up(s.spec.Network); err != nil {
		return err
	}
	if s.spec.Filter == nil { // a network that is new has none
		return nil
	}
	return s.filter()
}

// filter sets the filter of the link.
func (s *sandbox) filter() error {
	options := linkfilter.Options{
		Namespace: network.File(s.spec.Network.Namespace), Link: network.Device, Host: s.spec.Network.Host.Addr(), All: true,
	}
	if filter := s.spec.Filter; filter != nil {
		options.Ports, options.All = filter.Ports.List, filter.Ports.All
	}
	if err := linkfilter.Set(options); err != nil {
		return fmt.Errorf("keeping the sandbox from this host's services: %w", err)
	}
	return nil
}

// makeGroup makes the sandbox's cgroup. It tells what runsc is told where there is none, which is right where nothing
// is limited.
func (s *sandbox) makeGroup() (ignore bool, err error) {
	group, err := cgroup.Find(s.spec.Name)
	if err == nil {
		err = group.Make(s.spec.Limits)
	}
	if err == nil || !s.spec.Limits.None() {
		return false, err
	}
	s.log.Printf("there is no cgroup, and nothing is limited: %v", err)
	if group != nil {
		ctx, cancel := context.WithTimeout(context.Background(), clearTimeout)
		defer cancel()
		group.Remove(ctx)
	}
	return true, nil
}

// runsc is a command of it.
func (s *sandbox) runsc(timeout time.Duration, args ...string) program.Command {
	return program.Command{
		Path: s.spec.Runsc.Program, Args: append([]string{s.spec.rootArgument()}, args...), Timeout: timeout,
	}
}

// run has runsc start the sandbox, and finds its process.
func (s *sandbox) run(ctx context.Context, ignoreGroups bool, memory string) (*process.Watched, error) {
	output, err := os.OpenFile(s.spec.sandboxLog(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	if err := os.Remove(s.spec.pidFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	args := slices.Clone(s.spec.Runsc.Flags)
	if ignoreGroups {
		args = append(args, "--ignore-cgroups")
	}
	args = append(args, "--debug-log="+s.spec.runscLogs()+"/", "--panic-log="+s.spec.panicLog())
	if memory == "" {
		args = append(args, "run")
	} else { // its programs go on while most of the memory is still read
		args = append(args, "restore", "--image-path="+memory, "--background", "--direct")
	}
	args = append(args, "--detach", "--pid-file="+s.spec.pidFile(), "--bundle="+s.spec.Runsc.Bundle, s.spec.Name)
	command := s.runsc(runTimeout, args...)
	command.Output = output
	if _, err := program.Run(ctx, command); err != nil {
		return nil, fmt.Errorf("starting the sandbox: %w", err)
	}
	return s.find()
}

// find finds the process that runsc has noted.
func (s *sandbox) find() (*process.Watched, error) {
	file, err := os.Open(s.spec.pidFile())
	if err != nil {
		return nil, fmt.Errorf("runsc has noted no process: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, 100))
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 1 {
		return nil, fmt.Errorf("runsc has noted %q as the sandbox's process", text)
	}
	id, ok := process.Of(pid)
	if !ok {
		return nil, errors.New("the sandbox ended at once\n" + s.lastWords())
	}
	watched, err := process.Watch(id)
	if err != nil {
		return nil, fmt.Errorf("watching the sandbox: %w\n%s", err, s.lastWords())
	}
	return watched, nil
}

// exec runs something in the sandbox. Who is root there can have it do and print anything.
func (s *sandbox) exec(ctx context.Context, timeout time.Duration, input string, command []string) (string, error) {
	c := s.runsc(timeout, append([]string{"exec", s.spec.Name}, command...)...)
	c.Input = input
	return program.Run(ctx, c)
}

// boot runs what makes a sandbox ready, until it succeeds.
func (s *sandbox) boot(ctx context.Context, running *process.Watched, again bool) error {
	command := s.spec.Boot.Command
	if again {
		command = s.spec.Boot.Again
	}
	limit := time.Duration(s.spec.Boot.Seconds) * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the sandbox does not answer within %s", limit))
	defer cancel()
	ctx, stop := untilEnd(ctx, running)
	defer stop()
	var failure error
	for pause := firstAttempt; ; pause = min(2*pause, lastAttempt) {
		_, err := s.exec(ctx, attemptTimeout, s.spec.Boot.Input, command)
		if err == nil {
			return nil
		}
		if failure == nil || ctx.Err() == nil { // one that was cut short says less than one that came to its end
			failure = err
		}
		select {
		case <-time.After(pause):
			continue
		case <-ctx.Done():
		}
		return fmt.Errorf("%w; the last attempt: %w\n%s", context.Cause(ctx), failure, s.lastWords())
	}
}

// errEnded is the sandbox's end while something is done in it.
var errEnded = errors.New("the sandbox has ended")

// untilEnd is a context that ends with the sandbox.
func untilEnd(ctx context.Context, running *process.Watched) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-running.Ended():
			cancel(errEnded)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// replay brings back what ran in a sandbox before it was started again.
func (s *sandbox) replay(ctx context.Context, running *process.Watched) error {
	ctx, stop := untilEnd(ctx, running)
	defer stop()
	output, err := s.exec(ctx, replayTimeout, "", s.spec.Boot.Replay)
	s.log.Printf("brought back what ran in the sandbox: %s", quiet(output))
	if err != nil {
		return fmt.Errorf("bringing back what ran in the sandbox: %w", err)
	}
	return nil
}

func quiet(output string) string {
	if output == "" {
		return "it says nothing"
	}
	return "\n    " + strings.ReplaceAll(output, "\n", "\n    ")
}

// end has a sandbox that runs end in good order, if it does within its time.
func (s *sandbox) end(running *process.Watched) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.spec.StopSeconds)*time.Second+toolTimeout)
	defer cancel()
	ctx, stop := untilEnd(ctx, running)
	defer stop()
	if _, err := program.Run(ctx, s.runsc(toolTimeout, "kill", s.spec.Name, "TERM")); err != nil && ctx.Err() == nil {
		s.log.Printf("asking the sandbox to end: %v", err)
		return // it does not know of it
	}
	select {
	case <-running.Ended():
	case <-time.After(time.Duration(s.spec.StopSeconds) * time.Second):
		s.log.Printf("the sandbox has not ended within %d s, and is killed", s.spec.StopSeconds)
	}
}

// clear removes all of a sandbox outside its folder: processes, network, cgroups. It needs no runsc that works.
func (s *sandbox) clear() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), clearTimeout,
		fmt.Errorf("it took longer than %s", clearTimeout))
	defer cancel()
	problems := []error{s.clearProcesses(ctx), network.Down(ctx, s.spec.Network.Namespace)}
	if mesh := s.spec.Network.Mesh; mesh != nil {
		problems = append(problems, network.LeaveMesh(ctx, mesh.Namespace, s.spec.Network.Namespace))
	}
	group, err := cgroup.Find(s.spec.Name)
	if err == nil {
		problems = append(problems, group.Remove(ctx))
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("removing what is left of the sandbox: %w", err)
	}
	return nil
}

func (s *sandbox) clearProcesses(ctx context.Context) error {
	// It knows best what it has made, and what it does not remove is killed.
	if entries, _ := os.ReadDir(s.spec.Runsc.Root); len(entries) > 0 {
		if _, err := program.Run(ctx, s.runsc(toolTimeout, "delete", "--force", s.spec.Name)); err != nil {
			s.log.Printf("%v", err)
		}
	}
	argument := s.spec.rootArgument()
	find := func() []int {
		found := process.WithArgument(argument)
		if group, err := cgroup.Find(s.spec.Name); err == nil {
			found = append(found, group.Processes()...)
		}
		return slices.DeleteFunc(found, func(pid int) bool { return pid == os.Getpid() })
	}
	if err := process.Kill(ctx, "the processes of the sandbox", find); err != nil {
		return err
	}
	// runsc keeps a namespace mounted in its own folder, and leaves the mount behind when it is killed.
	if err := unmountBelow(s.spec.Runsc.Root); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.spec.Runsc.Root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(s.spec.Runsc.Root, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func unmountBelow(folder string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(folder))
	if err != nil {
		return err
	}
	for _, mount := range slices.Backward(mounts) { // what was mounted last comes off first
		if err := unix.Unmount(mount.Mountpoint, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
			return fmt.Errorf("taking off %s: %w", mount.Mountpoint, err)
		}
	}
	return nil
}

// lastWords is the end of what the sandbox has printed, and of why its kernel has given up, if it has.
func (s *sandbox) lastWords() string {
	var words []string
	for _, file := range []string{s.spec.panicLog(), s.spec.sandboxLog()} {
		if text := endOf(file); text != "" {
			words = append(words, fmt.Sprintf("the last lines of %s:\n    %s", file, strings.ReplaceAll(text, "\n", "\n    ")))
		}
	}
	return strings.Join(words, "\n")
}

func endOf(file string) string {
	opened, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer opened.Close()
	size, err := opened.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	text, err := io.ReadAll(io.NewSectionReader(opened, max(0, size-toldBytes), toldBytes))
	if err != nil {
		return ""
	}
	return program.LastLines(string(text), toldLines)
}
