package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOutputThatADiskHasNoRoomFor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	must(t, os.Symlink("/dev/full", file))
	o := newOutput(file)
	defer o.close()
	say := func(text string) {
		if n, err := o.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("%.10q: %d, %v", text, n, err)
		}
	}
	say(strings.Repeat("x", keptLimit))
	say("why\n")
	if got := o.unwritten(); len(got) != keptLimit || !strings.HasSuffix(got, "xwhy\n") {
		t.Errorf("got %d bytes that end with %q", len(got), got[max(0, len(got)-10):])
	}
	o.close() // it would go on with the file that it has
	must(t, os.Remove(file))
	say("there is room\n")
	if got := read(file); !strings.HasSuffix(got, "xwhy\nthere is room\n") || o.unwritten() != "" {
		t.Errorf("the file ends with %q, %q is not written", got[max(0, len(got)-30):], o.unwritten())
	}
}

func TestAwaitTellsWhatTheLogDoesNot(t *testing.T) {
	service := shell(t, "echo why it is so; exit 1")
	must(t, os.WriteFile(service.Log, nil, 0o600))
	service.Log = filepath.Join(service.Log, "log") // below a file
	put(t, service)
	client := serve(t, controlHandler(supervisor, supervisor.notes))
	outcome, err := client.Await(service.Name, Awaited{File: "/nowhere/file", Seconds: 3600, Attempts: 2})
	if err != nil || !strings.Contains(outcome.Log, "why it is so") {
		t.Errorf("got %+v, %v", outcome, err)
	}
}
