package main

import (
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
)

// supervisor is the only one of this process: it reaps every child, so nothing here may use os/exec.
var supervisor *Supervisor

// Variables that tell this program, started anew, what it is.
const (
	asItself = "SANDBOX_INIT_TEST_AS_ITSELF" // sandbox-init with these arguments
	private  = "SANDBOX_INIT_TEST_PRIVATE"   // the tests, in a mount namespace of their own or with the reason why not
)

func TestMain(m *testing.M) {
	if os.Getenv(asItself) != "" {
		main()
		return
	}
	if os.Getenv(private) == "" {
		os.Setenv(private, enterMountNamespace())
		// Only exec moves all of a process into the namespace that one of its threads has entered.
		fmt.Fprintln(os.Stderr, unix.Exec("/proc/self/exe", os.Args, os.Environ()))
		os.Exit(1)
	}
	// Process 1 inherits orphans; a test process has to ask for them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become a subreaper:", err)
		os.Exit(1)
	}
	supervisor = NewSupervisor()
	code := m.Run()
	supervisor.StopAll()
	os.Exit(code)
}

func enterMountNamespace() string {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Sprintf("a mount namespace of its own is needed, which takes root: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Sprintf("mounts can't be made private: %v", err)
	}
	return "yes"
}

func needMounts(t *testing.T) {
	t.Helper()
	if reason := os.Getenv(private); reason != "yes" {
		t.Skip(reason)
	}
}

// await polls for a condition; the deadline is there for broken code only, and its message shows the last state.
func await(t *testing.T, what string, condition func() bool, logs ...string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, log := range logs {
				t.Logf("%s:\n%s", log, read(log))
			}
			t.Fatalf("never came: %s; services: %+v", what, supervisor.Status())
		}
	}
}

func read(path string) string {
	content, _ := os.ReadFile(path)
	return string(content)
}

