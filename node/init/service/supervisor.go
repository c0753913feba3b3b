// Package service keeps programs running, and is asked about them through a socket.
package service

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sync"
	"time"

	"gvisor-k3s/node/init/files"

	"golang.org/x/sys/unix"
)

// Service is a program that is kept running.
type Service struct {
	Name    string   `json:"name"`    // lower-case letters, digits and dashes
	Command []string `json:"command"` // the program by absolute path, and its arguments
	Env     []string `json:"env"`     // NAME=value; the whole environment of the program
	Log     string   `json:"log"`     // the file that takes its output; rotated at 10 MiB, three old ones are kept
	// StopSeconds is how long the program has to end after SIGTERM before SIGKILL; 1 to 600.
	StopSeconds int `json:"stopSeconds"`
	// RestartEvery is after how many seconds the program is ended and started anew; 0 is never. k3s renews its
	// certificates only at its start.
	RestartEvery int `json:"restartEvery,omitempty"`
	// Check is what `service put` runs before it has a running service ended for this description; if it fails, what
	// runs goes on.
	Check []string `json:"check,omitempty"`
	// Revision has no meaning here: a change of it restarts the service, as one of any other field does.
	Revision string `json:"revision"`
}

// longestRun is ten years of seconds, the most that a service can be told to run.
const longestRun = 10 * 365 * 24 * 60 * 60

var serviceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func (s Service) validate() error {
	var problems []error
	if !serviceName.MatchString(s.Name) {
		problems = append(problems, fmt.Errorf("name %q: lower-case letters, digits and dashes are allowed", s.Name))
	}
	if len(s.Command) == 0 || !filepath.IsAbs(s.Command[0]) {
		problems = append(problems, fmt.Errorf("command %q: the program's absolute path must come first", s.Command))
	}
	if !filepath.IsAbs(s.Log) {
		problems = append(problems, fmt.Errorf("log %q: an absolute path is needed", s.Log))
	}
	if s.StopSeconds < 1 || s.StopSeconds > 600 {
		problems = append(problems, fmt.Errorf("stopSeconds %d: 1 to 600 is allowed", s.StopSeconds))
	}
	if s.RestartEvery < 0 || s.RestartEvery > longestRun {
		problems = append(problems, fmt.Errorf("restartEvery %d: 0 to %d is allowed", s.RestartEvery, longestRun))
	}
	return errors.Join(problems...)
}

// normal is the service with nothing where a list is empty: so it is the same whether it was just described, or comes
// from a note, and is not restarted for that.
func (s Service) normal() Service {
	for _, list := range []*[]string{&s.Env, &s.Check} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	return s
}

// State is what Status tells of a service.
type State struct {
	PID      int    `json:"pid"`      // 0 while it waits to be started again
	Restarts int    `json:"restarts"` // how often it was started again because it had ended by itself
	LastExit string `json:"lastExit"` // how it ended the last time, empty if it never did
}

// Detail is what Details tells of a service.
type Detail struct {
	State       State  `json:"state"`
	Log         string `json:"log"`
	Unwritten   string `json:"unwritten,omitempty"` // the end of what that cannot take
	StopSeconds int    `json:"stopSeconds"`
}

const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
	// stableAfter is how long a program must have run for its next failure to count as a first one.
	stableAfter = 30 * time.Second
)

// Supervisor runs services and reaps every child of this process.
type Supervisor struct {
	notes         *Notes     // what the next life is to have again; nil notes nothing
	processesFile string     // tells which processes are services; empty is none
	noting        sync.Mutex // two writers of that file would meet

	mu       sync.Mutex // guards all below, and makes "start a process and note its pid" one step for the reaper
	services map[string]*supervised
	order    []string // of the first start
	exits    map[int]chan<- unix.WaitStatus
	changing map[string]*sync.Mutex // one for each name ever used: two changes of one service wait for each other
}

type supervised struct {
	service Service
	output  *output
	state   State
	stop    chan struct{} // closed to end it
	started chan error    // the outcome of the first start
	done    chan struct{} // closed when it has ended for good
}

