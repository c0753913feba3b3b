package archive

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/internal/isolated"
)

func TestMain(m *testing.M) { isolated.Main(m) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// planted is a folder with everything that a sandbox could have on its disk.
func planted(t *testing.T) (root, victim string) {
	t.Helper()
	base := t.TempDir()
	root, victim = filepath.Join(base, "root"), filepath.Join(base, "victim")
	at := func(name string) string { return filepath.Join(root, name) }
	must(t, os.WriteFile(victim, []byte("the host's"), 0o600), os.MkdirAll(at("etc/empty"), 0o755))
	must(t,
		os.WriteFile(at("etc/file"), []byte("0123456789"), 0o640), os.Link(at("etc/file"), at("hard")),
		os.WriteFile(at("none"), nil, 0o600), os.WriteFile(at("su"), []byte("#!"), 0o600),
		os.Chown(at("su"), 12, 34), os.Chmod(at("su"), 0o755|fs.ModeSetuid|fs.ModeSetgid),
		os.WriteFile(at("a\nname \xff that is no text"), []byte("odd"), 0o600),
		os.Symlink(victim, at("out")), os.Symlink("..", at("etc/parent")), os.Symlink("loop", at("loop")),
		os.Symlink(filepath.Dir(victim), at("folder-out")), os.Lchown(at("out"), 5, 6),
		unix.Mkfifo(at("fifo"), 0o622), unix.Mknod(at("whiteout"), unix.S_IFCHR, 0),
		unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))),
		os.Chmod(at("etc/empty"), 0o1777),
		unix.Setxattr(at("etc/empty"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(at("su"), "user.note", []byte{0, 1, 2}, 0),
	)
	socket, err := net.Listen("unix", at("socket"))
	must(t, err)
	socket.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, socket.Close())
	holes, err := os.Create(at("holes"))
	must(t, err, holes.Truncate(1<<40))
	_, err = holes.WriteAt([]byte("in the middle"), 1<<30)
	must(t, err, holes.Close())
	old := unix.NsecToTimespec(1_000_000_000_123_456_789)
	for _, name := range []string{"etc", "etc/file", "out", "fifo"} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(name), []unix.Timespec{old, old}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return root, victim
}

// seen is what can be told of a file without its number, its place on the disk, and when it was looked at.
func seen(t *testing.T, path string) string {
	t.Helper()
	var stat unix.Stat_t
	must(t, unix.Lstat(path, &stat))
	var b strings.Builder
	size := stat.Size
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0
	}
	b.WriteString(strings.Join([]string{
		filepath.Base(path), fs.FileMode(stat.Mode).String(), num(stat.Uid), num(stat.Gid), num(stat.Rdev), num(size),
		num(stat.Nlink), num(stat.Mtim.Nano()),
	}, " "))
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		must(t, err)
		b.WriteString(" to " + target)
	case unix.S_IFREG, unix.S_IFDIR:
		opened, err := os.Open(path)
		must(t, err)
		defer opened.Close()
		found, err := attributes(int(opened.Fd()))
		must(t, err)
		for name, value := range found {
			b.WriteString(" " + name + "=" + string(value))
		}
		if stat.Mode&unix.S_IFMT == unix.S_IFREG && stat.Size < 1<<20 {
			content, err := os.ReadFile(path)
			must(t, err)
			b.Write(content)
		}
	}
	return b.String()
}

func num[T ~int | ~int64 | ~uint32 | ~uint64](n T) string {
	return strconv.FormatInt(int64(n), 10)
}

func all(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if path != root {
			lines = append(lines, seen(t, path))
		}
		return err
	}))
	slices.Sort(lines)
	return lines
}

func TestWhatIsUnpackedIsWhatWasPacked(t *testing.T) {
	unix.Umask(0o077)
	root, victim := planted(t)
	var packed bytes.Buffer
	must(t, Pack(t.Context(), root, &packed))
	if packed.Len() > 1<<20 {
		t.Errorf("holes were packed: %d bytes", packed.Len())
	}
	if bytes.Contains(packed.Bytes(), []byte("the host's")) {
		t.Error("a link was followed out of the folder")
	}
	copied := filepath.Join(t.TempDir(), "copy")
	must(t, Unpack(bytes.NewReader(packed.Bytes()), copied))
	want, got := all(t, root), all(t, copied)
	for i := range max(len(want), len(got)) {
		if i >= len(got) || i >= len(want) || want[i] != got[i] {
			t.Fatalf("entry %d:\nwant %q\ngot  %q", i, want[min(i, len(want)-1)], got[min(i, len(got)-1)])
		}
	}
	middle := make([]byte, 13)
	holes, err := os.Open(filepath.Join(copied, "holes"))
	must(t, err)
	defer holes.Close()
	if _, err := holes.ReadAt(middle, 1<<30); err != nil || string(middle) != "in the middle" {
		t.Errorf("got %q, %v", middle, err)
	}
	if content, err := os.ReadFile(victim); err != nil || string(content) != "the host's" {
		t.Errorf("the host's file has %q, %v", content, err)
	}
}

