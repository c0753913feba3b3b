package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/renameio/v2"

	"gvisor-k3s/host/process"
)

const stateVersion = 1

// State is what is told of a sandbox and its supervisor, in a file that is always whole.
type State struct {
	Version int `json:"version"`
	// The supervisor itself.
	process.ID
	// BootID is the host's boot, which the processes' start times count from.
	BootID string `json:"bootId"`
	// Spec is the hash of the spec that is applied, as a whole; Refused that of one that was not.
	Spec    string `json:"spec"`
	Refused string `json:"refused"`
	// Starts is how often the sandbox was started, also where it does not run.
	Starts int `json:"starts"`
	// Sandbox is there as soon as it answers; null while it does not run.
	Sandbox *Part `json:"sandbox"`
	// Replaying tells that what ran in it is not yet brought back as a whole.
	Replaying bool  `json:"replaying"`
	Egress    *Part `json:"egress"`
	// Error is what went wrong and has not been put right.
	Error string `json:"error"`
}

// Part is a process that the supervisor keeps running.
type Part struct {
	process.ID
	Starts int `json:"starts"`
}

// The kinds of things that go wrong, each of which is put right by itself.
type trouble int

const (
	sandboxTrouble trouble = iota
	egressTrouble
	specTrouble
	troubles
)

// store keeps the state.
type store struct {
	file string
	log  *log.Logger

	mutex    sync.Mutex
	state    State
	troubles [troubles]string
	// egressStarts counts on where the way out does not run.
	egressStarts int
}

// readState reads what an earlier supervisor has left; none is an empty state. One that cannot be read is no reason to
// leave a sandbox without a supervisor: it is as if there were none, and the sandbox is started anew.
func readState(file string) (State, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	var state State
	if err := json.Unmarshal(text, &state); err != nil {
		return State{}, fmt.Errorf("%s: %w", file, err)
	}
	if state.Version != stateVersion {
		return State{}, fmt.Errorf("%s: its version is %d, and this program knows version %d", file, state.Version,
			stateVersion)
	}
	return state, nil
}

// bootID tells one boot of the host from another, in which the same numbers are other processes.
func bootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
}

// runs is the part that runs still, if it does.
func (s State) runs(part *Part) *Part {
	if part == nil || s.BootID != bootID() || !part.Alive() {
		return nil
	}
	return part
}

// change changes the state and writes it. A disk that is full ends nobody's sandbox.
func (s *store) change(how func(*State)) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	how(&s.state)
	var all []string
	for _, text := range s.troubles {
		if text != "" {
			all = append(all, text)
		}
	}
	s.state.Error = strings.Join(all, "\n")
	text, err := json.Marshal(s.state)
	if err == nil {
		err = writeWhole(s.file, append(text, '\n'))
	}
	if err != nil {
		s.log.Printf("noting the state: %v", err)
	}
}

// wrong notes what went wrong; nil puts it right.
func (s *store) wrong(kind trouble, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	s.mutex.Lock()
	changed := s.troubles[kind] != text
	s.troubles[kind] = text
	s.mutex.Unlock()
	if err != nil {
		s.log.Print(text)
	}
	if changed {
		s.change(func(*State) {})
	}
}

func (s *store) egressStarted(id process.ID) {
	s.change(func(state *State) {
		s.egressStarts++
		s.troubles[egressTrouble] = ""
		state.Egress = &Part{id, s.egressStarts}
	})
}

func (s *store) current() State {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.state
}

// writeWhole has a file's content replaced in one step, or not at all.
func writeWhole(file string, content []byte) error {
	return renameio.WriteFile(file, content, 0o600, renameio.WithTempDir(filepath.Dir(file)))
}

// removeHalf removes what a supervisor that was killed has left of such a step.
func removeHalf(file string) {
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+"*"))
	for _, name := range left {
		os.Remove(name)
	}
}
