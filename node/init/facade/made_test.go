package facade

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/nstest"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// What the facade makes goes with the node; what was there before stays, though it is in the plan as well.
func TestUnmakeTakesWhatWasMade(t *testing.T) {
	nstest.Need(t)
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	noted := at("made.json")
	own, theirs := at("own"), at("theirs")
	must(t, os.Mkdir(theirs, 0o755))
	nstest.Tmpfs(t, theirs, "")
	t.Cleanup(func() { unix.Unmount(own, unix.MNT_DETACH) })
	must(t, files.Write(at("kept"), 0o644, []byte("same")))
	plan := Plan{
		Settings: []File{{at("setting"), "1"}},
		Files:    []File{{at("kept"), "same"}, {at("a/made"), "new"}, {at("edited"), "as it was made"}},
		Mounts: []Mount{
			{Type: "tmpfs", Source: "x", Target: theirs},
			{Type: "tmpfs", Source: "x", Target: own},
			{Type: "nosuchfs", Source: "x", Target: at("unknown"), Optional: true},
		},
	}
	devices := unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) == nil
	if devices {
		plan.Nodes = []Node{{at("null"), 1, 3}, {at("kmsg"), 1, 3}, {at("other"), 1, 3}}
	}
	must(t, NoteMade(Plan{}, noted))
	for range 2 { // the second finds all there, and forgets nothing
		must(t, Apply(plan, noted))
	}
	for _, made := range []string{"a/made", "edited"} {
		if _, err := os.Stat(at(made)); err != nil {
			t.Error(err)
		}
	}
	must(t, files.Write(at("edited"), 0o644, []byte("by hand")))
	if devices {
		must(t, os.Remove(at("other")), unix.Mknod(at("other"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	}
	for _, when := range []string{"at first", "again"} {
		if err := Unmake(noted); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	there := map[string]bool{}
	for _, name := range []string{"kept", "a/made", "edited", "null", "kmsg", "other", "setting", "made.json"} {
		_, err := os.Lstat(at(name))
		there[name] = err == nil
	}
	want := map[string]bool{
		"kept":      true,
		"a/made":    false,
		"edited":    true,
		"null":      devices,
		"kmsg":      false,
		"other":     devices,
		"setting":   true,
		"made.json": false,
	}
	if !reflect.DeepEqual(there, want) {
		t.Errorf("there are %v, want %v", there, want)
	}
	mounts := read("/proc/self/mounts")
	if strings.Contains(mounts, " "+own+" ") || !strings.Contains(mounts, " "+theirs+" ") {
		t.Errorf("mounted are\n%s", mounts)
	}
}

// A sandbox that goes as a whole needs no such note.
func TestNothingIsNotedWithoutAFileForIt(t *testing.T) {
	folder := t.TempDir()
	noted := filepath.Join(folder, "made.json")
	must(t, Apply(Plan{Files: []File{{filepath.Join(folder, "made"), "new"}}}, noted))
	if _, err := os.Lstat(noted); !files.IsAbsent(err) {
		t.Errorf("noted: %v", err)
	}
	must(t, Unmake(noted))
	if got := read(filepath.Join(folder, "made")); got != "new" {
		t.Errorf("it holds %q", got)
	}
}

func TestDamagedNoteIsTold(t *testing.T) {
	folder := t.TempDir()
	noted, made := filepath.Join(folder, "made.json"), filepath.Join(folder, "made")
	for _, content := range []string{"", `{"files":[`, `{"flies":[]}`} {
		must(t, files.Write(noted, 0o600, []byte(content)))
		plan := Plan{Files: []File{{made, "new"}}}
		for what, err := range map[string]error{"Apply": Apply(plan, noted), "Unmake": Unmake(noted)} {
			if err == nil ||
				!strings.Contains(err.Error(), noted+", which tells what the facade made, cannot be read (") ||
				!strings.Contains(err.Error(), "; remove it, and look after a `destroy` for") {
				t.Errorf("%s with %q: %v", what, content, err)
			}
		}
		if _, err := os.Lstat(made); !files.IsAbsent(err) {
			t.Errorf("something was made that nobody will take away: %v", err)
		}
	}
}

func TestLegacy(t *testing.T) {
	made, err := Legacy("e2e")
	must(t, err)
	// As config/facade.ts of 0.2.0 derived it: the first 32 digits of the SHA-256 of "gvisor-k3s machine e2e".
	want := []File{{"/etc/machine-id", "e4a018b9c6a2708646795f600562868d\n"}}
	if !reflect.DeepEqual(made.Files, want) || made.Mounts[0].Target != "/proc/sys" ||
		made.Nodes[0] != (Node{"/dev/kmsg", 1, 3}) {
		t.Errorf("got %+v", made)
	}
	nstest.Need(t)
	if _, err := os.Stat("/sys/fs/cgroup"); err != nil {
		t.Skip("there is no folder for cgroups: ", err)
	}
	nstest.Tmpfs(t, "/run", "")
	before := len(made.Mounts)
	nstest.Tmpfs(t, "/sys/fs/cgroup", "")
	if made, err := Legacy("e2e"); err != nil || len(made.Mounts) != before {
		t.Errorf("cgroups that are not the facade's: %+v, %v", made.Mounts, err)
	}
	must(t, files.Write("/run/gvisor-k3s/cgroup-mounts", 0o644, []byte{}))
	made, err = Legacy("e2e")
	if last := made.Mounts[len(made.Mounts)-1]; err != nil || last.Target != "/sys/fs/cgroup" || last.Type != "tmpfs" {
		t.Errorf("got %+v, %v", made.Mounts, err)
	}
}

// A root in the sandbox may put anything in the way of a plan; none of it is waited for.
func TestHostilePlaces(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	must(t, unix.Mkfifo(at("fifo"), 0o666), os.Symlink("nowhere", at("dangling")), os.Symlink("loop", at("loop")))
	for _, place := range []string{"fifo", "dangling", "loop"} {
		err := Plan{Files: []File{{at(place) + "/machine-id", "x"}}}.Apply()
		if err == nil || !strings.Contains(err.Error(), at(place)+" is ") {
			t.Errorf("a file below %s: %v", place, err)
		}
		// What is there is left as it is.
		if err := (Plan{Files: []File{{at(place), "x"}}}).Apply(); err != nil {
			t.Errorf("a file at %s: %v", place, err)
		}
		err = Plan{Mounts: []Mount{{Type: "tmpfs", Target: at(place)}}}.Apply()
		if err == nil || !strings.Contains(err.Error(), at(place)+" is ") {
			t.Errorf("a mount on %s: %v", place, err)
		}
	}
	if err := (Plan{Settings: []File{{at("fifo"), "1"}}}).Apply(); !errors.Is(err, unix.ENXIO) {
		t.Errorf("a setting that is a FIFO: %v", err)
	}
	if _, err := os.Lstat(at("nowhere")); !files.IsAbsent(err) {
		t.Errorf("a link was written through: %v", err)
	}
}

func TestModesDespiteTheUmask(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	folder := t.TempDir()
	must(t, Plan{Files: []File{{filepath.Join(folder, "a/b/file"), "x"}}}.Apply())
	modes := map[string]os.FileMode{"a": 0o755 | os.ModeDir, "a/b": 0o755 | os.ModeDir, "a/b/file": 0o644}
	for name, mode := range modes {
		if info, err := os.Stat(filepath.Join(folder, name)); err != nil || info.Mode() != mode {
			t.Error(fmt.Sprintf("%s: %v", name, info.Mode()), err)
		}
	}
}