func TestWhatIsNoArchive(t *testing.T) {
	root, _ := planted(t)
	var packed bytes.Buffer
	must(t, Pack(t.Context(), root, &packed))
	whole := packed.Bytes()
	for name, content := range map[string][]byte{
		"empty": nil, "another": []byte("another file of some length"), "cut": whole[:len(whole)/2],
		"without its end": whole[:len(whole)-3], "long": append([]byte(magic), 0xff, 0xff, 0xff, 0xff),
	} {
		if err := Unpack(bytes.NewReader(content), filepath.Join(t.TempDir(), "copy")); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	folder := t.TempDir()
	if err := Unpack(bytes.NewReader(whole), folder); !errors.Is(err, fs.ErrExist) {
		t.Errorf("into a folder that is there: %v", err)
	}
}

func TestWhatCannotBePacked(t *testing.T) {
	root := t.TempDir()
	deep := root
	for range 1100 { // none of its paths is longer than the kernel takes
		deep += "/d"
	}
	must(t, os.MkdirAll(deep, 0o755))
	if err := Pack(t.Context(), root, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "1000 deep") {
		t.Errorf("deep folders: %v", err)
	}
	mounted := t.TempDir()
	on := filepath.Join(mounted, "on")
	must(t, os.Mkdir(on, 0o755), unix.Mount("none", on, "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(on, 0) })
	if err := Pack(t.Context(), mounted, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "is mounted") {
		t.Errorf("a mount: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(mounted, link))
	if err := Pack(t.Context(), link, &bytes.Buffer{}); err == nil {
		t.Error("a link in the place of the folder was followed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	full := t.TempDir()
	must(t, os.WriteFile(filepath.Join(full, "file"), nil, 0o600))
	if err := Pack(ctx, full, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Folders with more names than are held at a time, and files whose paths are too long to find them again by.
func TestWideAndDeepFolders(t *testing.T) {
	root := t.TempDir()
	for i := range 2*atOnce + 1 {
		must(t, os.WriteFile(filepath.Join(root, strconv.Itoa(i)), nil, 0o600))
	}
	folder, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	name := strings.Repeat("d", 255)
	for range unix.PathMax/len(name) + 1 {
		must(t, unix.Mkdirat(folder, name, 0o755))
		next, err := unix.Openat(folder, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err, unix.Close(folder))
		folder = next
	}
	file, err := unix.Openat(folder, "file", unix.O_WRONLY|unix.O_CREAT, 0o600)
	must(t, err, unix.Close(file), unix.Linkat(folder, "file", folder, "linked", 0), unix.Close(folder))
	var packed bytes.Buffer
	must(t, Pack(t.Context(), root, &packed))
	copied := filepath.Join(t.TempDir(), "copy")
	must(t, Unpack(bytes.NewReader(packed.Bytes()), copied))
	names, err := os.ReadDir(copied)
	if err != nil || len(names) != 2*atOnce+2 {
		t.Errorf("got %d names, %v", len(names), err)
	}
	if count := bytes.Count(packed.Bytes(), []byte(`"kind":"file"`)); count != 2*atOnce+3 {
		t.Errorf("%d files were packed", count)
	}
}

func TestTooManyHoles(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "holes"))
	must(t, err)
	defer file.Close()
	for i := range int64(4) {
		_, err := file.WriteAt([]byte{1}, i<<20)
		must(t, err)
	}
	if found, err := extents(int(file.Fd()), 4<<20, 4); err != nil || len(found) != 4 {
		t.Errorf("got %v, %v", found, err)
	}
	if _, err := extents(int(file.Fd()), 4<<20, 3); err == nil || !strings.Contains(err.Error(), "more than 3 parts") {
		t.Errorf("got %v", err)
	}
}
