package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
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
	// begin is what it is sent when the API server answers.
	begin = 'b'
)

// agent is the process beside the API server's.
type agent struct {
	file  string // the config file
	ready chan struct{}
}

func newAgent(file string) *agent { return &agent{file: file, ready: make(chan struct{})} }

// run keeps the agent running until the context's end. It is started before the API server answers, so that it has
// loaded itself by then.
func (a *agent) run(ctx context.Context) {
	for backoff := firstAgentBackoff; ; {
		started := time.Now()
		err := a.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > stableAgent {
			backoff = firstAgentBackoff
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
	command := exec.CommandContext(ctx, "/proc/self/exe", agentCommand, "--config", a.file)
	command.Args[0] = os.Args[0] // by which it is known in a list of processes
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = agentPatience
	input, err := command.StdinPipe()
	if err != nil {
		return err
	}
	defer input.Close()
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-a.ready:
			_, _ = input.Write([]byte{begin}) // one that has ended already is told by Wait
		case <-ended:
		}
	}()
	err = command.Wait()
	close(ended)
	return errors.Join(err, errors.New("it should not"))
}

// runAgent is the process: it waits for the word to begin, and ends when it is told to, when one of its components
// does, or at once when the server is gone, which starts another one.
func runAgent(ctx context.Context, config *Config, input io.Reader) error {
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
		if err == nil {
			_, err = io.ReadFull(input, word)
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
	components := &components{config: config, pki: &pki{config: config, life: life}, cancel: cancel}
	components.start(ctx, "kube-controller-manager", components.controllerManager)
	components.start(ctx, "kube-scheduler", components.scheduler)
	if !config.DisableAgent {
		components.start(ctx, "kubelet", components.kubelet)
		components.start(ctx, "network policies", components.tellOfPolicies)
		components.start(ctx, "load balancers", components.loadBalancers)
		components.start(ctx, "the node's labels", components.labelNode)
		if !slices.Contains(config.Disable, localStorage) {
			if err := writeLocalStorage(config); err != nil {
				return err
			}
			components.start(ctx, localStorage, components.localStorage)
		}
	}
	components.start(ctx, "manifests", func(ctx context.Context) error { return deployManifests(ctx, config) })
	<-ctx.Done()
	components.wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}
