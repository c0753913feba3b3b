package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"gvisor-k3s/host/backoff"
	"gvisor-k3s/host/cgroup"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/process"
	"gvisor-k3s/host/ready"
)

const (
	// How long the way out has to be ready.
	egressTimeout = 10 * time.Second
	// Dies first where the sandbox's memory is used up: it is started again in a second, and the sandbox is not.
	oomScoreFirst = "1000"
)

// egress keeps the way out of a sandbox running.
type egress struct {
	spec  Spec
	group *cgroup.Group
	store *store
	stop  context.CancelFunc
	done  chan struct{}
}

// startEgress starts the way out of a sandbox, and returns once it is ready, or is not. Then it is kept: what ends is
// started again, also after a first start that failed, if the caller insists.
func startEgress(ctx context.Context, s *sandbox, store *store, insist bool) (*egress, error) {
	if s.spec.Egress == nil {
		return nil, nil
	}
	ctx, stop := context.WithCancel(ctx)
	e := &egress{spec: s.spec, group: s.group, store: store, stop: stop, done: make(chan struct{})}
	first := make(chan error, 1)
	go e.keep(ctx, first, insist)
	err := <-first
	if err != nil && !insist {
		e.end()
		return nil, err
	}
	return e, err
}

// end ends the way out. Where there is none it does nothing.
func (e *egress) end() {
	if e == nil {
		return
	}
	e.stop()
	<-e.done
}

func (e *egress) keep(ctx context.Context, first chan<- error, insist bool) {
	defer close(e.done)
	// The kernel ends a child with the thread that has started it, and not with the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var pause backoff.Backoff
	told := false
	tell := func(err error) {
		if !told {
			first <- err
		}
		told = true
	}
	for {
		begin := time.Now()
		err := e.run(ctx, func() { tell(nil) })
		e.store.change(func(state *State) { state.Egress = nil })
		if ctx.Err() != nil {
			tell(ctx.Err())
			return
		}
		err = fmt.Errorf("the way out (egress): %w", err)
		if !told && !insist {
			tell(err)
			return
		}
		wait := pause.Next(time.Since(begin))
		e.store.wrong(egressTrouble, fmt.Errorf("%w\nit starts again in %s", err, wait))
		tell(err) // once that is noted
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// run runs the way out until it ends, or has to.
func (e *egress) run(ctx context.Context, isReady func()) error {
	output, err := os.OpenFile(e.spec.egressLog(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer output.Close()
	said, teller, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	cmd := e.command(ctx)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = output, output, []*os.File{teller}
	err = cmd.Start()
	teller.Close()
	if err != nil {
		return err
	}
	end := func(cause error) error {
		cmd.Process.Kill()
		cmd.Wait()
		return cause
	}
	if err := e.confine(cmd.Process.Pid); err != nil {
		return end(err)
	}
	said.SetReadDeadline(time.Now().Add(egressTimeout))
	if err := ready.Await(said); errors.Is(err, os.ErrDeadlineExceeded) {
		return end(fmt.Errorf("it is not ready within %s", egressTimeout))
	} else if err != nil {
		return end(err)
	}
	if id, ok := process.Of(cmd.Process.Pid); ok {
		e.store.egressStarted(id)
		isReady()
	}
	if err = cmd.Wait(); err == nil {
		err = errors.New("exit code 0")
	}
	return fmt.Errorf("it ended: %w; the last lines of %s:\n    %s", err, e.spec.egressLog(), endOf(e.spec.egressLog()))
}

// command is this very program, also if its file has been replaced meanwhile.
func (e *egress) command(ctx context.Context) *exec.Cmd {
	tap := e.spec.Network.Tap
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "egress",
		"-netns="+network.File(e.spec.Network.Namespace), "-tap="+tap.Device, "-address="+tap.Gateway.String(),
		"-node="+tap.Address.Addr().String(), "-pods="+e.spec.Egress.Pods.String(), "-mtu="+strconv.Itoa(tap.MTU),
		"-resolv-conf="+e.spec.Egress.ResolvConf, "-siblings="+e.spec.Egress.Siblings, "-parent="+strconv.Itoa(os.Getpid()))
	cmd.Args[0] = "gvisor-k3s-host"
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// confine has the process share the sandbox's limits, and be the first to go.
func (e *egress) confine(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(oomScoreFirst), 0); err != nil {
		return err
	}
	if e.group == nil {
		return nil
	}
	return e.group.Add(pid)
}
