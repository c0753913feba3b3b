package service

import (
	"bytes"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"sync"

	"gvisor-k3s/node/init/facade"
	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/input"
)

// NotesFile keeps the Note of this life for the next one.
const NotesFile = "/var/lib/sandbox-init/boot.json"

// notesLimit is how large it may be; a service has some 2 KiB, a facade 3.
const notesLimit = 4 << 20

// Note is what the next life of a sandbox is to have again.
type Note struct {
	Version  int          `json:"version"` // 1
	Facade   *facade.Plan `json:"facade"`
	Services []Service    `json:"services"` // in the order of their first start
}

// Notes keeps a Note. It belongs to process 1, so that two changes never meet in the file.
type Notes struct {
	mu      sync.Mutex // guards all below
	file    string
	note    Note
	problem error // why the note of the last life is not known
}

// OpenNotes reads what the last life has noted. What cannot be read is told by Note, and made anew by the next change.
func OpenNotes(file string) *Notes {
	n := &Notes{file: file, note: Note{Version: 1}}
	content, err := files.Read(file, notesLimit)
	if files.IsAbsent(err) {
		return n
	}
	var note Note
	if err == nil {
		err = input.Decode(bytes.NewReader(content), &note)
	}
	if err == nil && note.Version != 1 {
		err = fmt.Errorf("it is of version %d, and 1 is understood", note.Version)
	}
	if err != nil {
		n.problem = fmt.Errorf(
			"%s, which tells what ran before, cannot be read, so nothing of that is started again: %w",
			file,
			err,
		)
		return n
	}
	n.note = note
	return n
}

// Note tells what is noted, and why nothing is, if the last life's note is damaged.
func (n *Notes) Note() (Note, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	note := n.note
	note.Services = slices.Clone(note.Services)
	return note, n.problem
}

// Forget makes the next life begin with nothing.
func (n *Notes) Forget() error {
	return n.change(func(note *Note) { *note = Note{Version: 1} })
}

// SetFacade notes the facade.
func (n *Notes) SetFacade(plan facade.Plan) error {
	return n.change(func(note *Note) { note.Facade = &plan })
}

// put notes a service, in the place that it has.
func (n *Notes) put(service Service) error {
	return n.change(func(note *Note) {
		if at := slices.IndexFunc(note.Services, service.sameName); at >= 0 {
			note.Services[at] = service
		} else {
			note.Services = append(note.Services, service)
		}
	})
}

func (n *Notes) remove(name string) error {
	return n.change(func(note *Note) {
		note.Services = slices.DeleteFunc(note.Services, Service{Name: name}.sameName)
	})
}

func (s Service) sameName(other Service) bool { return s.Name == other.Name }

// change changes the note and its file, or neither.
func (n *Notes) change(change func(*Note)) error {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := n.note
	changed.Services = slices.Clone(n.note.Services)
	change(&changed)
	if n.problem == nil && reflect.DeepEqual(changed, n.note) {
		return nil
	}
	if _, err := files.EnsureFolder(filepath.Dir(n.file), 0o700); err != nil {
		return err
	}
	if err := files.WriteJSON(n.file, 0o600, changed); err != nil {
		return err
	}
	n.note, n.problem = changed, nil
	return nil
}
