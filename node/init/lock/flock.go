// Package lock takes the locks of flock(2): on a file that somebody else has opened, or on one of a machine that is
// reached over SSH.
package lock

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrHeld says that somebody else has the lock.
var ErrHeld = errors.New("somebody else has the lock")

// Descriptor takes the lock of an open file. It stays when this process ends, since it belongs to the open file, which
// the caller shares.
func Descriptor(descriptor int, shared, wait bool) error {
	// The Go runtime has files open itself, such as its cgroup's, but none that a program that it starts would get.
	flags, err := unix.FcntlInt(uintptr(descriptor), unix.F_GETFD, 0)
	if err == nil && flags&unix.FD_CLOEXEC != 0 {
		err = unix.EBADF
	}
	var stat unix.Stat_t
	if err == nil {
		err = unix.Fstat(descriptor, &stat)
	}
	if err != nil {
		return fmt.Errorf("descriptor %d: %w; it must be the open file that is to be locked", descriptor, err)
	}
	if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return fmt.Errorf("descriptor %d is no file; it must be the open file that is to be locked", descriptor)
	}
	return flock(descriptor, shared, wait)
}

func flock(descriptor int, shared, wait bool) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		switch err := unix.Flock(descriptor, how); err {
		case unix.EINTR:
		case unix.EWOULDBLOCK:
			return ErrHeld
		case nil:
			return nil
		default:
			return fmt.Errorf("flock: %w", err)
		}
	}
}
