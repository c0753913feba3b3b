package files

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/internal/isolated"
	"gvisor-k3s/host/usage"
)

func TestMain(m *testing.M) { isolated.Main(m) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600))
}

// planted is a folder with everything that a sandbox could have put in a file's place, and a file of the host's beside.
func planted(t *testing.T) (root, victim string) {
	t.Helper()
	base := t.TempDir()
	root, victim = filepath.Join(base, "root"), filepath.Join(base, "victim")
	write(t, victim, "the host's")
	at := func(name string) string { return filepath.Join(root, name) }
	write(t, at("etc/file"), "0123456789")
	must(t,
		os.Symlink("etc/file", at("link")),
		os.Symlink("/etc/file", at("absolute")),
		os.Symlink(victim, at("out")),
		os.Symlink("../victim", at("up")),
		os.Symlink("../../victim", at("etc/up")),
		os.Symlink("..", at("etc/parent")),
		os.Symlink("../..", at("etc/outside")),
		os.Symlink("loop", at("loop")),
		os.Symlink("nothing", at("dangling")),
		os.Link(at("etc/file"), at("hard")),
		unix.Mkfifo(at("fifo"), 0o600),
		unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))),
		os.Symlink("fifo", at("to-fifo")),
	)
	socket, err := net.Listen("unix", at("socket"))
	must(t, err)
	t.Cleanup(func() { socket.Close() })
	huge, err := os.Create(at("huge"))
	must(t, err, huge.Truncate(1<<40), huge.Close())
	return root, victim
}