// NewSupervisor begins to reap the children of this process. Only one can exist in a process, and nothing else may wait
// for one.
func NewSupervisor(notes *Notes, processesFile string) *Supervisor {
	s := &Supervisor{
		notes:         notes,
		processesFile: processesFile,
		services:      map[string]*supervised{},
		exits:         map[int]chan<- unix.WaitStatus{},
		changing:      map[string]*sync.Mutex{},
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			s.reap()
		}
	}()
	return s
}

func (s *Supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if exit, ours := s.exits[pid]; ours {
			delete(s.exits, pid)
			exit <- status
		}
	}
}

// Put starts service, or restarts it if it runs with another description; the same description again changes nothing.
// It is noted first, so that where nothing can be noted what runs goes on. Another error means that the program could
// not be started at all, and it is forgotten but for the note; one that ends later is started again and shows in
// Status.
func (s *Supervisor) Put(service Service) error {
	if err := service.validate(); err != nil {
		return err
	}
	service = service.normal()
	defer s.exclusively(service.Name)()
	if err := s.notes.put(service); err != nil {
		return fmt.Errorf("nothing is changed, since it cannot be noted for the next start: %w", err)
	}
	s.mu.Lock()
	current, exists := s.services[service.Name]
	s.mu.Unlock()
	if exists && reflect.DeepEqual(current.service, service) {
		return nil
	}
	if exists {
		current.end()
	}
	return s.start(service)
}

// Restart ends the service's process and starts it anew.
func (s *Supervisor) Restart(name string) error {
	defer s.exclusively(name)()
	current, err := s.find(name)
	if err != nil {
		return err
	}
	current.end()
	return s.start(current.service)
}

// Stop ends the service and forgets it; one that is not there is no error.
func (s *Supervisor) Stop(name string) error {
	defer s.exclusively(name)()
	s.end(name)
	if err := s.notes.remove(name); err != nil {
		return fmt.Errorf("%s is stopped, but it will be there again after the next start: %w", name, err)
	}
	return nil
}

// end ends the service and forgets it, if it is there.
func (s *Supervisor) end(name string) {
	if current, err := s.find(name); err == nil {
		current.end()
		s.forget(name)
	}
}

// StopAll ends every service, the last started first. What is noted for the next life stays.
func (s *Supervisor) StopAll() {
	s.mu.Lock()
	order := slices.Clone(s.order)
	s.mu.Unlock()
	for _, name := range slices.Backward(order) {
		s.endInTurn(name)
	}
}

func (s *Supervisor) endInTurn(name string) {
	defer s.exclusively(name)()
	s.end(name)
}

// Status tells the state of every service by name.
func (s *Supervisor) Status() map[string]State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make(map[string]State, len(s.services))
	for name, current := range maps.All(s.services) {
		states[name] = current.state
	}
	return states
}

// Details tells more of every service by name.
func (s *Supervisor) Details() map[string]Detail {
	s.mu.Lock()
	defer s.mu.Unlock()
	details := make(map[string]Detail, len(s.services))
	for name, current := range maps.All(s.services) {
		details[name] = Detail{
			State: current.state, Log: current.service.Log, Unwritten: current.output.unwritten(),
			StopSeconds: current.service.StopSeconds,
		}
	}
	return details
}

// exclusively waits until nobody else changes the service and returns what ends the caller's turn.
func (s *Supervisor) exclusively(name string) func() {
	s.mu.Lock()
	turn, exists := s.changing[name]
	if !exists {
		turn = &sync.Mutex{}
		s.changing[name] = turn
	}
	s.mu.Unlock()
	turn.Lock()
	return turn.Unlock
}

func (s *Supervisor) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.services, name)
	s.order = slices.DeleteFunc(s.order, func(other string) bool { return other == name })
}

func (s *Supervisor) find(name string) (*supervised, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if current, exists := s.services[name]; exists {
		return current, nil
	}
	return nil, fmt.Errorf("no service %q; there are %q", name, s.order)
}

