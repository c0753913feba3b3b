// Package program runs other programs, none of which is trusted to end, to say little, or to say nothing but text.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// What a program may print before it is ended. Those that are run here print a few lines.
	mostOutput = 1 << 20
	// What of it is kept, which is the end: there programs say what went wrong.
	keptOutput = 8 << 10
	keptLines  = 20
	// How long what a program has started may keep its standard output open, once it has ended itself.
	lingering = time.Second
)

// Command is a program that is to be run.
type Command struct {
	Path string
	Args []string
	// Input is what it reads.
	Input string
	// Output is a file that takes what it prints, so that what it starts may live on and print.
	Output *os.File
	// Timeout is when it is ended.
	Timeout time.Duration
}

// Error is a program that did not do well. It says what was run, how it ended, and the end of what it printed.
type Error struct {
	Command string
	Ending  string
	Output  string
	cause   error
}

func (e *Error) Error() string {
	text := e.Ending + ": " + e.Command
	if e.Output != "" {
		text += "\n    " + strings.ReplaceAll(e.Output, "\n", "\n    ")
	}
	return text
}

func (e *Error) Unwrap() error { return e.cause }

// Run runs a program to its end, and returns the end of what it printed.
func Run(ctx context.Context, c Command) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("it took longer than %s", c.Timeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir = "/"
	cmd.Env = environment()
	// A group of its own, so that what it has started ends with it, if it has to be ended.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = lingering
	if c.Input != "" {
		cmd.Stdin = strings.NewReader(c.Input)
	}
	printed := &tail{tooMuch: func() { stop(fmt.Errorf("it printed more than %d bytes", mostOutput)) }}
	var before int64
	if c.Output == nil {
		cmd.Stdout, cmd.Stderr = printed, printed
	} else {
		cmd.Stdout, cmd.Stderr = c.Output, c.Output
		before, _ = c.Output.Seek(0, io.SeekEnd)
	}
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) { // it has ended well, and something that it has started lives on
		err = nil
	}
	if c.Output != nil {
		readBack(printed, c.Output.Name(), before)
	}
	if err != nil {
		return printed.String(), &Error{quoted(c), ending(ctx, err), printed.String(), err}
	}
	return printed.String(), nil
}

// environment is what programs get. Whoever has started this process may have had secrets in its own.
func environment() []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return []string{"PATH=" + path, "HOME=/root"}
}

func ending(ctx context.Context, err error) string {
	if cause := context.Cause(ctx); cause != nil {
		return cause.Error()
	}
	ended, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return err.Error()
	}
	if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return fmt.Sprintf("ended by %s", status.Signal())
	}
	return fmt.Sprintf("exit code %d", ended.ExitCode())
}

// readBack reads the end of what a program has added to a file, and of what others have added meanwhile.
func readBack(into *tail, name string, before int64) {
	file, err := os.Open(name)
	if err != nil {
		return
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return
	}
	into.tooMuch = func() {}
	io.Copy(into, io.NewSectionReader(file, max(before, size-keptOutput), keptOutput))
}

// quoted is a command that can be pasted into a shell.
func quoted(c Command) string {
	words := append([]string{c.Path}, c.Args...)
	for i, word := range words {
		special := func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_./=:,@%+", r)
		}
		if word == "" || strings.ContainsFunc(word, special) {
			words[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
	}
	return Text(strings.Join(words, " "))
}

// tail keeps the end of what is written to it.
type tail struct {
	tooMuch func()

	mutex sync.Mutex
	all   int
	kept  []byte
}

func (t *tail) Write(data []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.all += len(data); t.all > mostOutput {
		t.tooMuch()
	}
	t.kept = append(t.kept, data[max(0, len(data)-keptOutput):]...)
	if extra := len(t.kept) - keptOutput; extra > 0 {
		t.kept = append(t.kept[:0], t.kept[extra:]...)
	}
	return len(data), nil
}

func (t *tail) String() string {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return LastLines(string(t.kept), keptLines)
}

// LastLines is the end of a text, made harmless.
func LastLines(text string, count int) string {
	lines := strings.Split(strings.TrimRight(Text(text), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

// Text makes what somebody else has printed harmless for a terminal: what would move its cursor or change its colours
// is shown as a question mark.
func Text(text string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
