package terminal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"
)

// asProgram is an environment variable that has this file be the program.
const asProgram = "GVISOR_K3S_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "" {
		m.Run()
		return
	}
	err := Main(os.Args[1:])
	var exit ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// desk is where a user sits: a terminal, its keyboard, and what is to be read on its screen.
type desk struct {
	*testing.T
	keyboard, terminal *os.File

	mutex sync.Mutex
	text  bytes.Buffer
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	keyboard, terminal, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{T: t, keyboard: keyboard, terminal: terminal}
	d.resize(33, 111)
	read := make(chan struct{})
	go func() {
		defer close(read)
		part := make([]byte, 4096)
		for {
			n, err := keyboard.Read(part)
			d.mutex.Lock()
			d.text.Write(part[:n])
			d.mutex.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		terminal.Close()
		keyboard.Close()
		<-read
	})
	return d
}

func (d *desk) resize(rows, columns uint16) {
	d.Helper()
	if err := pty.Setsize(d.keyboard, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		d.Fatal(err)
	}
}

// run has a shell run a script on this desk's terminal, through the subcommand.
func (d *desk) run(script string) *exec.Cmd { return d.start("sh", "-c", script) }

func (d *desk) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = d.terminal, d.terminal, d.terminal
	return cmd
}

func (d *desk) start(args ...string) *exec.Cmd {
	d.Helper()
	cmd := d.command(args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		d.Fatal(err)
	}
	return cmd
}

func (d *desk) screen() string {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.text.String()
}

func (d *desk) waitFor(text string) {
	d.Helper()
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(d.screen(), text) {
		if time.Now().After(deadline) {
			d.Fatalf("%q is not on the screen:\n%s", text, d.screen())
		}
		time.Sleep(time.Millisecond)
	}
}

// code is that with which a program ends.
func (d *desk) code(cmd *exec.Cmd) int {
	d.Helper()
	late := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer late.Stop()
	cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

func (d *desk) typed(text string) {
	d.Helper()
	if _, err := d.keyboard.WriteString(text); err != nil {
		d.Fatal(err)
	}
}

func TestATerminalOfItsOwn(t *testing.T) {
	d := newDesk(t)
	cmd := d.run(`echo is $(tty); stty size
		until [ "$(stty size)" = "44 99" ]; do sleep 0.01; done
		read -r line
		echo "<$line>"`)
	d.waitFor("33 111\r\n")
	if strings.Contains(d.screen(), "is "+d.terminal.Name()+"\r\n") {
		t.Error("it got the user's")
	}
	d.resize(44, 99)
	d.typed("a word\r")
	d.waitFor("<a word>\r\n")
	if code := d.code(cmd); code != 0 {
		t.Error(code)
	}
}

func TestEnds(t *testing.T) {
	d := newDesk(t)
	for script, want := range map[string]int{"exit 7": 7, "kill -TERM $$": 128 + 15} {
		if code := d.code(d.run(script)); code != want {
			t.Errorf("%s: %d, want %d", script, code, want)
		}
	}
	cmd := d.run("echo waits; exec sleep 1000")
	d.waitFor("waits")
	d.typed("\x03")
	if code := d.code(cmd); code != 128+2 {
		t.Errorf("Ctrl-C: %d", code)
	}
	for _, c := range []struct {
		script, word string
		signal       syscall.Signal
		code         int
	}{
		{"echo also; exec sleep 1000", "also", syscall.SIGTERM, 128 + 15},
		{"trap '' HUP TERM; echo stubborn; while :; do sleep 0.1; done", "stubborn", syscall.SIGHUP, 128 + 9},
	} {
		cmd := d.run(c.script)
		d.waitFor(c.word)
		if err := cmd.Process.Signal(c.signal); err != nil {
			t.Fatal(err)
		}
		if code := d.code(cmd); code != c.code {
			t.Errorf("%v: %d, want %d", c.signal, code, c.code)
		}
	}
	if code := d.code(d.start("/nothing")); code != 1 {
		t.Errorf("what is not there: %d", code)
	}
	d.waitFor("/nothing: no such file")
}

// What a program leaves behind may hold the terminal that it got, and neither keeps it from ending, nor reads on.
func TestNothingIsHeld(t *testing.T) {
	d := newDesk(t)
	before, err := term.GetState(int(d.terminal.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	left := t.TempDir() + "/left"
	// Without a descriptor of its own, what is started in the background reads nothing.
	script := `exec 3<&0
		(trap '' HUP; readlink /proc/self/fd/3; cat <&3; echo gone) > ` + left + ` 2>/dev/null &
		until [ -s ` + left + ` ]; do sleep 0.01; done
		yes line | head -10000
		echo the end`
	if code := d.code(d.run(script)); code != 0 {
		t.Error(code)
	}
	d.waitFor("the end\r\n")
	if lines := strings.Count(d.screen(), "line\r\n"); lines != 10000 {
		t.Errorf("%d lines of 10000", lines)
	}
	after, err := term.GetState(int(d.terminal.Fd()))
	if err != nil || *after != *before {
		t.Errorf("the terminal's mode was %v, is %v: %v", before, after, err)
	}
	d.typed("a secret\r")
	deadline := time.Now().Add(time.Minute)
	for {
		text, err := os.ReadFile(left)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "secret") {
			t.Fatal("what it has left reads what is typed")
		}
		if strings.HasPrefix(string(text), "/dev/pts/") && strings.HasSuffix(string(text), "gone\n") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("what it has left still has a terminal: %q", text)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	d := newDesk(t)
	for _, end := range []string{"input", "output"} {
		var stderr strings.Builder
		cmd := d.command("true")
		cmd.Stderr = &stderr
		if end == "input" {
			cmd.Stdin = nil
		} else {
			cmd.Stdout = nil
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if code := d.code(cmd); code != 1 || !strings.Contains(stderr.String(), "must be a terminal") {
			t.Errorf("standard %s: it ended with %d: %s", end, code, stderr.String())
		}
	}
}

func TestErrorsMayGoElsewhere(t *testing.T) {
	d := newDesk(t)
	var stderr strings.Builder
	cmd := d.command("sh", "-c", "test -t 0 && test -t 1 && echo shown; echo noted >&2")
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if code := d.code(cmd); code != 0 || stderr.String() != "noted\n" {
		t.Errorf("it ended with %d: %s", code, stderr.String())
	}
	d.waitFor("shown\r\n")
}
