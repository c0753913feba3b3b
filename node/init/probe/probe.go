// Package probe asks a kernel what it can do, by doing it.
package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"gvisor-k3s/node/init/input"
)

// Probe asks a question: a program whose exit code 0 means yes. The program "can" is this one itself; see Can.
type Probe struct {
	ID           string   `json:"id"`
	Command      []string `json:"command"`
	Milliseconds int      `json:"milliseconds"` // it is killed after these, and the answer is no
}

// Answer is the answer to a probe.
type Answer struct {
	ID     string `json:"id"`
	Yes    bool   `json:"yes"`
	Hung   bool   `json:"hung,omitempty"` // it did not end in time
	Reason string `json:"reason"`         // what the program said, where the answer is no
}

// Run reads a list of probes as JSON and prints the answers. All run at once, each in a process of its own: one that
// hangs, or leaves a thread in another namespace, harms no other.
func Run(questions io.Reader, output io.Writer) error {
	var probes []Probe
	if err := input.Decode(questions, &probes); err != nil {
		return fmt.Errorf("probes: %w", err)
	}
	answers := make([]Answer, len(probes))
	var running sync.WaitGroup
	for i, asked := range probes {
		running.Go(func() { answers[i] = asked.run() })
	}
	running.Wait()
	return json.NewEncoder(output).Encode(answers)
}

func (p Probe) run() Answer {
	answer := Answer{ID: p.ID}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(p.Milliseconds)*time.Millisecond)
	defer cancel()
	command := p.Command
	if len(command) == 0 {
		answer.Reason = "it has no command"
		return answer
	}
	if command[0] == "can" {
		self, err := os.Executable()
		if err != nil {
			answer.Reason = err.Error()
			return answer
		}
		command = append([]string{self}, command...)
	}
	process := exec.CommandContext(ctx, command[0], command[1:]...)
	// Its children go with it.
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	process.Cancel = func() error { return syscall.Kill(-process.Process.Pid, syscall.SIGKILL) }
	process.WaitDelay = time.Second // one that left the group may have the output still open
	said, err := process.CombinedOutput()
	answer.Yes, answer.Hung = err == nil, errors.Is(ctx.Err(), context.DeadlineExceeded)
	if err != nil {
		answer.Reason = strings.TrimSpace(strings.TrimPrefix(string(said), "sandbox-init: "))
	}
	if err != nil && answer.Reason == "" {
		answer.Reason = err.Error()
	}
	return answer
}
