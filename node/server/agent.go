package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

// The server is two processes. One has the datastore and the API server. The other has all that acts on what the API
// holds: controllers, scheduler, kubelet, and what this project has beside them. What a pod, a node or any other object
// says can make those panic or end (they do so on purpose, too: controllers and kubelet call os.Exit), and neither a
// panic in a goroutine of theirs nor an exit can be caught from outside; nor can most of them start twice in a process.
// So they have a process that may end, and is started again, while the API goes on answering.
//
// What it costs, measured on two cores as five starts of the server with it and five without, in turn, in gVisor: 28 MB
// of memory that is no file's (a node without pods had 274 MB in place of 246), a third of a second of CPU time at the
// start, and no time until the node is Ready (5.1 s both), for the second process loads itself while the API server
// starts.
const agentCommand = "agent"

const (
	firstAgentBackoff = 100 * time.Millisecond
	lastAgentBackoff  = 5 * time.Second
	// stableAgent is how long it must have run for its next end to count as a first one.
	stableAgent = 30 * time.Second
	// agentPatience is what it has to end by itself: what its components have, and a little for the process.
	agentPatience = patience + time.Second
	// hopeless is how often it may end before that is told to who waits for it.
	hopeless = 5
	// begin is what it is sent when the API server answers, and settled some time after the node is Ready.
	begin   = 'b'
	settled = 's'
	// settling is how long the first pods take, and what a start leaves behind is given back after that: about a twentieth
	// of the node's memory, which the Go runtime would keep for a while.
	settling = 10 * time.Second
	// alive is the line that it reports when controllers and scheduler answer; the others say why it ends.
	alive = "alive"
	// reportFD is where it reports.
	reportFD = 3
)

// agent is the process beside the API server's.
type agent struct {
	file   string // the config file
	config *Config
	stages *stages
	ready  chan struct{}
}

func newAgent(file string, config *Config, stages *stages) *agent {
	return &agent{file: file, config: config, stages: stages, ready: make(chan struct{})}
}

// run keeps the agent running until the context's end. It is started before the API server answers, so that it has
// loaded itself by then.
func (a *agent) run(ctx context.Context) {
	ends := 0
	for backoff := firstAgentBackoff; ; {
		started := time.Now()
		err := a.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > stableAgent {
			backoff, ends = firstAgentBackoff, 0
		}
		if ends++; ends >= hopeless {
			a.stages.note(problemNote, "controllers, scheduler and kubelet keep ending, the last time: "+err.Error())
		}
		klog.ErrorS(err, "controllers, scheduler and kubelet ended, and start again; the API goes on", "in", backoff)
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastAgentBackoff)
	}
}

// once runs the process until it ends, and ends it with the context. Its standard input tells it to begin, and its end
// that this process is gone.
func (a *agent) once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.stages.agentStarts()
	command := agentProcess(ctx, "/proc/self/exe", a.file)
	command.Args[0] = os.Args[0] // by which it is known in a list of processes
	input, err := command.StdinPipe()
	if err != nil {
		return err
	}
	defer input.Close()
	report, its, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	command.ExtraFiles = []*os.File{its}
	err = command.Start()
	its.Close()
	if err != nil {
		return err
	}
	go func() {
		select {
		case <-a.ready:
			_, _ = input.Write([]byte{begin}) // one that has ended already is told by Wait
		case <-ctx.Done():
		}
	}()
	reported := make(chan string)
	go func() { reported <- a.listen(ctx, report, input) }()
	err = command.Wait()
	if why := <-reported; why != "" {
		return errors.New(why)
	}
	return cmp.Or(err, errors.New("it should not")) // what a panic says is in the log
}

// agentProcess is a program's agent, with what it says in this process's log: it is told to end with the context, and
// has some time for that.
func agentProcess(ctx context.Context, program, file string) *exec.Cmd {
	command := exec.CommandContext(ctx, program, agentCommand, "--config", file)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = agentPatience
	return command
}

// listen notes how far the agent is, and returns why it ends.
func (a *agent) listen(ctx context.Context, report io.Reader, input io.Writer) string {
	var why []string
	for lines := bufio.NewScanner(report); lines.Scan(); {
		if lines.Text() != alive {
			why = append(why, lines.Text())
			continue
		}
		a.stages.note(controllersNote, time.Now().UnixMilli(), problemNote)
		go func() {
			a.stages.watch(ctx, a.config, stageAgent, stageNode)
			select {
			case <-ctx.Done():
			case <-time.After(settling):
				debug.FreeOSMemory()
				_, _ = input.Write([]byte{settled})
			}
		}()
	}
	_, _ = io.Copy(io.Discard, report) // after a line that is too long; nobody is to wait for ever to say the rest
	return strings.Join(why, "\n")
}

// runAgent is the process: it waits for the word to begin, and ends when it is told to, when one of its components
// does, or at once when the server is gone, which starts another one.
func runAgent(ctx context.Context, config *Config, input io.Reader) error {
	report := os.NewFile(reportFD, "report")
	syscall.CloseOnExec(reportFD) // what the kubelet runs must not keep it open
	err := runComponents(ctx, config, input, report)
	if err != nil {
		fmt.Fprintln(report, err)
	}
	return err
}

func runComponents(ctx context.Context, config *Config, input io.Reader, report io.Writer) error {
	life, err := certificateLife()
	if err != nil {
		return err
	}
	haveClientsLook(life)
	word := make([]byte, 1)
	told := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(input, word)
		told <- err
		for err == nil {
			if _, err = io.ReadFull(input, word); err == nil {
				debug.FreeOSMemory()
			}
		}
		if ctx.Err() == nil {
			klog.Flush()
			fmt.Fprintln(os.Stderr, "gvisor-k3s-node: the server is gone:", err)
			os.Exit(1)
		}
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-told:
		if err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	components := newComponents(config, &pki{config: config, life: life}, cancel)
	components.start(ctx, "kube-controller-manager", components.controllerManager)
	components.start(ctx, "kube-scheduler", components.scheduler)
	if !config.DisableAgent {
		components.start(ctx, "kubelet", components.kubelet)
		components.startOwn(ctx)
		if !slices.Contains(config.Disable, localStorage) {
			if err := writeLocalStorage(config); err != nil {
				return err
			}
			components.start(ctx, localStorage, components.localStorage)
		}
	}
	components.start(ctx, "the members' certificates", components.approveMembers)
	components.start(ctx, "manifests", func(ctx context.Context) error { return deployManifests(ctx, config) })
	go func() {
		if components.answer(ctx) {
			fmt.Fprintln(report, alive)
		}
	}()
	<-ctx.Done()
	components.wait()
	return endOf(ctx)
}

// endOf is why a context ended, unless somebody asked for it.
func endOf(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}
