// Package ready is what a process that stays says to who started it, once: one line of JSON, {"ready":true} or
// {"error":"why"}, on file descriptor 3, which it then closes.
package ready

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const descriptor = 3

// A line is of one error, with what programs have printed; none is longer than this.
const longest = 1 << 20

type line struct {
	Ready bool   `json:"ready,omitempty"`
	Error string `json:"error,omitempty"`
}

// Teller is the way to who started this process. Without one, as where a process is started by hand, nothing is told.
type Teller struct{ file *os.File }

// Open has to be called before any file is opened, which could be taken for the way. A process that this one starts
// does not get it.
func Open() *Teller {
	var stat unix.Stat_t
	if unix.Fstat(descriptor, &stat) != nil {
		return &Teller{}
	}
	// What Go's runtime has opened is neither.
	if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFIFO && kind != unix.S_IFSOCK {
		return &Teller{}
	}
	unix.CloseOnExec(descriptor)
	return &Teller{os.NewFile(descriptor, "who started this")}
}

// Tell says that the process is ready or, with an error, that it will not be. Only the first call says anything.
func (t *Teller) Tell(err error) {
	if t.file == nil {
		return
	}
	said := line{Ready: err == nil}
	if err != nil {
		said.Error = err.Error()
	}
	json.NewEncoder(t.file).Encode(said)
	t.file.Close()
	t.file = nil
}

// Await reads what a process says. The reader may be closed, or given a deadline, to end the wait.
func Await(r io.Reader) error {
	text, err := bufio.NewReader(io.LimitReader(r, longest)).ReadBytes('\n')
	if err == io.EOF {
		return errors.New("it ended without a word")
	}
	if err != nil {
		return err
	}
	var said line
	if err := json.Unmarshal(text, &said); err != nil {
		return fmt.Errorf("it said %.100q: %w", text, err)
	}
	if !said.Ready {
		return errors.New(said.Error)
	}
	return nil
}
