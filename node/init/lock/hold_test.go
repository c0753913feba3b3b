package lock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func read(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// somebody holds a lock, or waits for one, at the other end of a connection.
type somebody struct {
	t      *testing.T
	input  *io.PipeWriter
	output *bufio.Reader
	ended  chan error
}

func hold(t *testing.T, path string, shared bool) *somebody {
	t.Helper()
	inputReader, input := io.Pipe()
	output, outputWriter := io.Pipe()
	s := &somebody{t, input, bufio.NewReader(output), make(chan error, 1)}
	go func() {
		err := Hold(path, shared, inputReader, outputWriter)
		outputWriter.Close()
		s.ended <- err
	}()
	t.Cleanup(func() { input.Close() })
	return s
}

func (s *somebody) says(line string) *somebody {
	s.t.Helper()
	_, err := io.WriteString(s.input, line+"\n")
	must(s.t, err)
	return s
}

// hears wants this line next; it comes only when it is due, so nothing is timed.
func (s *somebody) hears(line string) *somebody {
	s.t.Helper()
	if got, err := s.output.ReadString('\n'); got != line+"\n" {
		s.t.Fatalf("heard %q, %v, want %q", got, err, line)
	}
	return s
}

func (s *somebody) leaves() error {
	s.t.Helper()
	s.input.Close()
	return <-s.ended
}

func TestHoldOneAfterAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "locks", "dev")
	defer unix.Umask(unix.Umask(0))
	first := hold(t, path, false).says("up of ann, process 7").hears("held")
	if got := read(path); got != "up of ann, process 7\n" {
		t.Errorf("the file says %q", got)
	}
	for name, mode := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): fs.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	second := hold(t, path, false).says("status of bob").hears("waiting for up of ann, process 7")
	must(t, first.leaves())
	second.hears("held")
	if got := read(path); got != "status of bob\n" {
		t.Errorf("the file says %q", got)
	}
	must(t, second.leaves())
	if got := read(path); got != "" {
		t.Errorf("nobody has the lock, and the file says %q", got)
	}
}

func TestHoldShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev")
	first := hold(t, path, true).says("first").hears("held")
	second := hold(t, path, true).says("second").hears("held")
	alone := hold(t, path, false).says("alone").hears("waiting for second")
	first.says("remove")
	must(t, first.leaves())
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file was removed, and others have the lock: %v", err)
	}
	must(t, second.leaves())
	alone.hears("held")
	if got := read(path); got != "alone\n" {
		t.Errorf("the file says %q", got)
	}
	must(t, alone.leaves())
}

// A file that was removed is nobody's lock any more: whoever waited for it takes the new one.
func TestHoldRemove(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "locks", "dev")
	first := hold(t, path, false).says("first").hears("held")
	second := hold(t, path, false).says("second").hears("waiting for first")
	first.says("remove")
	if _, err := os.Stat(path); err != nil {
		t.Errorf("removed before the lock goes: %v", err)
	}
	must(t, first.leaves())
	second.hears("held")
	if got := read(path); got != "second\n" {
		t.Errorf("the file says %q", got)
	}
	third := hold(t, path, false).says("third").hears("waiting for second")
	second.says("remove")
	must(t, second.leaves())
	third.hears("held").says("remove")
	must(t, third.leaves())
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// One that somebody else has put in its place is not removed.
func TestHoldRemovesItsOwnFileOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev")
	first := hold(t, path, false).says("first").hears("held")
	must(t, os.Remove(path))
	second := hold(t, path, false).says("second").hears("held")
	first.says("remove")
	must(t, first.leaves())
	if got := read(path); got != "second\n" {
		t.Errorf("the file says %q", got)
	}
	must(t, second.leaves())
}

