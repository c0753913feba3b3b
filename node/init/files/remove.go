package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// liftDepth is how many folders deep a tree is walked at once; each takes a descriptor. Deeper folders are moved up
// first. os.RemoveAll has no such bound: it fails where a tree is deeper than the process may have descriptors.
const liftDepth = 100

// Remove removes files, and folders with all that is in them. It follows no link but those in the path of a folder
// above, and enters no other file system. One that is not there is no error.
func Remove(paths []string) error {
	problems := []error{checkPaths(paths)}
	for _, path := range paths {
		if path == "/" {
			problems = append(problems, errors.New("path \"/\": everything is not removed"))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	for _, path := range paths {
		problems = append(problems, removeAll(path))
	}
	return errors.Join(problems...)
}

func removeAll(path string) error {
	err := unix.Unlink(path)
	if err == nil || IsAbsent(err) {
		return nil
	}
	if !isFolder(unix.AT_FDCWD, path, err) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := refuseMounts(path); err != nil {
		return err
	}
	r := remover{}
	if err := r.folder(unix.AT_FDCWD, path, 0); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// refuseMounts keeps what somebody has mounted from being taken for a part of a tree: its files lie elsewhere, and may
// be anybody's. The kernel would refuse it only when everything in there is gone.
func refuseMounts(path string) error {
	real, err := resolved(path)
	if IsAbsent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return err
	}
	var targets []string
	for _, mount := range mounts {
		targets = append(targets, mount.Mountpoint)
	}
	if len(targets) > 0 {
		return fmt.Errorf("%s is not removed, since file systems are mounted there: %s; unmount them",
			path, strings.Join(targets, ", "))
	}
	return nil
}

// remover empties one tree.
type remover struct {
	top    *os.File // takes folders that lie too deep
	lifted int      // names them
}

// folder removes the folder of this name in another one.
func (r *remover) folder(parent int, name string, depth int) error {
	descriptor, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	folder := os.NewFile(uintptr(descriptor), name)
	defer folder.Close()
	if depth == 0 {
		r.top = folder
	}
	for {
		// Entries may be added and taken away meanwhile, so it is read from its beginning until nothing is left.
		if _, err := folder.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := folder.Readdirnames(1024)
		if err != nil && err != io.EOF {
			return err
		}
		if len(names) == 0 {
			break
		}
		for _, entry := range names {
			if err := r.entry(descriptor, entry, depth); err != nil {
				return err
			}
		}
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (r *remover) entry(folder int, name string, depth int) error {
	err := unix.Unlinkat(folder, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if !isFolder(folder, name, err) {
		return fmt.Errorf("%s: %w", name, err)
	}
	if depth >= liftDepth && r.lift(folder, name) == nil {
		return nil
	}
	return r.folder(folder, name, depth+1)
}

// lift moves a folder into the top one, which is read again until nothing is left in it.
func (r *remover) lift(folder int, name string) error {
	for {
		r.lifted++
		err := unix.Renameat(folder, name, int(r.top.Fd()), fmt.Sprintf(".removed-%d", r.lifted))
		if err != unix.ENOTEMPTY && err != unix.EEXIST && err != unix.ENOTDIR && err != unix.EISDIR {
			return err
		}
	}
}

// isFolder tells whether unlink was refused because it was asked for a folder: by Linux' word, or by POSIX', which is
// also that for a file that nobody may remove.
func isFolder(parent int, name string, refusal error) bool {
	if refusal != unix.EPERM {
		return refusal == unix.EISDIR
	}
	var stat unix.Stat_t
	err := unix.Fstatat(parent, name, &stat, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && stat.Mode&unix.S_IFMT == unix.S_IFDIR
}