func (s *Supervisor) start(service Service) error {
	current := &supervised{
		service: service,
		output:  newOutput(service.Log),
		stop:    make(chan struct{}),
		started: make(chan error, 1),
		done:    make(chan struct{}),
	}
	s.mu.Lock()
	s.services[service.Name] = current
	if !slices.Contains(s.order, service.Name) {
		s.order = append(s.order, service.Name)
	}
	s.mu.Unlock()
	go s.keepRunning(current)
	err := <-current.started
	if err != nil {
		s.forget(service.Name) // or the same description put again would seem to run
	}
	return err
}

func (c *supervised) end() {
	close(c.stop)
	<-c.done
}

// keepRunning starts the program again whenever it ends, with a delay that doubles while it keeps failing.
func (s *Supervisor) keepRunning(current *supervised) {
	defer close(current.done)
	log := current.output
	defer log.close()
	backoff := time.Duration(0)
	for first := true; ; first = false {
		begin := time.Now()
		process, exit, err := s.spawn(current, log)
		if err == nil {
			s.noteProcesses()
		}
		if first {
			current.started <- err
			if err != nil {
				return
			}
		}
		ending := ""
		if err != nil {
			ending = err.Error()
		} else {
			select {
			case status := <-exit:
				ending = describe(status)
			case <-current.stop:
				s.terminate(current, process, exit)
				return
			case <-current.service.renewal():
				fmt.Fprintf(log, "sandbox-init: %s has run for %d s and is started anew\n",
					current.service.Name, current.service.RestartEvery)
				s.terminate(current, process, exit)
				select {
				case <-current.stop: // it came while the program ended
					return
				default:
				}
				backoff = 0
				continue
			}
		}
		s.note(current, func(state *State) { *state = State{Restarts: state.Restarts + 1, LastExit: ending} })
		backoff = nextBackoff(backoff, time.Since(begin))
		fmt.Fprintf(log, "sandbox-init: %s ended: %s; it starts again in %s\n", current.service.Name, ending, backoff)
		select {
		case <-time.After(backoff):
		case <-current.stop:
			return
		}
	}
}

// renewal tells when a program that starts now is to be started anew; nil never does.
func (s Service) renewal() <-chan time.Time {
	if s.RestartEvery == 0 {
		return nil
	}
	return time.After(time.Duration(s.RestartEvery) * time.Second)
}

func nextBackoff(previous, ran time.Duration) time.Duration {
	if previous == 0 || ran > stableAfter {
		return firstBackoff
	}
	return min(2*previous, lastBackoff)
}

func (s *Supervisor) note(current *supervised, change func(*State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&current.state)
}

// spawn starts the program with its output going to log, and promises its exit status on the channel.
func (s *Supervisor) spawn(current *supervised, log *output) (*os.Process, <-chan unix.WaitStatus, error) {
	// Whoever writes into a FIFO waits for a reader, and so would this.
	if info, err := os.Stat(current.service.Log); err == nil && !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is %s, and a log is to be written there; remove it",
			current.service.Log, files.Kind(info.Mode()))
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer writer.Close()
	exit := make(chan unix.WaitStatus, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	process, err := os.StartProcess(current.service.Command[0], current.service.Command, &os.ProcAttr{
		Dir: "/", Env: append([]string{}, current.service.Env...), // nil would be this process's own
		Files: []*os.File{null, writer, writer},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		reader.Close()
		return nil, nil, err
	}
	s.exits[process.Pid] = exit
	current.state.PID = process.Pid
	go func() { // ends when the last holder of the pipe's other end does
		defer reader.Close()
		_, _ = reader.WriteTo(log) // which takes everything: were this end closed, the program would die of SIGPIPE
	}()
	return process, exit, nil
}

// terminate ends the program: it has its time to do so itself.
func (s *Supervisor) terminate(current *supervised, process *os.Process, exit <-chan unix.WaitStatus) {
	process.Signal(unix.SIGTERM)
	select {
	case <-exit:
	case <-time.After(time.Duration(current.service.StopSeconds) * time.Second):
		process.Kill()
		<-exit
	}
	s.note(current, func(state *State) { state.PID = 0 })
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return "signal " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}