func TestHoldKeepsOtherThingsInTheFolder(t *testing.T) {
	folder := t.TempDir()
	other := filepath.Join(folder, "locks", "other")
	must(t, os.Mkdir(filepath.Dir(other), 0o755), os.WriteFile(other, nil, 0o600))
	one := hold(t, filepath.Join(folder, "locks", "dev"), false).says("one").hears("held").says("remove")
	must(t, one.leaves())
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

// Who waits and goes away leaves nobody behind who would take the lock later.
func TestHoldEndsWithItsInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dev")
	first := hold(t, path, false).says("first").hears("held")
	second := hold(t, path, false).says("second").hears("waiting for first")
	if err := second.leaves(); err == nil ||
		err.Error() != "the input has ended, so nobody waits for the lock any more" {
		t.Errorf("got %v", err)
	}
	third := hold(t, path, false).says("third").hears("waiting for first").says("remove")
	if err := <-third.ended; err == nil ||
		err.Error() != `input "remove": nothing is understood before the lock is held` {
		t.Errorf("got %v", err)
	}
	must(t, first.leaves())
}

func TestHoldRefusesItsInput(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "dev")
	for _, line := range []string{"", "  ", "\x1b\a"} {
		if err := <-hold(t, path, false).says(line).ended; err == nil ||
			err.Error() != "the input's first line must say who takes the lock" {
			t.Errorf("%q: %v", line, err)
		}
	}
	if err := hold(t, path, false).leaves(); err == nil ||
		err.Error() != "the input's first line must say who takes the lock" {
		t.Errorf("no input: %v", err)
	}
	unknown := hold(t, path, false).says("who").hears("held").says("remov\x1be it")
	if err := <-unknown.ended; err == nil ||
		err.Error() != `input "remove it": only "remove" is understood; the lock is given back` {
		t.Errorf("got %v", err)
	}
	must(t, hold(t, path, false).says("who").hears("held").leaves())
	if err := Hold("dev", false, strings.NewReader("who\n"), io.Discard); err == nil ||
		!strings.Contains(err.Error(), "an absolute path is needed") {
		t.Errorf("got %v", err)
	}
}

// What somebody else put in place of the file, or into it, is told and does no harm.
func TestHoldHostilePlaces(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	must(t, unix.Mkfifo(at("fifo"), 0o666), os.Mkdir(at("folder"), 0o755), os.Symlink("victim", at("link")),
		os.WriteFile(at("victim"), []byte("the victim's"), 0o644), os.Symlink("loop", at("loop")))
	for name, problem := range map[string]string{
		"fifo":       "%[1]s is a FIFO where a lock's file is needed; remove it",
		"folder":     "%[1]s is a folder where a lock's file is needed; remove it",
		"link":       "%[1]s is a link where a lock's file is needed; remove it",
		"loop":       "%[1]s is a link where a lock's file is needed; remove it",
		"fifo/dev":   "%[2]s/fifo is a FIFO where a folder is needed; remove it",
		"loop/dev":   "%[2]s/loop is a link that leads nowhere (to loop) where a folder is needed; remove it",
		"victim/dev": "%[2]s/victim is a regular file where a folder is needed; remove it",
	} {
		err := Hold(at(name), false, strings.NewReader("who\n"), io.Discard)
		if want := fmt.Sprintf(problem+"%.0[2]s", at(name), folder); err == nil ||
			!strings.HasPrefix(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	if got := read(at("victim")); got != "the victim's" {
		t.Errorf("the victim holds %q", got)
	}
	// Somebody holds the lock, and has the file say what would be a command to a terminal, without an end.
	file, err := os.Create(at("dev"))
	must(t, err)
	defer file.Close()
	must(t, unix.Flock(int(file.Fd()), unix.LOCK_EX))
	for content, who := range map[string]string{
		"\x1b]0;evil\a\nheld\n":   "]0;evil",
		"":                        "somebody",
		"\nheld\n":                "somebody",
		strings.Repeat("é", 1000): strings.Repeat("é", 99),
	} {
		must(t, os.WriteFile(at("dev"), []byte(content), 0o600))
		waiting := hold(t, at("dev"), false).says("who").hears("waiting for " + who)
		waiting.leaves()
	}
}
