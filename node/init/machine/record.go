package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/proc"
)

// Record is what is written down of a node that was started.
type Record struct {
	// Version is 2; 1 is sandbox.json of gvisor-k3s up to 0.2.0, which had no kind, owner, address and bridge.
	Version int    `json:"version"`
	Kind    string `json:"kind"` // "inside"
	Owner   string `json:"owner"`
	// Incarnation counts the starts. Everything that lives in the sandbox's memory is done anew when it changes.
	Incarnation int `json:"incarnation"`
	// Revision is what it was started with; another value means a restart.
	Revision string `json:"revision"`
	// Process is sandbox-init. Its pid is 0 while the node is made, so that a start that was cut off can be undone.
	proc.Process
	network
}

const (
	recordVersion = 2
	recordKind    = "inside"
	recordLimit   = 1 << 20
)

func (n Node) recordFile() string { return filepath.Join(n.state(), "machine.json") }

// legacyRecordFile is where gvisor-k3s up to 0.2.0 kept its record.
func (n Node) legacyRecordFile() string { return filepath.Join(n.state(), "sandbox.json") }

// errDamaged says that a record is there and cannot be read.
var errDamaged = errors.New("it cannot be read")

// readRecord is the record of the node; nil if there is none.
func (n Node) readRecord() (*Record, error) {
	var record Record
	found, err := readJSON(n.recordFile(), &record)
	if err != nil {
		return nil, err
	}
	// One without a version is a note of an ssh cluster of the same name, which this machine keeps of another one.
	if found && record.Version != 0 {
		if record.Version != recordVersion || record.Kind != recordKind {
			return nil, fmt.Errorf(
				"%s is a record of version %d and kind %q, which this sandbox-init does not understand; use "+
					"the gvisor-k3s that made it",
				n.recordFile(),
				record.Version,
				record.Kind,
			)
		}
		return &record, nil
	}
	// A managed sandbox of the same name has a bundle beside its record.
	if _, err := os.Lstat(filepath.Join(n.state(), "bundle")); err == nil {
		return nil, nil
	}
	record = Record{}
	found, err = readJSON(n.legacyRecordFile(), &record)
	if err != nil || !found {
		return nil, err
	}
	record.Version, record.Kind = 1, recordKind
	return &record, nil
}

func readJSON(file string, into any) (found bool, err error) {
	content, err := files.Read(file, recordLimit)
	if files.IsAbsent(err) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(content, into)
	}
	if err != nil {
		return false, fmt.Errorf(
			"%s tells of a node on this machine, and %w (%w); `gvisor-k3s destroy` removes the node, and "+
				"`up` makes it anew",
			file,
			errDamaged,
			err,
		)
	}
	return true, nil
}

// write writes the record down, in one step: half of one would be in the way of every later command.
func (r Record) write(n Node) error {
	if err := files.MakeFolders(n.state(), 0o700); err != nil {
		return err
	}
	if err := files.WriteJSON(n.recordFile(), 0o600, r); err != nil {
		return err
	}
	return files.Remove([]string{n.legacyRecordFile()})
}

// isAlive tells whether there is a record whose process runs. In a sandbox that was started anew another process may
// have the same pid and, since it began as soon after the start, the same start time; so it must be a sandbox-init,
// too.
func (r *Record) isAlive() bool {
	if r == nil || !r.Runs() {
		return false
	}
	command := proc.CommandLine(r.PID)
	return len(command) == 2 && filepath.Base(command[0]) == "sandbox-init" && command[1] == "run"
}
