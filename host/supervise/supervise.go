// Package supervise keeps a sandbox running: its network, its cgroup, runsc, and its way out. There is one process of
// this for each sandbox, which lives as long as the sandbox does; one that was killed is followed by another, which
// finds the sandbox running and takes it over.
//
// The host never trusts the sandbox. Of what comes out of it the supervisor reads no more than the end of what it has
// printed, for people; it follows nothing, waits for nothing without an end, and keeps nothing that can grow.
package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/backoff"
	"gvisor-k3s/host/process"
	"gvisor-k3s/host/publish"
	"gvisor-k3s/host/ready"
	"gvisor-k3s/host/usage"
)

// Main is the subcommand: supervise [--again | --restore=FOLDER] SPEC_FILE. It returns when the sandbox has ended for
// good. With --again what ran in the sandbox before is brought back, as after a death of it; with --restore it begins
// with the memory that is kept in a folder, and nothing in it is started. Neither matters to a sandbox that runs.
func Main(args []string) error {
	teller := ready.Open()
	// From the beginning: a signal that comes early is no reason to die.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	flags := flag.NewFlagSet("supervise", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	again := flags.Bool("again", false, "bring back what ran in the sandbox before")
	memory := flags.String("restore", "", "begin with the memory that is kept in a `folder`")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 || *again && *memory != "" {
		err := usage.Wrong("supervise %q: [--again | --restore=FOLDER] and the file of a sandbox's spec are needed", args)
		teller.Tell(err)
		return err
	}
	s, err := newSupervisor(flags.Arg(0))
	if err != nil {
		teller.Tell(err)
		return err
	}
	defer s.lock.Close()
	s.first = beginning{again: *again, memory: *memory}
	return s.main(signals, teller)
}

// supervisor keeps one sandbox.
type supervisor struct {
	specFile string
	lock     *os.File
	log      *log.Logger
	store    *store

	sandbox *sandbox
	running *process.Watched
	since   time.Time
	egress  *egress
	publish publish.Publisher
	pause   backoff.Backoff

	// first is how the sandbox begins, unless it runs already.
	first beginning
	// hangup gets a word when the spec is to be read again.
	hangup chan struct{}
}

// beginning is how a sandbox begins.
type beginning struct {
	// again brings back what ran in it before.
	again bool
	// memory is the folder of what it has in its memory from the beginning; "" for nothing.
	memory string
}

// newSupervisor takes a sandbox for itself, and changes nothing yet.
func newSupervisor(specFile string) (*supervisor, error) {
	spec, hash, err := readSpec(specFile)
	if err != nil {
		return nil, err
	}
	lock, err := takeLock(spec)
	if err != nil {
		return nil, err
	}
	for _, folder := range []string{spec.logs(), spec.runscLogs(), spec.Runsc.Root} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			lock.Close()
			return nil, err
		}
	}
	s := &supervisor{specFile: specFile, lock: lock, log: newLog(spec.ownLog()), hangup: make(chan struct{}, 1)}
	s.sandbox = &sandbox{spec: spec, log: s.log}
	self, _ := process.Of(os.Getpid())
	s.store = &store{file: spec.stateFile(), log: s.log, state: State{
		Version: stateVersion, ID: self, BootID: bootID(), Spec: hash,
	}}
	removeHalf(spec.stateFile())
	removeHalf(spec.appliedFile())
	return s, nil
}

