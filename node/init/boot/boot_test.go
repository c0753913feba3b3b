package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"gvisor-k3s/node/init/files"

	"golang.org/x/sys/unix"
)

// An umask that leaves others nothing: the modes that are asked for count.
func TestMain(m *testing.M) {
	unix.Umask(0o077)
	os.Exit(m.Run())
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func read(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

func modeOf(path string) fs.FileMode {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return info.Mode()
}

// plan has all there is, below a folder.
func plan(folder string) Plan {
	at := func(name string) string { return filepath.Join(folder, name) }
	return Plan{
		Folders: []Folder{{at("run"), "755"}, {at("root"), "700"}, {at("tmp"), "1777"}, {at("var/run/below"), "750"}},
		Links:   []Link{{at("bin/sh"), "busybox"}, {at("var/run"), "../run"}, {at("run/dangling"), "/nowhere/at/all"}},
		Files: []files.File{
			{Path: at("etc/hostname"), Mode: "644", Content: []byte("dev\n")},
			{Path: at("run/secret"), Mode: "600", Content: []byte{}},
		},
	}
}

func check(t *testing.T, folder string) {
	t.Helper()
	for name, mode := range map[string]fs.FileMode{
		"run": fs.ModeDir | 0o755, "root": fs.ModeDir | 0o700, "tmp": fs.ModeDir | fs.ModeSticky | 0o777,
		"run/below": fs.ModeDir | 0o750, "bin": fs.ModeDir | 0o755, "etc": fs.ModeDir | 0o755,
		"var": fs.ModeDir | 0o755, "etc/hostname": 0o644, "run/secret": 0o600,
	} {
		if got := modeOf(filepath.Join(folder, name)); got != mode {
			t.Errorf("%s has mode %v, want %v", name, got, mode)
		}
	}
	targets := map[string]string{"bin/sh": "busybox", "var/run": "../run", "run/dangling": "/nowhere/at/all"}
	for name, target := range targets {
		if got, err := os.Readlink(filepath.Join(folder, name)); got != target {
			t.Errorf("%s leads to %q, %v, want %q", name, got, err, target)
		}
	}
	if got := read(filepath.Join(folder, "etc/hostname")); got != "dev\n" {
		t.Errorf("the file holds %q", got)
	}
}

func TestApply(t *testing.T) {
	folder := t.TempDir()
	changed, err := plan(folder).Apply()
	must(t, err)
	// `run` is there because a link lies in it, with the mode that it is to have.
	want := strings.Fields("bin/sh var/run run/dangling root tmp var/run/below etc/hostname run/secret")
	for i, name := range want {
		want[i] = filepath.Join(folder, name)
	}
	if !reflect.DeepEqual(changed, want) {
		t.Errorf("changed are %q, want %q", changed, want)
	}
	check(t, folder)
	before := map[string]os.FileInfo{}
	for _, path := range append(want, filepath.Join(folder, "run")) {
		info, err := os.Lstat(path)
		must(t, err)
		before[path] = info
	}
	changed, err = plan(folder).Apply()
	if err != nil || len(changed) != 0 {
		t.Errorf("again, and changed are %q, %v", changed, err)
	}
	for path, was := range before {
		if is, err := os.Lstat(path); err != nil || !os.SameFile(was, is) {
			t.Errorf("%s was right, and was made anew: %v", path, err)
		}
	}
	check(t, folder)
}

// What is not as it should be is mended, and nothing else.
func TestApplyMends(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	_, err := plan(folder).Apply()
	must(t, err)
	must(t, files.Write(at("victim"), 0o600, []byte("the victim's")))
	// instead puts something else in the place of what is there.
	instead := func(name string, plant func(path string) error) func() error {
		return func() error { return errors.Join(os.Remove(at(name)), plant(at(name))) }
	}
	link := func(target string) func(string) error {
		return func(path string) error { return os.Symlink(target, path) }
	}
	fifo := func(path string) error { return unix.Mkfifo(path, 0o666) }
	file := func(path string) error { return os.WriteFile(path, nil, 0o600) }
	empty := func(path string) error { return os.Mkdir(path, 0o755) }
	longer := func() error { return os.WriteFile(at("etc/hostname"), []byte("dev\nx"), 0) }
	for what, c := range map[string]struct {
		changed string
		spoil   func() error
	}{
		"a mode":            {"tmp", func() error { return os.Chmod(at("tmp"), 0o700) }},
		"an open mode":      {"root", func() error { return os.Chmod(at("root"), 0o777) }},
		"a file's mode":     {"run/secret", func() error { return os.Chmod(at("run/secret"), 0o644) }},
		"a file's content":  {"etc/hostname", longer},
		"a shorter content": {"etc/hostname", func() error { return os.Truncate(at("etc/hostname"), 1) }},

		"a link for a file": {"run/secret", instead("run/secret", link(at("victim")))},
		"a FIFO for a file": {"run/secret", instead("run/secret", fifo)},

		"another link":        {"bin/sh", instead("bin/sh", link(at("victim")))},
		"a file for a link":   {"bin/sh", instead("bin/sh", file)},
		"a FIFO for a link":   {"bin/sh", instead("bin/sh", fifo)},
		"a socket for a link": {"bin/sh", instead("bin/sh", listen)},
		"a folder for a link": {"bin/sh", instead("bin/sh", empty)},

		"a loop for a folder":           {"root", instead("root", link("root"))},
		"a dangling link for a folder":  {"root", instead("root", link("nowhere"))},
		"a link to a file for a folder": {"root", instead("root", link("victim"))},
		"a FIFO for a folder":           {"root", instead("root", fifo)},
		"a socket for a folder":         {"root", instead("root", listen)},
	} {
		must(t, c.spoil())
		changed, err := plan(folder).Apply()
		if err != nil || !reflect.DeepEqual(changed, []string{at(c.changed)}) {
			t.Errorf("%s: changed are %q, %v", what, changed, err)
		}
		check(t, folder)
	}
	if got := read(at("victim")); got != "the victim's" || modeOf(at("victim")) != 0o600 {
		t.Errorf("a link was followed: %q, %v", got, modeOf(at("victim")))
	}
}

// listen leaves a socket.
func listen(path string) error {
	listener, err := net.Listen("unix", path)
	if err == nil {
		listener.(*net.UnixListener).SetUnlinkOnClose(false)
		err = listener.Close()
	}
	return err
}

// What may be somebody's is refused by its name, and the rest is done.
func TestApplyRefusesWhatMayBeSomebodys(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	must(t, files.Write(at("full/inner"), 0o600, []byte("inner")), files.Write(at("file"), 0o600, []byte("file")),
		os.Mkdir(at("folder"), 0o755))
	_, err := Plan{
		Links:   []Link{{at("full"), "x"}, {at("file/below"), "x"}},
		Folders: []Folder{{at("file"), "755"}, {at("good"), "755"}},
		Files:   []files.File{{Path: at("folder"), Mode: "600", Content: []byte{}}},
	}.Apply()
	for _, problem := range []string{
		at("full") + " is a folder that is in use, where a link to x is needed; remove it or move it away",
		at("file/below") + " cannot be made: " + at("file") + " is a regular file where a folder is needed; remove it",
		at("file") + " is a regular file where a folder is needed; remove it or move it away",
		at("folder") + " is a folder where a file is to be written; remove it or move it away",
	} {
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("got %v, want %s", err, problem)
		}
	}
	if read(at("full/inner")) != "inner" || read(at("file")) != "file" || modeOf(at("good")) != fs.ModeDir|0o755 {
		t.Error("something was lost, or the rest not made")
	}
	mounted := at("mounted")
	must(t, os.Mkdir(mounted, 0o755))
	if err := unix.Mount("boot-test", mounted, "tmpfs", 0, ""); err != nil {
		t.Skip("mounts take root: ", err)
	}
	t.Cleanup(func() { unix.Unmount(mounted, unix.MNT_DETACH) })
	_, err = Plan{Links: []Link{{mounted, "x"}}}.Apply()
	if want := mounted + " is a folder that is in use, "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestApplyRefusesItsInput(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	_, err := Plan{
		Folders: []Folder{{at("good"), "755"}, {"relative", "755"}, {at("mode"), "2777"}, {at("twice"), "755"}},
		Links:   []Link{{at("void"), ""}, {"/a/../b", "x"}, {at("twice"), "x"}},
		Files:   []files.File{{Path: at("void"), Mode: "600"}, {Path: at("good"), Mode: "x", Content: []byte{}}},
	}.Apply()
	for _, problem := range []string{
		`path "relative": an absolute path`, `mode "2777": an octal number from 0 to 1777 is needed`,
		fmt.Sprintf("link %q: it has no target", at("void")), `path "/a/../b": an absolute path`,
		fmt.Sprintf("path %q: it is there twice", at("twice")), fmt.Sprintf("path %q: it has no content", at("void")),
		`mode "x": an octal number from 0 to 777`, fmt.Sprintf("path %q: it is there twice", at("good")),
	} {
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("got %v, want %s", err, problem)
		}
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 0 {
		t.Errorf("made all the same: %v, %v", entries, err)
	}
}
