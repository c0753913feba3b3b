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

// grace is what a program has to end by itself once its terminal is gone.
const grace = 5 * time.Second

// Main is the subcommand: terminal PROGRAM ARGUMENT… runs a program on a terminal of its own, and passes on what goes
// through that until the program ends. Standard input and output must be the user's terminal.
func Main(args []string) error {
	if len(args) == 0 {
		return usage.Wrong("the program that is to get a terminal is missing")
	}
	if !isTerminal(os.Stdin) || !isTerminal(os.Stdout) {
		return errors.New("standard input and output must be a terminal")
	}
	master, slave, err := open()
	if err != nil {
		return fmt.Errorf("making a terminal: %w", err)
	}
	defer master.Close()
	defer slave.Close()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGWINCH, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	if err := pty.InheritSize(os.Stdout, master); err != nil {
		return fmt.Errorf("the size of the terminal: %w", err)
	}
	// Keys are to mean something to the program's terminal only.
	mode, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return fmt.Errorf("the terminal's mode: %w", err)
	}
	defer term.Restore(int(os.Stdin.Fd()), mode)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, os.Stderr
	if isTerminal(os.Stderr) {
		cmd.Stderr = slave
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	slave.Close()
	return ending(pass(cmd, master, signals))
}

func isTerminal(file *os.File) bool { return term.IsTerminal(int(file.Fd())) }

// open makes a terminal. The library has its own end of it block, and what blocks knows no deadline.
func open() (master, slave *os.File, err error) {
	blocking, slave, err := pty.Open()
	if err != nil {
		return nil, nil, err
	}
	defer blocking.Close()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		slave.Close()
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), blocking.Name()), slave, nil
}

// pass passes on keys, output, sizes and signals until the program ends, and tells how that was.
func pass(cmd *exec.Cmd, master *os.File, signals chan os.Signal) error {
	go func() {
		io.Copy(master, os.Stdin)
		signals <- unix.SIGHUP // nobody sits there any more
	}()
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		io.Copy(os.Stdout, master)
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case received := <-signals:
			switch received {
			case unix.SIGWINCH:
				pty.InheritSize(os.Stdout, master)
				continue
			case unix.SIGHUP, unix.SIGTERM:
				time.AfterFunc(grace, func() { cmd.Process.Kill() })
			}
			cmd.Process.Signal(received)
		case err := <-ended:
			// What it has started may hold its terminal, and so that does not end with it.
			master.SetReadDeadline(time.Now())
			<-passed
			return errors.Join(passRest(os.Stdout, master), err)
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