// takeLock makes sure that no other supervisor has the sandbox. The kernel lets go of it with the process.
func takeLock(spec Spec) (*os.File, error) {
	file, err := os.OpenFile(spec.lockFile(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the sandbox's state folder: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return file, nil
	}
	file.Close()
	if err != unix.EWOULDBLOCK {
		return nil, fmt.Errorf("locking %s: %w", spec.lockFile(), err)
	}
	who := "another supervisor"
	if state, err := readState(spec.stateFile()); err == nil && state.Alive() {
		who = fmt.Sprintf("another supervisor (process %d)", state.PID)
	}
	return nil, fmt.Errorf("%s has the sandbox %s already: it takes changes of the spec by SIGHUP, and ends by SIGTERM",
		who, spec.Name)
}

func (s *supervisor) main(signals <-chan os.Signal, teller *ready.Teller) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		for received := range signals {
			if received != unix.SIGHUP {
				cancel(fmt.Errorf("it was told to end (%s)", received))
				continue
			}
			select {
			case s.hangup <- struct{}{}:
			default: // it is about to read the spec anyway
			}
		}
	}()
	if err := newLogKeeper(s.sandbox.spec, s.log).watch(ctx); err != nil {
		teller.Tell(err)
		return err
	}
	if err := s.begin(ctx); err != nil {
		teller.Tell(err)
		return err
	}
	teller.Tell(nil)
	return s.keep(ctx)
}

// begin takes over a sandbox that runs, or starts one.
func (s *supervisor) begin(ctx context.Context) error {
	before, err := readState(s.sandbox.spec.stateFile())
	if err != nil {
		s.log.Printf("what was noted of the sandbox cannot be read, so that one that runs is ended: %v", err)
	}
	s.store.state.Starts = before.Starts
	if before.Egress != nil {
		s.store.egressStarts = before.Egress.Starts
	}
	if running := before.runs(before.Sandbox); running != nil {
		watched, err := process.Watch(running.ID)
		if err == nil {
			return s.adopt(ctx, before, watched)
		}
		s.log.Printf("the sandbox ends just now: %v", err)
	}
	if err := s.sandbox.clear(); err != nil { // of one that died unseen
		s.store.wrong(sandboxTrouble, err)
		return err
	}
	if err := s.start(ctx, s.first); err != nil {
		s.endEgress()
		err = errors.Join(err, s.sandbox.clear())
		s.store.wrong(sandboxTrouble, err)
		return err
	}
	return nil
}

// start starts the sandbox and has it ready. One that was started before gets back what ran in it, or has it still.
func (s *supervisor) start(ctx context.Context, how beginning) error {
	s.store.change(func(state *State) {
		state.Starts++
		state.Sandbox, state.Replaying = nil, false
	})
	starts := s.store.current().Starts
	s.log.Printf("starting the sandbox %s (start %d)", s.sandbox.spec.Name, starts)
	running, err := s.sandbox.start(ctx, how.memory)
	if err != nil {
		return err
	}
	s.running, s.since = running, time.Now()
	if how.memory == "" {
		if err := s.sandbox.boot(ctx, running, how.again); err != nil {
			return err
		}
	}
	if s.egress, err = startEgress(ctx, s.sandbox, s.store, false); err != nil {
		return err
	}
	if err := s.publish.Set(s.sandbox.spec.Publish); err != nil {
		if !how.again {
			return err
		}
		s.store.wrong(specTrouble, err)
	}
	s.noteApplied()
	s.store.wrong(sandboxTrouble, nil)
	s.store.change(func(state *State) { state.Sandbox, state.Replaying = &Part{running.ID, starts}, how.again })
	s.log.Printf("the sandbox runs: process %d", running.PID)
	if how.again {
		return s.replay(ctx)
	}
	return nil
}

// replay brings back what ran in the sandbox. Where that fails otherwise than by the sandbox's end it is told.
func (s *supervisor) replay(ctx context.Context) error {
	err := s.sandbox.replay(ctx, s.running)
	if errors.Is(err, errEnded) || ctx.Err() != nil {
		return err
	}
	s.store.wrong(sandboxTrouble, err)
	s.store.change(func(state *State) { state.Replaying = false })
	return nil
}

