// Package terminal keeps the user's terminal from a sandbox. What holds a terminal can read what is typed there, write
// to it, and keep it for as long as it likes. So a program in a sandbox gets one that is made for it, and ends with it.
package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"gvisor-k3s/host/usage"
)

// What of its output may be left when a program has ended. The kernel keeps less; what it has started may go on.
const mostLeft = 1 << 20

// ExitError is how the program ended, which has said itself why.
type ExitError struct {
	// Code is its exit code, or 128 and the number of the signal that has ended it, as in shells.
	Code int
}

func (e ExitError) Error() string { return fmt.Sprintf("it ended with %d", e.Code) }

// Main is the subcommand: terminal PROGRAM ARGUMENT… runs a program. Where standard input, output or error is a
// terminal, it gets another in its place, and what goes through that is passed on until it ends.
func Main(args []string) error {
	if len(args) == 0 {
		return usage.Wrong("the program that is to get a terminal is missing")
	}
	cmd := exec.Command(args[0], args[1:]...)
	user := [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	master, slave, err := pty.Open()
	if err != nil {
		return fmt.Errorf("making a terminal: %w", err)
	}
	defer master.Close()
	defer slave.Close()
	var screen *os.File
	ends := user
	for i, end := range user {
		if term.IsTerminal(int(end.Fd())) {
			screen, ends[i] = end, slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: i}
		}
	}
	if screen == nil {
		return errors.New("neither standard input nor output nor error is a terminal")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = ends[0], ends[1], ends[2]

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGWINCH, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	defer signal.Stop(signals)
	if err := pty.InheritSize(screen, master); err != nil {
		return fmt.Errorf("the size of the terminal: %w", err)
	}
	// Of the two terminals, one edits what goes through them: the program's, where keys come through it too.
	passing := slave
	if ends[0] == slave {
		passing = user[0]
	}
	mode, err := term.MakeRaw(int(passing.Fd()))
	if err != nil {
		return fmt.Errorf("the terminal's mode: %w", err)
	}
	defer term.Restore(int(passing.Fd()), mode)
	if err := cmd.Start(); err != nil {
		return err
	}
	if ends[0] == slave {
		go io.Copy(master, user[0])
	}
	slave.Close()
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		io.Copy(screen, master)
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case received := <-signals:
			if received == unix.SIGWINCH {
				pty.InheritSize(screen, master)
			} else {
				cmd.Process.Signal(received)
			}
		case err := <-ended:
			// What it has started may hold its terminal, and so that does not end with it.
			master.SetReadDeadline(time.Now())
			<-passed
			if err := passRest(screen, master); err != nil {
				return err
			}
			return ending(err)
		}
	}
}

// passRest passes on what is in the terminal already.
func passRest(screen io.Writer, master *os.File) error {
	if err := master.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	connection, err := master.SyscallConn()
	if err != nil {
		return err
	}
	buffer := make([]byte, mostLeft)
	count := 0
	err = connection.Read(func(fd uintptr) bool {
		for count < len(buffer) {
			n, err := unix.Read(int(fd), buffer[count:])
			if err == unix.EINTR {
				continue
			}
			if n <= 0 { // EIO where nobody holds it any more, EAGAIN where somebody does
				break
			}
			count += n
		}
		return true
	})
	if err != nil {
		return err
	}
	_, err = screen.Write(buffer[:count])
	return err
}

func ending(err error) error {
	var exited *exec.ExitError
	if !errors.As(err, &exited) {
		return err
	}
	if status, ok := exited.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return ExitError{128 + int(status.Signal())}
	}
	return ExitError{exited.ExitCode()}
}
