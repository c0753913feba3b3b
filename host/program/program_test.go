package program

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const patience = 30 * time.Second

func shell(script string, args ...string) Command {
	return Command{Path: "/bin/sh", Args: append([]string{"-c", script, "sh"}, args...), Timeout: patience}
}

func TestItsWordsAreInTheError(t *testing.T) {
	_, err := Run(t.Context(), shell(`echo "no such platform: $1" >&2; exit 3`, "a b"))
	failed, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	want := "exit code 3: /bin/sh -c 'echo \"no such platform: $1\" >&2; exit 3' sh 'a b'\n    no such platform: a b"
	if err.Error() != want {
		t.Errorf("got %q", err)
	}
	if !errors.As(err, new(*exec.ExitError)) || failed.Output != "no such platform: a b" {
		t.Errorf("got %+v", failed)
	}
	_, err = Run(t.Context(), shell("kill -9 $$"))
	if err == nil || !strings.HasPrefix(err.Error(), "ended by killed: /bin/sh") {
		t.Errorf("got %v", err)
	}
	_, err = Run(t.Context(), Command{Path: "/nonexistent/runsc", Timeout: patience})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/runsc") {
		t.Errorf("got %v", err)
	}
}

func TestItReadsAndPrints(t *testing.T) {
	c := shell("cat; echo done >&2; env")
	c.Input = strings.Repeat("line\n", 3)
	t.Setenv("SECRET", "not to be passed on")
	output, err := Run(t.Context(), c)
	if err != nil || !strings.HasPrefix(output, "line\nline\nline\ndone\n") || strings.Contains(output, "SECRET") {
		t.Errorf("got %q, %v", output, err)
	}
	// One that does not read is no harm.
	c = shell("exit 0")
	c.Input = strings.Repeat("x", 1<<20)
	if _, err := Run(t.Context(), c); err != nil {
		t.Error(err)
	}
}

func TestItNeverEnds(t *testing.T) {
	c := shell("echo begun; trap '' TERM; sleep 1000 & wait; sleep 1000")
	c.Timeout = 100 * time.Millisecond
	_, err := Run(t.Context(), c)
	if err == nil || !strings.HasPrefix(err.Error(), "it took longer than 100ms: /bin/sh") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the sandbox has ended"))
	if _, err := Run(ctx, shell("sleep 1000")); err == nil || !strings.Contains(err.Error(), "the sandbox has ended") {
		t.Errorf("got %v", err)
	}
}

func TestItPrintsForEver(t *testing.T) {
	_, err := Run(t.Context(), shell("yes"))
	if err == nil || !strings.HasPrefix(err.Error(), "it printed more than 1048576 bytes: /bin/sh") {
		t.Fatalf("got %.200v", err)
	}
	if len(err.Error()) > 2*keptOutput {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
	_, err = Run(t.Context(), shell("head -c 900000 /dev/zero; exit 1")) // without a line's end
	if err == nil || len(err.Error()) > 2*keptOutput || !strings.Contains(err.Error(), "????") {
		t.Errorf("got %.200v", err)
	}
}

// A process that it leaves behind may keep its output open for ever, as one in a sandbox does.
func TestWhatItLeavesIsNotWaitedFor(t *testing.T) {
	end := filepath.Join(t.TempDir(), "end")
	for want, script := range map[string]bool{
		`echo well; (trap '' HUP; while [ ! -e "$1" ]; do sleep 0.1; done) &`:         true,
		`echo badly; (trap '' HUP; while [ ! -e "$1" ]; do sleep 0.1; done) & exit 4`: false,
	} {
		_, err := Run(t.Context(), shell(want, end))
		if (err == nil) != script {
			t.Errorf("%s: %v", want, err)
		}
	}
	os.WriteFile(end, nil, 0o600)
}

func TestItPrintsIntoAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(name, []byte("what was there before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c := shell("echo one; echo two >&2; exit 5")
	c.Output = file
	_, err = Run(t.Context(), c)
	if err == nil || !strings.HasSuffix(err.Error(), "\n    one\n    two") || strings.Contains(err.Error(), "before") {
		t.Errorf("got %v", err)
	}
	text, _ := os.ReadFile(name)
	if string(text) != "what was there before\none\ntwo\n" {
		t.Errorf("the file has %q", text)
	}
	// A process that is left behind may go on to print there.
	c = shell("yes >&2")
	c.Output, c.Timeout = file, 200*time.Millisecond
	if _, err = Run(t.Context(), c); err == nil || len(err.Error()) > 2*keptOutput {
		t.Errorf("got %.100v", err)
	}
}

func TestTextIsHarmless(t *testing.T) {
	if got := Text("a\x1b[31mb\r\x07\xffc\u202ed\n\te"); got != "a?[31mb???c?d\n\te" {
		t.Errorf("got %q", got)
	}
	if got := LastLines("1\n2\n3\n\n", 2); got != "2\n3" {
		t.Errorf("got %q", got)
	}
}
