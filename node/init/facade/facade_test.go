package facade

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gvisor-k3s/node/init/nstest"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	nstest.Enter()
	os.Exit(m.Run())
}

func read(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// The facade of a sandbox is applied at every deployment: it adds what is missing and touches nothing else.
func TestPlanFiles(t *testing.T) {
	folder := t.TempDir()
	long := time.Now().Add(-24 * time.Hour).Truncate(time.Second)
	existing := func(name, content string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
		return path
	}
	right, wrong, kept := existing("right", "1\n"), existing("wrong", "0\n"), existing("kept", "mine")
	made := filepath.Join(folder, "a", "b", "made")
	plan := Plan{Settings: []File{{right, "1"}, {wrong, "1"}}, Files: []File{{kept, "theirs"}, {made, "new"}}}

	check := func(when string, want map[string]string) {
		t.Helper()
		if err := plan.Apply(); err != nil {
			t.Fatal(err)
		}
		for path, content := range want {
			if got := read(path); got != content {
				t.Errorf("%s: %s holds %q, want %q", when, filepath.Base(path), got, content)
			}
		}
		// A setting that is right already may be one that can only be read.
		if info, err := os.Stat(right); err != nil || !info.ModTime().Equal(long) {
			t.Errorf("%s: a setting that was right was written: %v", when, err)
		}
	}
	check("at first", map[string]string{right: "1\n", wrong: "1", kept: "mine", made: "new"})
	existing("a/b/made", "changed since")
	check("again", map[string]string{wrong: "1", kept: "mine", made: "changed since"})
}

func TestPlanReportsEverything(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "file")
	if err := (File{file, ""}).write(); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(folder, "good")
	err := Plan{
		Settings: []File{{folder + "/none/setting", "1"}},
		Files:    []File{{file + "/below", ""}, {good, "here"}},
	}.Apply()
	if err == nil || !strings.Contains(err.Error(), "/none/setting") || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v, want both problems", err)
	}
	if read(good) != "here" {
		t.Error("a problem kept the rest of the plan back")
	}
}

func TestPlanMounts(t *testing.T) {
	nstest.Need(t)
	folder := t.TempDir()
	target, unknown := filepath.Join(folder, "target"), filepath.Join(folder, "unknown")
	below := filepath.Join(target, "below")
	t.Cleanup(func() {
		for unix.Unmount(below, unix.MNT_DETACH) == nil || unix.Unmount(target, unix.MNT_DETACH) == nil {
		}
	})
	plan := Plan{Mounts: []Mount{
		{Type: "tmpfs", Source: "first", Target: target, Options: "size=64k"},
		// In order: its target lies in the mount before.
		{Type: "tmpfs", Source: "second", Target: below, Folders: []string{filepath.Join(target, "folder")}},
		{Type: "nosuchfs", Source: "third", Target: unknown, Optional: true},
	}}
	for _, when := range []string{"at first", "again"} {
		if err := plan.Apply(); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		mounts := read("/proc/self/mounts")
		// By the target, since gVisor tells no source.
		wanted := map[string]int{" " + target + " tmpfs ": 1, " " + below + " tmpfs ": 1, unknown: 0}
		for line, want := range wanted {
			if got := strings.Count(mounts, line); got != want {
				t.Errorf("%s: %q is there %d times, want %d:\n%s", when, line, got, want, mounts)
			}
		}
		if _, err := os.Stat(unknown); !os.IsNotExist(err) {
			t.Errorf("%s: the target of an unknown file system was left there: %v", when, err)
		}
		if info, err := os.Stat(filepath.Join(target, "folder")); err != nil || !info.IsDir() {
			t.Errorf("%s: the folder is not in the mount: %v", when, err)
		}
	}
	if !strings.Contains(read("/proc/self/mounts"), "size=64k") {
		t.Error("the options were not used")
	}
	// Something of another type is mounted over; it is not the one that the plan means.
	over := Mount{Type: "proc", Source: "over", Target: below}
	if err := over.make(); err != nil || !strings.Contains(read("/proc/self/mounts"), " "+below+" proc ") {
		t.Errorf("not mounted over another type: %v", err)
	}
	must := Mount{Type: "nosuchfs", Source: "none", Target: unknown, Options: "x"}
	if want := `mount -t nosuchfs -o "x" none ` + unknown + `: no such device`; must.make() == nil ||
		must.make().Error() != want {
		t.Errorf("got %v, want %s", must.make(), want)
	}
}

func TestPlanNodes(t *testing.T) {
	nstest.Need(t) // only to know that this is root
	defer unix.Umask(unix.Umask(0o077))
	device := filepath.Join(t.TempDir(), "kmsg")
	plan := Plan{Nodes: []Node{{device, 1, 3}}}
	if err := plan.Apply(); strings.Contains(errorText(err), unix.EPERM.Error()) {
		t.Skip("device nodes can't be made here: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(device, &stat); err != nil || stat.Mode != unix.S_IFCHR|0o666 || stat.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("got mode %o, device %x, %v", stat.Mode, stat.Rdev, err)
	}
	if err := os.Chmod(device, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := plan.Apply(); err != nil {
		t.Errorf("applied again: %v", err)
	}
	if err := unix.Stat(device, &stat); err != nil || stat.Mode != unix.S_IFCHR|0o600 {
		t.Errorf("a node that was there was changed: mode %o, %v", stat.Mode, err)
	}
	err := Plan{Nodes: []Node{{"/no/such/folder/node", 1, 3}}}.Apply()
	if want := "mknod /no/such/folder/node: no such file or directory"; errorText(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
