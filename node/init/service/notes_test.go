package service

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gvisor-k3s/node/init/facade"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What one life notes, the next one reads: in its order, with what was changed last.
func TestNotesOutliveTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sandbox-init", "boot.json")
	notes := OpenNotes(file)
	if note, err := notes.Note(); err != nil || !reflect.DeepEqual(note, Note{Version: 1}) {
		t.Errorf("a first life has %+v, %v", note, err)
	}
	plan := facade.Plan{Files: []facade.File{{Path: "/etc/machine-id", Content: "x"}}}
	a, b, c := Service{Name: "a"}, Service{Name: "b", Env: []string{"SECRET=1"}}, Service{Name: "c"}
	changed := a
	changed.Revision = "2"
	must(
		t,
		notes.put(a),
		notes.put(b),
		notes.SetFacade(plan),
		notes.put(c),
		notes.remove("b"),
		notes.remove("none"),
		notes.put(changed),
	)
	want := Note{Version: 1, Facade: &plan, Services: []Service{changed, c}}
	if note, err := OpenNotes(file).Note(); err != nil || !reflect.DeepEqual(note, want) {
		t.Errorf("got %+v, %v, want %+v", note, err, want)
	}
	for path, mode := range map[string]os.FileMode{file: 0o600, filepath.Dir(file): os.ModeDir | 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s has mode %v, and secrets are in it", path, info.Mode())
		}
	}
	before, err := os.Stat(file)
	must(t, err, notes.put(c), notes.SetFacade(plan), notes.remove("none"))
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Error("the same was written again")
	}
	must(t, notes.Forget())
	if note, err := OpenNotes(file).Note(); err != nil || !reflect.DeepEqual(note, Note{Version: 1}) {
		t.Errorf("forgotten, and there is %+v, %v", note, err)
	}
}

func TestDamagedNoteIsTold(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "boot.json")
	write := func(content string) func() error {
		return func() error { return os.WriteFile(file, []byte(content), 0o600) }
	}
	for name, damage := range map[string]func() error{
		"half":               write(`{"version":1,"services":[{"na`),
		"empty":              write(""),
		"of another kind":    write(`{"version":1,"facade":null,"servcies":[]}`),
		"of another time":    write(`{"version":2,"facade":null,"services":[]}`),
		"a FIFO":             func() error { return unix.Mkfifo(file, 0o600) },
		"a loop":             func() error { return os.Symlink("boot.json", file) },
		"of unlikely length": func() error { return os.WriteFile(file, make([]byte, notesLimit+1), 0o600) },
	} {
		must(t, os.RemoveAll(file), damage())
		notes := OpenNotes(file)
		note, err := notes.Note()
		if !reflect.DeepEqual(note, Note{Version: 1}) || err == nil ||
			!strings.HasPrefix(
				err.Error(),
				file+", which tells what ran before, cannot be read, so nothing of that is started again: ",
			) {
			t.Errorf("%s: %+v, %v", name, note, err)
		}
		// The next change makes it anew, though it may change nothing.
		must(t, notes.Forget())
		if _, err := OpenNotes(file).Note(); err != nil {
			t.Errorf("%s, and written again: %v", name, err)
		}
	}
	// A folder in its place is left; it is told by name.
	must(t, os.RemoveAll(file), os.Mkdir(file, 0o700))
	if err := OpenNotes(file).Forget(); err == nil ||
		!strings.Contains(err.Error(), file+" is a folder where a file is to be written") {
		t.Errorf("a folder: %v", err)
	}
}

// A change that cannot be written is none.
func TestNoteThatCannotBeWritten(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "boot.json")
	notes := OpenNotes(file)
	must(t, notes.put(Service{Name: "a"}), os.Remove(file), os.Mkdir(file, 0o700))
	if err := notes.put(Service{Name: "b"}); err == nil {
		t.Error("no error")
	}
	if note, err := notes.Note(); err != nil || len(note.Services) != 1 {
		t.Errorf("noted are %+v, %v", note, err)
	}
	must(t, os.Remove(file), notes.put(Service{Name: "b"}))
	if note, err := OpenNotes(file).Note(); err != nil || len(note.Services) != 2 {
		t.Errorf("noted are %+v, %v", note, err)
	}
}