// adopt takes over a sandbox that runs. Nothing of it is restarted but its way out, which has ended with the supervisor
// of before.
func (s *supervisor) adopt(ctx context.Context, before State, running *process.Watched) error {
	s.log.Printf("taking over the sandbox %s: process %d", s.sandbox.spec.Name, running.PID)
	s.running, s.since = running, time.Now()
	if left := before.runs(before.Egress); left != nil {
		endCtx, cancel := context.WithTimeout(ctx, clearTimeout)
		defer cancel()
		find := func() []int {
			if left.Alive() {
				return []int{left.PID}
			}
			return nil
		}
		if err := process.Kill(endCtx, "the way out of before", find); err != nil {
			s.log.Print(err)
		}
	}
	wanted, hash := s.sandbox.spec, s.store.state.Spec
	if applied, err := readApplied(s.sandbox.spec); err == nil {
		s.sandbox.spec = applied
	} else if before.Spec != hash {
		s.log.Printf("what the sandbox was started with is not known, and taken to be what it is now: %v", err)
	}
	s.store.change(func(state *State) {
		state.Spec, state.Sandbox, state.Replaying = before.Spec, before.Sandbox, before.Replaying
	})
	s.sandbox.findGroup(running.PID)
	s.apply(ctx, wanted, hash, true)
	if before.Replaying { // the supervisor of before did not come to its end
		if err := s.replay(ctx); err != nil {
			s.log.Print(err) // what there is to do about it is done next
		}
	}
	return nil
}

// keep keeps the sandbox running until it has ended for good.
func (s *supervisor) keep(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return s.stop(context.Cause(ctx))
		case <-s.hangup:
			s.reload(ctx)
		case <-s.running.Ended():
			if err := s.ended(ctx); err != nil {
				return err
			}
			if s.running == nil {
				return nil
			}
		}
	}
}

// stop ends the sandbox in good order and for good.
func (s *supervisor) stop(why error) error {
	s.log.Printf("ending the sandbox: %v", why)
	s.endEgress()
	if s.running != nil {
		s.sandbox.end(s.running)
	}
	return s.finish(nil)
}

// finish clears what is left of the sandbox and notes why it has ended, if it has by itself.
func (s *supervisor) finish(why error) error {
	s.endEgress()
	cleared := s.sandbox.clear()
	if s.running != nil {
		s.running.Close()
		s.running = nil
	}
	s.store.change(func(state *State) { state.Sandbox, state.Replaying, state.Egress = nil, false, nil })
	s.store.wrong(egressTrouble, nil)
	s.store.wrong(sandboxTrouble, errors.Join(why, cleared))
	s.log.Print("done")
	return cleared
}

func (s *supervisor) endEgress() {
	s.egress.end()
	s.egress = nil
}

// ended is for a sandbox that has ended by itself: it is started again, if it is to be, as often as it takes.
func (s *supervisor) ended(ctx context.Context) error {
	why := s.whyEnded()
	for {
		lived := time.Since(s.since)
		if !s.sandbox.spec.Restart {
			return s.finish(why)
		}
		s.endEgress()
		s.store.change(func(state *State) { state.Sandbox, state.Replaying = nil, false })
		pause := s.pause.Next(lived)
		why = errors.Join(why, s.sandbox.clear())
		s.store.wrong(sandboxTrouble, fmt.Errorf("%w\nit starts again in %s", why, pause))
		if !s.wait(ctx, pause) {
			return s.stop(context.Cause(ctx))
		}
		if !s.sandbox.spec.Restart { // it was told so meanwhile
			continue
		}
		if s.running != nil {
			s.running.Close()
			s.running = nil
		}
		s.since = time.Now()
		why = s.start(ctx, beginning{again: true})
		if why == nil {
			return nil
		}
		if ctx.Err() != nil {
			return s.stop(context.Cause(ctx))
		}
	}
}

// whyEnded is what is known of a sandbox's end.
func (s *supervisor) whyEnded() error {
	text := fmt.Sprintf("the sandbox has ended (process %d)", s.running.PID)
	if s.sandbox.group != nil && s.sandbox.group.Killed() > 0 {
		text += "; the kernel has killed processes of it, or its way out, since its memory was used up (limits.memory)"
	}
	if words := s.sandbox.lastWords(); words != "" {
		text += "\n" + words
	}
	return errors.New(text)
}

