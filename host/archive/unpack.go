package archive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// unpacker makes in a folder what an archive holds.
type unpacker struct {
	from   io.Reader
	top    int
	buffer []byte
}

// Unpack makes in a new folder what an archive holds. Nobody else may write there meanwhile.
func Unpack(from io.Reader, root string) error {
	start := make([]byte, len(magic))
	if _, err := io.ReadFull(from, start); err != nil {
		return whole(err)
	}
	if string(start) != magic {
		return errors.New("this is no archive of a disk")
	}
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	top, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	u := &unpacker{from: from, top: top, buffer: make([]byte, 1<<20)}
	first, err := readEntry(from)
	if err != nil {
		return err
	}
	if first.Kind != folder {
		return errors.New("the archive of the disk does not begin with a folder")
	}
	return u.folder(top, first, 0)
}

// folder makes what is in a folder, and then gives the folder what it had itself, the time of its last change included.
func (u *unpacker) folder(fd int, own entry, depth int) error {
	if depth > deepest {
		return fmt.Errorf("folders lie more than %d deep", deepest)
	}
	for {
		e, err := readEntry(u.from)
		if err != nil {
			return err
		}
		if e.Kind == end {
			return dress(fd, own)
		}
		if err := u.one(fd, e, depth); err != nil {
			return fmt.Errorf("making %s: %w", strconv.Quote(string(e.Name)), err)
		}
	}
}

func (u *unpacker) one(parent int, e entry, depth int) error {
	name := string(e.Name)
	switch e.Kind {
	case folder:
		if err := unix.Mkdirat(parent, name, 0o700); err != nil {
			return err
		}
		fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return u.folder(fd, e, depth+1)
	case regular:
		return u.file(parent, e)
	case again:
		return u.again(parent, e)
	case symlink:
		if err := unix.Symlinkat(string(e.Target), parent, name); err != nil {
			return err
		}
	case special:
		if err := unix.Mknodat(parent, name, e.Mode&(unix.S_IFMT|0o7777), int(e.Device)); err != nil {
			return err
		}
		if err := unix.Fchmodat(parent, name, e.Mode&0o7777, 0); err != nil { // whatever the umask is
			return err
		}
	default:
		return fmt.Errorf("what is %q?", e.Kind)
	}
	if err := unix.Fchownat(parent, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.UtimesNanoAt(parent, name, e.times(), unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) file(parent int, e entry) error {
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, string(e.Name), flags, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), string(e.Name))
	defer file.Close()
	if err := file.Truncate(e.Size); err != nil {
		return err
	}
	for _, extent := range e.Extents {
		to := io.NewOffsetWriter(file, extent[0])
		copied, err := io.CopyBuffer(struct{ io.Writer }{to}, io.LimitReader(u.from, extent[1]), u.buffer)
		if err != nil {
			return err
		}
		if copied != extent[1] {
			return whole(io.ErrUnexpectedEOF)
		}
	}
	return errors.Join(dress(fd, e), file.Close())
}

// again gives a file that was made before another name, by a path that leads nowhere else.
func (u *unpacker) again(parent int, e entry) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC}
	how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV
	fd, err := unix.Openat2(u.top, string(e.Path), &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(fd, "", parent, string(e.Name), unix.AT_EMPTY_PATH)
}

func (e entry) times() []unix.Timespec {
	return []unix.Timespec{unix.NsecToTimespec(e.Times[0]), unix.NsecToTimespec(e.Times[1])}
}

// dress gives what is open its owner, permissions, attributes and times, in the order in which the kernel keeps them:
// another owner takes the setuid bit and capabilities away.
func dress(fd int, e entry) error {
	if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode&0o7777); err != nil {
		return err
	}
	for name, value := range e.Attrs {
		if err := unix.Fsetxattr(fd, name, value, 0); err != nil {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), e.times(), 0)
}