func TestRead(t *testing.T) {
	root, _ := planted(t)
	for path, want := range map[string]string{
		"etc/file": "0123456789", "link": "0123456789", "hard": "0123456789", "etc/parent/link": "0123456789",
		"./etc/../etc/file": "0123456789",
	} {
		if got, err := read(root, path, -1, defaultLimit); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", path, got, err)
		}
	}
	for path, want := range map[string]string{
		"out": "escapes", "up": "escapes", "etc/up": "escapes", "etc/outside/victim": "escapes", "../victim": "escapes",
		"absolute": "escapes", "/etc/passwd": "escapes", "loop": "too many levels",
		"fifo": "no regular file, but a FIFO", "to-fifo": "no regular file, but a FIFO",
		"device": "no regular file, but a device", "socket": "no regular file, but a socket",
		"etc": "no regular file, but a folder", "huge": "more than the limit of",
	} {
		got, err := read(root, path, -1, defaultLimit)
		if err == nil || !strings.Contains(err.Error(), want) || isAbsent(err) {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"nothing", "dangling", "etc/nothing/file", "etc/file/nothing", "nothing/nothing"} {
		if _, err := read(root, path, -1, defaultLimit); !isAbsent(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := read(filepath.Join(root, "nothing"), "etc/file", -1, defaultLimit); err == nil || isAbsent(err) {
		t.Errorf("of a folder that is not there: %v", err)
	}
}

// What a file was replaced by after it was looked at is not waited for.
func TestAFileThatIsReplaced(t *testing.T) {
	root, _ := planted(t)
	beneath, err := openRoot(root)
	must(t, err)
	defer beneath.Close()
	for path, want := range map[string]string{"fifo": "a FIFO", "device": "a device", "etc": "a folder"} {
		if _, err := openRegular(beneath, root, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestReadAPart(t *testing.T) {
	root, _ := planted(t)
	for _, c := range []struct {
		tail, limit int64
		want        string
	}{
		{3, 100, "789"}, {0, 100, ""}, {10, 100, "0123456789"}, {50, 100, "0123456789"}, {8, 5, "56789"},
		{-1, 10, "0123456789"},
	} {
		if got, err := read(root, "etc/file", c.tail, c.limit); err != nil || string(got) != c.want {
			t.Errorf("%+v: got %q, %v", c, got, err)
		}
	}
	if _, err := read(root, "etc/file", -1, 9); err == nil || !strings.Contains(err.Error(), "has 10 bytes") {
		t.Errorf("got %v", err)
	}
	// The end of a file of any size can be had.
	if got, err := read(root, "huge", 3, 100); err != nil || string(got) != "\x00\x00\x00" {
		t.Errorf("got %q, %v", got, err)
	}
}

// Files of the kernel's have more to read than their size says, as one that grows has.
func TestAFileThatGrows(t *testing.T) {
	if _, err := read("/proc/self", "status", -1, 10); err == nil || !strings.Contains(err.Error(), "grows beyond") {
		t.Errorf("got %v", err)
	}
	if got, err := read("/proc/self", "status", 5, 10); err != nil || len(got) != 5 {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestList(t *testing.T) {
	root, _ := planted(t)
	for _, name := range []string{"etc/a b", "etc/two\nlines", "etc/\x1b[31m", "etc/\xff", "etc/ü"} {
		write(t, filepath.Join(root, name), "")
	}
	must(t, os.Symlink("etc", filepath.Join(root, "to-etc")))
	for _, path := range []string{"etc", "to-etc"} {
		names, odd, err := list(root, path)
		slices.Sort(names)
		if err != nil || !slices.Equal(names, []string{"a b", "file", "ü"}) || len(odd) != 3 {
			t.Errorf("%s: got %q, %q, %v", path, names, odd, err)
		}
	}
	names, _, err := list(root, ".")
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"hard", "huge"}) {
		t.Errorf("got %q, %v", names, err)
	}
	for path, want := range map[string]string{
		"etc/outside": "escapes", "..": "escapes", "fifo": "no folder, but a FIFO", "link": "no folder, but a file",
		"device": "no folder, but a device",
	} {
		if names, _, err := list(root, path); err == nil || !strings.Contains(err.Error(), want) || isAbsent(err) {
			t.Errorf("%s: got %q, %v", path, names, err)
		}
	}
	for _, path := range []string{"nothing", "etc/file/nothing", "dangling"} {
		if _, _, err := list(root, path); !isAbsent(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{
		nil, {"a"}, {"a", "b", "c"}, {"a", "b", "--tail"}, {"a", "b", "--tail=x"}, {"--x", "a", "b"},
	} {
		if err := Read(args); !errors.As(err, &usage.Error{}) {
			t.Errorf("read %q: %v", args, err)
		}
	}
	for _, args := range [][]string{nil, {"a"}, {"a", "b", "c"}, {"--tail=1", "a", "b"}} {
		if err := List(args); !errors.As(err, &usage.Error{}) {
			t.Errorf("list %q: %v", args, err)
		}
	}
	for _, args := range [][]string{nil, {"a", "b"}, {"relative"}, {"/"}, {""}, {"/../"}} {
		if err := Remove(args); !errors.As(err, &usage.Error{}) {
			t.Errorf("remove %q: %v", args, err)
		}
	}
}

func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there still: %v", path, err)
	}
}

func unharmed(t *testing.T, victim string) {
	t.Helper()
	if got, err := os.ReadFile(victim); err != nil || string(got) != "the host's" {
		t.Errorf("%s has %q, %v", victim, got, err)
	}
}

func TestRemove(t *testing.T) {
	root, victim := planted(t)
	for i := range 3000 {
		write(t, filepath.Join(root, "wide", fmt.Sprint(i)), "")
	}
	for i := range 50 {
		write(t, filepath.Join(root, fmt.Sprint("folder ", i), "a", fmt.Sprint("removed-", i), "b", "c", "file"), "")
		write(t, filepath.Join(root, fmt.Sprint("removed-", i), "removed-1", "file"), "")
	}
	write(t, filepath.Join(root, "\xff\n\x1b", "..."), "")
	write(t, filepath.Join(root, "locked", "folder", "file"), "")
	must(t, os.Chmod(filepath.Join(root, "locked", "folder"), 0), os.Chmod(filepath.Join(root, "locked"), 0))
	must(t, remove(root))
	gone(t, root)
	unharmed(t, victim)
	for range 2 {
		must(t, remove(root), remove(filepath.Join(root, "below", "nothing")))
	}
	must(t, os.Symlink(filepath.Dir(victim), root), remove(root))
	gone(t, root)
	unharmed(t, victim)
	write(t, root, "a file")
	must(t, remove(root+"/"))
	gone(t, root)
	// A link in the place of a folder that was not empty a moment ago.
	must(t, os.Symlink(filepath.Dir(victim), root))
	parent, err := os.Open(filepath.Dir(root))
	must(t, err)
	defer parent.Close()
	_, err = openFolder(fd(parent), filepath.Base(root))
	if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link was opened: %v", err)
	}
}

// deep makes folders in one another, with something in each, and returns how long the path of the last one is.
func deep(t *testing.T, root, name string, count int) int {
	t.Helper()
	must(t, os.Mkdir(root, 0o755))
	folder, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range count {
		file, err := unix.Openat(folder, "file", unix.O_WRONLY|unix.O_CREAT, 0o600)
		must(t, err, unix.Close(file), unix.Symlinkat("/etc/passwd", folder, "link"), unix.Mkdirat(folder, name, 0o755))
		next, err := unix.Openat(folder, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err, unix.Close(folder))
		folder = next
	}
	must(t, unix.Close(folder))
	return len(root) + count*(len(name)+1)
}

func TestRemoveADeepTree(t *testing.T) {
	base := t.TempDir()
	must(t, unix.Mount("tmpfs", base, "tmpfs", 0, "")) // disks are slow to have such trees made
	defer unix.Unmount(base, unix.MNT_DETACH)
	root := filepath.Join(base, "root")
	if length := deep(t, root, strings.Repeat("x", 255), 100); length < 5*unix.PathMax {
		t.Fatalf("a path of %d bytes", length)
	}
	must(t, remove(root))
	gone(t, root)
	// Deeper than there can be open files, or room for calls in one another.
	deep(t, root, "d", 30000)
	must(t, remove(root))
	gone(t, root)
}

func TestMountsAreNotCrossed(t *testing.T) {
	base := t.TempDir()
	root, victim := filepath.Join(base, "root"), filepath.Join(base, "elsewhere", "victim")
	write(t, victim, "the host's")
	write(t, filepath.Join(root, "a", "b", "file"), "")
	write(t, filepath.Join(root, "mounted file"), "")
	for at, source := range map[string]string{
		filepath.Join(root, "a", "b"): filepath.Dir(victim), filepath.Join(root, "mounted file"): victim,
		root: filepath.Dir(victim),
	} {
		must(t, unix.Mount(source, at, "", unix.MS_BIND, ""))
		err := remove(root)
		if err == nil || !strings.Contains(err.Error(), "something is mounted at "+at) {
			t.Errorf("%s: %v", at, err)
		}
		unharmed(t, victim)
		// Also where it was not looked for in time.
		parent, failure := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, failure)
		err = removeAt(parent, "root")
		must(t, unix.Close(parent))
		if err == nil || !strings.Contains(err.Error(), "something is mounted there") {
			t.Errorf("%s: %v", at, err)
		}
		unharmed(t, victim)
		must(t, unix.Unmount(at, unix.MNT_DETACH))
		if at != root {
			must(t, os.RemoveAll(root))
			write(t, filepath.Join(root, "a", "b", "file"), "")
			write(t, filepath.Join(root, "mounted file"), "")
		}
	}
	must(t, remove(root))
	gone(t, root)
}
