package files

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/usage"
)

// Remove is the subcommand: remove PATH removes a folder with all that is in it. That it is not there is no error.
func Remove(args []string) error {
	places, err := parse(flag.NewFlagSet("remove", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	return remove(places[0])
}

// remove follows no link and crosses no mount. Folders are made empty where they are, and what folders they have is
// moved up first: so neither the depth nor the length of a path matters, and no more than two folders are open.
func remove(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
		return usage.Wrong("%q: the absolute path of what is to be removed is needed", path)
	}
	parentPath, err := filepath.EvalSymlinks(filepath.Dir(filepath.Clean(path)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	path = filepath.Join(parentPath, filepath.Base(path))
	if err := refuseMounts(path); err != nil {
		return err
	}
	parent, err := unix.Open(parentPath, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: parentPath, Err: err}
	}
	defer unix.Close(parent)
	if err := removeAt(parent, filepath.Base(path)); err != nil {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	return nil
}

// refuseMounts makes sure of it before anything is removed.
func refuseMounts(path string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		return fmt.Errorf("%s is not removed: something is mounted at %s (%s); take it off (umount) first", path,
			mount.Mountpoint, mount.FSType)
	}
	return nil
}

// removeAt removes what has a name in a folder.
func removeAt(parent int, name string) error {
	err := unlink(parent, name)
	if err != unix.ENOTEMPTY {
		return pathError("remove", name, err)
	}
	top, err := openFolder(parent, name)
	if err != nil {
		return err
	}
	defer top.Close()
	moved := 0
	for {
		found, err := each(top, func(child string) error {
			err := unlink(fd(top), child)
			if err != unix.ENOTEMPTY {
				return pathError("remove", child, err)
			}
			return flatten(top, child, &moved)
		})
		if err != nil {
			return err
		}
		if found == 0 {
			return pathError("remove", name, unlink(parent, name))
		}
	}
}

// flatten removes a folder, after what folders it has were moved to the top.
func flatten(top *os.File, name string, moved *int) error {
	folder, err := openFolder(fd(top), name)
	if err != nil {
		return err
	}
	defer folder.Close()
	for {
		found, err := each(folder, func(child string) error {
			err := unlink(fd(folder), child)
			if err != unix.ENOTEMPTY {
				return pathError("remove", child, err)
			}
			return moveUp(folder, child, top, moved)
		})
		if err != nil {
			return err
		}
		if found == 0 {
			return pathError("remove", name, unlink(fd(top), name))
		}
	}
}

// moveUp moves a folder to the top, under a name that nothing has there.
func moveUp(from *os.File, name string, top *os.File, moved *int) error {
	for {
		*moved++
		to := "removed-" + strconv.Itoa(*moved)
		err := unix.Renameat2(fd(from), name, fd(top), to, unix.RENAME_NOREPLACE)
		if err != unix.EEXIST {
			return pathError("move", name, err)
		}
	}
}

// unlink removes a file or an empty folder. That it is not there is no error; a folder that is not empty is ENOTEMPTY.
func unlink(folder int, name string) error {
	err := unix.Unlinkat(folder, name, 0)
	if err == unix.EISDIR {
		err = unix.Unlinkat(folder, name, unix.AT_REMOVEDIR)
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// each does something with every name in a folder, and tells how many there were.
func each(folder *os.File, do func(name string) error) (int, error) {
	if _, err := folder.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	found := 0
	for {
		names, err := folder.Readdirnames(1000)
		for _, name := range names {
			if err := do(name); err != nil {
				return found, err
			}
		}
		found += len(names)
		if err == io.EOF {
			return found, nil
		}
		if err != nil {
			return found, err
		}
	}
}

// openFolder opens a folder in another one, and no link. Nor can something be mounted there: what that is on cannot be
// unlinked, which was tried before.
func openFolder(parent int, name string) (*os.File, error) {
	opened, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return os.NewFile(uintptr(opened), name), nil
}

func fd(file *os.File) int { return int(file.Fd()) }

// pathError makes a name that a sandbox has given harmless.
func pathError(what, name string, err error) error {
	if err == nil {
		return nil
	}
	err = &fs.PathError{Op: what, Path: strconv.Quote(name), Err: err}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: something is mounted there; take it off (umount) first", err)
	}
	return err
}
