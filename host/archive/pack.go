package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// packer packs a folder.
type packer struct {
	ctx context.Context
	to  io.Writer
	// device is that of the top: nothing that is mounted below it is packed.
	device uint64
	// seen are the files that have several names, by their numbers.
	seen   map[uint64]*place
	buffer []byte
}

// place is where something is, below the top. Who is root in the sandbox decides on how many there are and how long
// their paths: each has what its folder's has in common with it.
type place struct {
	within *place // nil at the top
	name   string
	depth  int
	length int // of its path
}

func (p *place) below(name string) *place {
	return &place{p, name, p.depth + 1, p.length + 1 + len(name)}
}

func (p *place) path() string {
	names := make([]string, p.depth)
	for at := p; at.within != nil; at = at.within {
		names[at.depth-1] = at.name
	}
	return strings.Join(names, "/")
}

// Pack writes what is in a folder. What is there must not change meanwhile, or the archive is of several instants; it
// leads nowhere else even then.
func Pack(ctx context.Context, root string, to io.Writer) error {
	top, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: root, Err: err}
	}
	file := os.NewFile(uintptr(top), root)
	defer file.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(top, &stat); err != nil {
		return err
	}
	p := &packer{ctx: ctx, to: to, device: stat.Dev, seen: map[uint64]*place{}, buffer: make([]byte, 1<<20)}
	if _, err := io.WriteString(to, magic); err != nil {
		return err
	}
	return p.folder(file, stat, &place{})
}

func describe(name string, stat unix.Stat_t) entry {
	return entry{
		Name: []byte(name), Mode: stat.Mode, UID: stat.Uid, GID: stat.Gid,
		Times: [2]int64{stat.Atim.Nano(), stat.Mtim.Nano()},
	}
}

func (p *packer) folder(file *os.File, stat unix.Stat_t, at *place) error {
	if at.depth > deepest {
		return fmt.Errorf("folders lie more than %d deep", deepest)
	}
	e := describe(at.name, stat)
	e.Kind = folder
	var err error
	if e.Attrs, err = attributes(int(file.Fd())); err != nil {
		return err
	}
	if err := e.write(p.to); err != nil {
		return err
	}
	for {
		names, err := file.Readdirnames(atOnce)
		if err == io.EOF {
			return entry{Kind: end}.write(p.to)
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := p.ctx.Err(); err != nil {
				return context.Cause(p.ctx)
			}
			if err := p.one(int(file.Fd()), at.below(name)); err != nil {
				return err
			}
		}
	}
}

// one packs what has a name in a folder. It is held by a handle that opens nothing before it is known what it is.
func (p *packer) one(parent int, at *place) error {
	name := at.name
	failed := func(err error) error {
		return fmt.Errorf("%s in the sandbox: %w", strconv.Quote(at.path()), err)
	}
	handle, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(handle)
	var stat unix.Stat_t
	if err := unix.Fstat(handle, &stat); err != nil {
		return failed(err)
	}
	if stat.Dev != p.device {
		return failed(errors.New("something is mounted there on the host; take it off (umount) first"))
	}
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		opened, err := reopen(handle, name, unix.O_DIRECTORY)
		if err != nil {
			return failed(err)
		}
		defer opened.Close()
		return p.folder(opened, stat, at)
	case unix.S_IFREG:
		if err := p.file(handle, at, stat); err != nil {
			return failed(err)
		}
		return nil
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		length, err := unix.Readlinkat(handle, "", target)
		if err != nil {
			return failed(err)
		}
		e := describe(name, stat)
		e.Kind, e.Target = symlink, target[:length]
		return e.write(p.to)
	}
	e := describe(name, stat)
	e.Kind, e.Device = special, stat.Rdev
	return e.write(p.to)
}

// reopen opens for reading what a handle stands for, which is that very thing.
func reopen(handle int, name string, flags int) (*os.File, error) {
	fd, err := unix.Open(filepath.Join("/proc/self/fd", strconv.Itoa(handle)), unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (p *packer) file(handle int, at *place, stat unix.Stat_t) error {
	e := describe(at.name, stat)
	if first := p.seen[stat.Ino]; first != nil && stat.Nlink > 1 {
		e.Kind, e.Path = again, []byte(first.path())
		return e.write(p.to)
	}
	// By a longer path nothing could be found again; its other names are files of their own then.
	if stat.Nlink > 1 && at.length < unix.PathMax {
		p.seen[stat.Ino] = at
	}
	opened, err := reopen(handle, at.name, 0)
	if err != nil {
		return err
	}
	defer opened.Close()
	e.Kind, e.Size = regular, stat.Size
	fd := int(opened.Fd())
	if e.Attrs, err = attributes(fd); err != nil {
		return err
	}
	if e.Extents, err = extents(fd, stat.Size, mostExtents); err != nil {
		return err
	}
	if err := e.write(p.to); err != nil {
		return err
	}
	for _, extent := range e.Extents {
		section := io.NewSectionReader(opened, extent[0], extent[1])
		copied, err := io.CopyBuffer(struct{ io.Writer }{p.to}, &interrupted{p.ctx, section}, p.buffer)
		if err != nil {
			return err
		}
		if copied != extent[1] {
			return errors.New("it became shorter while it was read")
		}
	}
	return nil
}

// interrupted ends a reading with its context: one file may be most of a disk.
type interrupted struct {
	ctx  context.Context
	from io.Reader
}

func (i *interrupted) Read(into []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.from.Read(into)
}

// extents are where a file has data.
func extents(fd int, size int64, most int) ([][2]int64, error) {
	var found [][2]int64
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO { // a hole up to the end
			break
		}
		if err != nil {
			return nil, err
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		hole = min(hole, size) // it may grow meanwhile
		if hole > data {
			found = append(found, [2]int64{data, hole - data})
		}
		if len(found) > most {
			return nil, fmt.Errorf("it has more than %d parts between holes", most)
		}
		at = hole
	}
	return found, nil
}

// attributes are the extended ones of what is open, such as capabilities and an overlay's marks.
func attributes(fd int) (map[string][]byte, error) {
	size, err := unix.Flistxattr(fd, nil)
	if err == unix.ENOTSUP || size == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(fd, names); err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for _, name := range bytes.Split(names[:size], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		length, err := unix.Fgetxattr(fd, string(name), value)
		if err != nil {
			return nil, err
		}
		found[string(name)] = value[:length]
	}
	return found, nil
}
