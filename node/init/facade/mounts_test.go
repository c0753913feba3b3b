package facade

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// sharing tells of each mount at a folder or below whether it is shared.
func sharing(t *testing.T, folder string) map[string]bool {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(folder))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, mount := range mounts {
		all[strings.TrimPrefix(mount.Mountpoint, folder)] = strings.Contains(mount.Optional, "shared:")
	}
	return all
}

// What is mounted is made shared but for what is private, a link leads to its folder, and all of it is taken back.
func TestLinksAndSharedMounts(t *testing.T) {
	folder := t.TempDir()
	mount := func(name string) {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
		if err := unix.Mount("", path, "", unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount("")
	mount("a")
	mount("a/theirs")
	if err := unix.Mount("", filepath.Join(folder, "a/theirs"), "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	link := Link{Path: filepath.Join(folder, "x", "l"), Target: filepath.Join(folder, "deep", "folder")}
	plan := Plan{
		Links: []Link{link}, Private: []string{filepath.Join(folder, "own")}, Shared: []string{folder},
	}
	made := filepath.Join(t.TempDir(), "made.json")
	if err := NoteMade(Plan{}, made); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Apply(plan, made); err != nil {
			t.Fatal(err)
		}
		mount("own/below")
		now := sharing(t, folder)
		for path, want := range map[string]bool{"": true, "/a": true, "/a/theirs": true, "/own": false, "/own/below": false} {
			if shared, mounted := now[path]; shared != want || !mounted {
				t.Errorf("%q: shared %v, mounted %v", path, shared, mounted)
			}
		}
		if target, err := filepath.EvalSymlinks(link.Path); err != nil || target != link.Target {
			t.Errorf("the link leads to %q, %v", target, err)
		}
	}
	if err := Unmake(made); err != nil {
		t.Fatal(err)
	}
	now := sharing(t, folder)
	if _, mounted := now["/own"]; mounted || now[""] || now["/a"] || !now["/a/theirs"] {
		t.Errorf("left are %v", now)
	}
	if _, err := os.Lstat(link.Path); err == nil {
		t.Error("the link is left")
	}
}

// Below the root is everything.
func TestSharesAllBelowTheRoot(t *testing.T) {
	folder := t.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(folder, unix.MNT_DETACH) })
	if err := unix.Mount("", folder, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := unshared("/", nil); err != nil || !slices.Contains(got, folder) {
		t.Errorf("not shared are %v, %v", got, err)
	}
	if got, err := unshared("/", []string{filepath.Dir(folder)}); err != nil || slices.Contains(got, folder) {
		t.Errorf("what is private is among %v, %v", got, err)
	}
}