func TestWriteAtomically(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // the mode that is asked for counts, not what the umask leaves of it
	path := filepath.Join(t.TempDir(), "file")
	for _, mode := range []os.FileMode{0o600, 0o666, 0o444, 0o755} {
		content := fmt.Sprintf("content for %o", mode)
		if err := writeAtomically(path, fmt.Sprintf("%o", mode), strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode() != mode || read(path) != content {
			t.Errorf("mode %o: got %v, %v, %q", mode, info.Mode(), err, read(path))
		}
	}

	before := read(path)
	halfway := io.MultiReader(strings.NewReader("new "), readerFunc(func() {
		if got := read(path); got != before {
			t.Errorf("a watcher reads %q while the file is being written", got)
		}
	}), strings.NewReader("content"))
	if err := writeAtomically(path, "0644", halfway); err != nil || read(path) != "new content" {
		t.Errorf("got %v, %q", err, read(path))
	}

	broken := iotest.ErrReader(errors.New("the host went away"))
	if err := writeAtomically(path, "0644", io.MultiReader(strings.NewReader("half"), broken)); err == nil || read(path) != "new content" {
		t.Errorf("a broken input: %v, %q", err, read(path))
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("something was left beside the file: %v", entries)
	}
	for _, mode := range []string{"", "rw", "888", "1000", "-1"} {
		want := fmt.Sprintf("mode %q: an octal number from 0 to 777 is needed", mode)
		if err := writeAtomically(path, mode, strings.NewReader("")); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// readerFunc is an empty input that acts when it is read.
type readerFunc func()

func (f readerFunc) Read([]byte) (int, error) { f(); return 0, io.EOF }

func TestControlHandler(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	t.Cleanup(func() { supervisor.Stop("web") })
	good := fmt.Sprintf(`{"name":"web","command":["/bin/sleep","1000"],"log":%q,"stopSeconds":5}`, log)
	cases := []struct {
		name, method, target, body string
		code                       int
		answer                     string // part of it
	}{
		{"nothing runs yet", "GET", "/status", "", 200, `{}`},
		{"an unknown field is refused", "POST", "/put", strings.Replace(good, `"log"`, `"logg"`, 1), 400, `service: json: unknown field "logg"`},
		{"a bad description is refused", "POST", "/put", strings.Replace(good, `:5`, `:0`, 1), 400, `stopSeconds 0: 1 to 600 is allowed`},
		{"put starts", "POST", "/put", good, 200, `{"web":{"pid":`},
		{"restart answers with the state", "POST", "/restart?name=web", "", 200, `"restarts":0`},
		{"restart of an unknown service names the known ones", "POST", "/restart?name=nope", "", 400, `no service "nope"; there are ["web"]`},
		{"stop forgets", "POST", "/stop?name=web", "", 200, `{}`},
		{"stop again is no error", "POST", "/stop?name=web", "", 200, `{}`},
		{"a change needs POST", "GET", "/stop?name=web", "", 405, ``},
	}
	handler := controlHandler(supervisor)
	for _, c := range cases { // in order: each builds on the one before
		t.Run(c.name, func(t *testing.T) {
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, httptest.NewRequest(c.method, c.target, strings.NewReader(c.body)))
			if answer := recorder.Body.String(); recorder.Code != c.code || !strings.Contains(answer, c.answer) {
				t.Errorf("got %d %s, want %d %s", recorder.Code, answer, c.code, c.answer)
			}
		})
	}
}

// The whole program: process 1 below this one, and its own client in front of it.
func TestProgram(t *testing.T) {
	needMounts(t) // /run is the host's
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount("/run", unix.MNT_DETACH) })
	folder := t.TempDir()
	log, tidied := filepath.Join(folder, "log"), filepath.Join(folder, "tidied")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	put(t, Service{Name: "init", Command: []string{program, "run"}, Env: []string{asItself + "=1"}, Log: log, StopSeconds: 30})
	await(t, "the control socket", func() bool { _, err := os.Stat(controlSocket); return err == nil }, log)

	// An answer comes only after the socket's mode was set, so the mode is looked at afterwards.
	if output, err := client(t, "", "service", "status"); err != nil || output != "{}\n" {
		t.Fatalf("status: %q, %v", output, err)
	}
	if info, err := os.Stat(controlSocket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("everybody may control the sandbox: %v, %v", info.Mode(), err)
	}
	inner := filepath.Join(folder, "inner")
	description := fmt.Sprintf(`{"name":"inner","command":["/bin/sh","-c","trap 'echo > %s; exit' TERM; echo ready; while :; do sleep 0.1; done"],"log":%q,"stopSeconds":30}`, tidied, inner)
	if output, err := client(t, description, "service", "put"); err != nil || !strings.HasPrefix(output, `{"inner":{"pid":`) {
		t.Fatalf("put: %q, %v", output, err)
	}
	if _, err := client(t, "", "service", "restart", "outer"); err == nil || err.Error() != "no service \"outer\"; there are [\"inner\"]\n" {
		t.Errorf("the client hides the server's error: %v", err)
	}
	await(t, "the inner service", func() bool { return strings.Contains(read(inner), "ready") }, log, inner)
	supervisor.Stop("init")
	if _, err := os.Stat(tidied); err != nil {
		t.Errorf("the inner service was not stopped with SIGTERM: %v", err)
	}
	for _, arguments := range [][]string{{}, {"runn"}, {"service", "put", "x"}, {"service", "stop"}, {"write", "x"}} {
		if _, err := client(t, "", arguments...); err == nil || err.Error() != usage {
			t.Errorf("%q: got %v, want the usage", arguments, err)
		}
	}
}

// client runs a command of this program in this process, with input on its standard input.
func client(t *testing.T, input string, arguments ...string) (output string, err error) {
	t.Helper()
	in, out := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(in, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func(in, out *os.File) { os.Stdin, os.Stdout = in, out }(os.Stdin, os.Stdout)
	if os.Stdin, err = os.Open(in); err != nil {
		t.Fatal(err)
	}
	defer os.Stdin.Close()
	if os.Stdout, err = os.Create(out); err != nil {
		t.Fatal(err)
	}
	defer os.Stdout.Close()
	err = dispatch(arguments)
	return read(out), err
}
