package egress

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	landlocked "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

const (
	// What is open beside connections, each of which is a socket of the host's.
	otherFiles = udpTotal + udpEnding + dnsQuestions + 1024
	// The most that all flows can have buffered is less; see budget. It is what holds where a sandbox's memory is not
	// limited, and ends the process, as the host's kernel does where it is.
	dataLimit = 3 << 30
	// The garbage collector does what it can from here on.
	dataGoal = 2 << 30
	// Who owns nothing.
	nobody = 65534
)

// bound limits what the process can take of the host, and takes the connections that there may be from what it gets.
func bound(o *options) error {
	debug.SetGCPercent(50) // as what runs in the sandbox: memory is what that is short of
	debug.SetMemoryLimit(dataGoal)
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: dataLimit, Max: dataLimit}); err != nil {
		return fmt.Errorf("limiting the memory to %d bytes: %w", dataLimit, err)
	}
	files := unix.Rlimit{Cur: tcpTotal + otherFiles, Max: tcpTotal + otherFiles}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		return nil
	}
	// Root alone may not raise the limit where it is without CAP_SYS_RESOURCE, as in containers.
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	files.Cur = files.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("raising the number of open files to %d: %w", files.Max, err)
	}
	room := int(min(files.Max, tcpTotal+otherFiles)) - otherFiles
	if room < 256 {
		return fmt.Errorf("the host lets this process open %d files, and it needs %d: raise the limit (ulimit -n)",
			files.Max, otherFiles+256)
	}
	if room < o.tcp.total {
		log.Printf("the host lets this process open %d files: %d connections are let out at once, in place of %d",
			files.Max, room, o.tcp.total)
		o.tcp.total = room
	}
	return nil
}

// drop gives up root, and what else a process of nobody's could do. Sockets of its own are all that it takes from now
// on, and resolv.conf, which is read for each question.
func drop(o options) error {
	runtime.LockOSThread() // main's, which stays: what is asked for below is for a thread
	if os.Geteuid() == 0 {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("giving up root's groups: %w", err)
		}
		if err := syscall.Setgid(nobody); err != nil {
			return fmt.Errorf("giving up root's group: %w", err)
		}
		if err := syscall.Setuid(nobody); err != nil {
			return fmt.Errorf("giving up root: %w", err)
		}
	}
	if err := landlocked.AllThreadsPrctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up to gain rights by programs: %w", err)
	}
	if err := enclose(o.resolvConf); err != nil {
		return fmt.Errorf("giving up files (Landlock): %w", err)
	}
	if _, err := os.ReadFile(o.resolvConf); err != nil {
		log.Printf("names cannot be looked up: %v; it has to be readable for everybody", err)
	}
	if o.parent == 0 {
		return nil
	}
	// What was asked for when this process was started is forgotten with its owner (commit_creds in the kernel).
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if os.Getppid() != o.parent {
		return fmt.Errorf("the process %d, with which this one ends, has ended", o.parent)
	}
	return nil
}

// enclose leaves no file to the process but those in the folders in which resolv.conf may come to lie, to be read; no
// port of TCP to listen on; and no other process to send signals to. A kernel that has none of this, or only some,
// has it as far as it goes.
func enclose(resolvConf string) error {
	folders := []string{filepath.Dir(resolvConf), "/run"} // where links from /etc lead; see systemd-resolved(8)
	if target, err := filepath.EvalSymlinks(resolvConf); err == nil {
		folders = append(folders, filepath.Dir(target))
	}
	config := landlock.Config{
		HandledAccessFS:  landlock.V5.HandledAccessFS,
		HandledAccessNet: landlocked.AccessNetBindTCP,
		Scoped:           landlock.V6.Scoped,
	}
	read := landlock.AccessFSSet(landlocked.AccessFSReadFile | landlocked.AccessFSReadDir)
	return config.BestEffort().Restrict(landlock.PathAccess(read, folders...).IgnoreIfMissing())
}
