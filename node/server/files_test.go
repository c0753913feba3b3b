package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk is a file system of its own, and what fills it up to the last byte and makes room again.
func smallDisk(t *testing.T) (folder string, fill, makeRoom func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	folder = t.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(folder, "filler")
	fill = func() {
		t.Helper()
		if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("the disk is not full: %v", err)
		}
	}
	return folder, fill, func() { os.Remove(filler) }
}

func names(t *testing.T, folder string) string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, entry := range entries {
		list = append(list, entry.Name())
	}
	return strings.Join(list, " ")
}

func TestWritePrivate(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "file")
	for _, content := range []string{"first", "a longer second", "", "third"} {
		if err := writePrivate(file, []byte(content)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil || info.Mode() != 0o600 || names(t, folder) != "file" {
			t.Errorf("%v, %v, %q", info, err, names(t, folder))
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != content {
			t.Errorf("got %q, %v, want %q", got, err, content)
		}
	}
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := writePrivate(file, []byte("third")); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
		t.Errorf("the same content was written again: %v", err)
	}
	// What others can read is replaced, whatever is in it; and a link is, not what it leads to.
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("third"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, prepare := range map[string]func() error{
		"others can read it": func() error { return os.Chmod(file, 0o644) },
		"a link":             func() error { return errors.Join(os.Remove(file), os.Symlink(other, file)) },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if err := writePrivate(file, []byte("third")); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Lstat(file); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", what, info, err)
		}
	}
}

// On a full disk a file stays as it was, an error tells why, and no half of another is left.
func TestWritePrivateOnFullDisk(t *testing.T) {
	folder, fill, makeRoom := smallDisk(t)
	file := filepath.Join(folder, "file")
	if err := writePrivate(file, []byte("before")); err != nil {
		t.Fatal(err)
	}
	fill()
	content := bytes.Repeat([]byte("after"), 10_000)
	if err := writePrivate(file, content); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "before" || names(t, folder) != "file filler" {
		t.Errorf("there is %q, %v, in %q", got, err, names(t, folder))
	}
	if err := writePrivate(file, []byte("before")); err != nil {
		t.Errorf("what is there already needs no room: %v", err)
	}
	makeRoom()
	if err := writePrivate(file, content); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
		t.Errorf("there are %d bytes, %v", len(got), err)
	}
}

// A full disk costs no key and no certificate: a server that is started on one goes on with what it has, and tells what
// it could not renew.
func TestCertificatesOnFullDisk(t *testing.T) {
	folder, fill, makeRoom := smallDisk(t)
	config := configFor(t, "")
	config.DataDir = folder
	p := prepare(t, config)
	exists(t, config)
	fill()
	prepare(t, config)
	reissueInPlace(t, p, "scheduler", time.Now().Add(time.Hour))
	before := privates(t, config)
	_, err := preparePKI(config)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "certificate scheduler: ") {
		t.Errorf("a full disk: %v", err)
	}
	if changed := differing(before, privates(t, config)); changed != nil {
		t.Errorf("changed: %v", changed)
	}
	makeRoom()
	prepare(t, config)
	if left := time.Until(certificate(t, p.cert("scheduler")).NotAfter); left < p.renewBefore() {
		t.Errorf("with room again the certificate is good for %s only", left)
	}
	for _, name := range []string{"stages.json", "manifests.json"} {
		if err := writePrivate(config.path("server", name), []byte("{}")); err != nil {
			t.Error(err)
		}
	}
}

// reissueInPlace is reissue where no room is left for a second file.
func reissueInPlace(t *testing.T, p *pki, name string, end time.Time) {
	t.Helper()
	elsewhere := *p.config
	elsewhere.DataDir = t.TempDir()
	if err := os.CopyFS(elsewhere.DataDir, os.DirFS(p.config.DataDir)); err != nil {
		t.Fatal(err)
	}
	changed := &pki{config: &elsewhere, life: p.life}
	reissue(t, changed, name, leafOf(t, p, name).ca, end)
	content, err := os.ReadFile(changed.cert(name))
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(p.cert(name), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
}
