// Package files reads and writes files for somebody who does not trust what lies there: a link, a FIFO, a device or a
// folder in place of a file is told and never waited for, and what is written is whole or absent.
package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// CheckPath refuses a path that could mean another place than it says.
func CheckPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("path %q: an absolute path is needed, without . or .. or a slash at its end", path)
	}
	return nil
}

// Mode reads the mode of a file or folder.
func Mode(octal string, highest uint32) (uint32, error) {
	mode, err := strconv.ParseUint(octal, 8, 32)
	if err != nil || mode > uint64(highest) {
		return 0, fmt.Errorf("mode %q: an octal number from 0 to %o is needed", octal, highest)
	}
	return uint32(mode), nil
}

// IsAbsent tells that there is nothing at a path: nothing of its name, or a file where one of its folders would be.
func IsAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// Kind names what a file is, for messages.
func Kind(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a regular file"
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeSymlink != 0:
		return "a link"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "something that is no file"
}

// MakeFolders makes a folder, and those above it that are missing, with this mode, whatever the umask. It changes none
// that is there.
func MakeFolders(path string, mode uint32) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is %s where a folder is needed; remove it or move it away", path, Kind(info.Mode()))
	}
	if target, notLink := os.Readlink(path); notLink == nil {
		return fmt.Errorf("%s is a link that leads nowhere (to %s) where a folder is needed; remove it", path, target)
	}
	if !IsAbsent(err) && !errors.Is(err, unix.ELOOP) {
		return err
	}
	if path == filepath.Dir(path) {
		return err
	}
	if err := MakeFolders(filepath.Dir(path), mode); err != nil {
		return err
	}
	if err := os.Mkdir(path, fs.FileMode(mode)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	} else if err != nil { // somebody else made it at the same time
		return MakeFolders(path, mode)
	}
	return unix.Chmod(path, mode)
}

// EnsureFolder makes a folder with this mode, whatever the umask, and gives one that is there the mode; it tells
// whether it did anything. A link that leads to no folder, a FIFO, a socket or a device makes way. A regular file does
// not, since it may be somebody's.
func EnsureFolder(path string, mode uint32) (changed bool, err error) {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		if info.Sys().(*syscall.Stat_t).Mode&0o7777 == mode {
			return false, nil
		}
		return true, unix.Chmod(path, mode)
	}
	info, err = os.Lstat(path)
	if err == nil && info.Mode().IsRegular() {
		return false, fmt.Errorf("%s is a regular file where a folder is needed; remove it or move it away", path)
	}
	if err == nil {
		if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
			return false, fmt.Errorf(
				"%s is %s where a folder is needed, and cannot be removed: %w",
				path,
				Kind(info.Mode()),
				err,
			)
		}
	}
	if err := MakeFolders(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	return true, unix.Chmod(path, mode)
}