// wait waits before a start, and takes changes of the spec meanwhile. It tells whether the start is to be made.
func (s *supervisor) wait(ctx context.Context, pause time.Duration) bool {
	over := time.After(pause)
	for {
		select {
		case <-over:
			return true
		case <-ctx.Done():
			return false
		case <-s.hangup:
			s.reload(ctx)
		}
	}
}

// reload reads the spec again and applies what it can.
func (s *supervisor) reload(ctx context.Context) {
	spec, hash, err := readSpec(s.specFile)
	if err != nil {
		s.store.wrong(specTrouble, err)
		s.store.change(func(state *State) { state.Refused = hash })
		return
	}
	s.apply(ctx, spec, hash, false)
}

// apply applies a spec to the sandbox, as far as that needs no restart. The way out starts anew where it is another
// one, or where that is asked for.
func (s *supervisor) apply(ctx context.Context, wanted Spec, hash string, egressToo bool) {
	now := s.sandbox.spec
	next, restarts := now.replaced(wanted)
	s.sandbox.spec = next
	var problems []error
	if len(restarts) > 0 {
		problems = append(problems, fmt.Errorf("the sandbox runs with another %s: that takes a restart of it (SIGTERM, "+
			"and another start); what takes none is applied", strings.Join(restarts, ", ")))
	}
	isRunning := s.running != nil && s.running.Alive()
	if isRunning {
		problems = append(problems, s.applyLimits(now), s.applyFilter(now), s.publish.Set(next.Publish))
		s.applyEgress(ctx, now, egressToo)
	}
	s.noteApplied()
	err := errors.Join(problems...)
	if err != nil {
		err = fmt.Errorf("the spec is not applied as a whole: %w", err)
	}
	s.store.wrong(specTrouble, err)
	s.store.change(func(state *State) {
		if err == nil {
			state.Spec, state.Refused = hash, ""
		} else {
			state.Refused = hash
		}
	})
}

func (s *supervisor) applyLimits(before Spec) error {
	limits := s.sandbox.spec.Limits
	if s.sandbox.group == nil {
		if limits.None() {
			return nil
		}
		s.sandbox.spec.Limits = before.Limits
		return errors.New("limits: the sandbox has no cgroup, since nothing was limited when it was started; restart it")
	}
	if err := s.sandbox.group.Set(limits); err != nil {
		s.sandbox.spec.Limits = before.Limits
		return fmt.Errorf("limits: %w", errors.Join(err, s.sandbox.group.Set(before.Limits)))
	}
	return nil
}

// applyFilter sets the filter. One that this host cannot have would be in the way of the next start.
func (s *supervisor) applyFilter(before Spec) error {
	err := s.sandbox.filter()
	if err != nil {
		s.sandbox.spec.Filter = before.Filter
	}
	return err
}

// applyEgress starts the way out anew where it is another one. That it does not start is told apart from the spec.
func (s *supervisor) applyEgress(ctx context.Context, before Spec, anew bool) {
	wanted, had := s.sandbox.spec.Egress, before.Egress
	if same := wanted == had || wanted != nil && had != nil && *wanted == *had; same && !anew {
		return
	}
	s.endEgress()
	s.store.wrong(egressTrouble, nil)
	s.egress, _ = startEgress(ctx, s.sandbox, s.store, true)
}

// noteApplied keeps what the sandbox runs with for the next supervisor.
func (s *supervisor) noteApplied() {
	text, err := json.Marshal(s.sandbox.spec)
	if err == nil {
		err = writeWhole(s.sandbox.spec.appliedFile(), text)
	}
	if err != nil {
		s.log.Printf("noting what the sandbox runs with: %v", err)
	}
}

func readApplied(spec Spec) (Spec, error) {
	text, err := os.ReadFile(spec.appliedFile())
	if err != nil {
		return Spec{}, err
	}
	return parseSpec(text)
}
