package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gvisor-k3s/node/init/nstest"
	"gvisor-k3s/node/init/service"

	"golang.org/x/sys/unix"
)

// Variables that tell this program, started anew, what it is.
const (
	asItself = "SANDBOX_INIT_TEST_AS_ITSELF" // sandbox-init with these arguments
	hurried  = "SANDBOX_INIT_TEST_PATIENCE"  // with less patience
)

func TestMain(m *testing.M) {
	if os.Getenv(asItself) != "" {
		if short, err := time.ParseDuration(os.Getenv(hurried)); err == nil {
			patience = short
		}
		main()
		return
	}
	if os.Getenv(asWatcher) != "" {
		fmt.Println(watch(os.Args[1]))
		return
	}
	nstest.Enter()
	os.Exit(m.Run())
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func contentOf(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

// result is how the program ended.
type result struct {
	code           int
	stdout, stderr string
}

func itself(input string, arguments ...string) *exec.Cmd {
	command := exec.Command("/proc/self/exe", arguments...)
	command.Env = append(os.Environ(), asItself+"=1")
	command.Stdin = strings.NewReader(input)
	return command
}

// run runs the program.
func run(t *testing.T, input string, arguments ...string) result {
	t.Helper()
	return finish(t, itself(input, arguments...))
}

func finish(t *testing.T, command *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	var ended *exec.ExitError
	if err := command.Run(); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return result{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// says runs the program, which must end well, and returns what it prints.
func says(t *testing.T, input string, arguments ...string) string {
	t.Helper()
	got := run(t, input, arguments...)
	if got.code != 0 || got.stderr != "" {
		t.Errorf("%q: %+v", arguments, got)
	}
	return got.stdout
}

func encode(t *testing.T, value any) string {
	t.Helper()
	content, err := json.Marshal(value)
	must(t, err)
	return string(content)
}

// await polls for a condition; the deadline is there for broken code only.
func await(t *testing.T, what string, condition func() bool, logs ...string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, log := range logs {
				t.Logf("%s:\n%s", log, contentOf(log))
			}
			t.Fatal("never came: " + what)
		}
	}
}

// process1 is the program as what supervises; it has /run and /var/lib for itself.
type process1 struct {
	t       *testing.T
	command *exec.Cmd
	log     string
}

func startProcess1(t *testing.T) *process1 {
	t.Helper()
	nstest.Tmpfs(t, "/run", "")
	nstest.Tmpfs(t, "/var/lib", "")
	p := &process1{t: t, log: filepath.Join(t.TempDir(), "log")}
	p.start()
	// In order, so that no service outlives it and writes into the folder that is removed next.
	t.Cleanup(func() { p.end(unix.SIGTERM) })
	return p
}

func (p *process1) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	must(p.t, err)
	defer log.Close()
	p.command = itself("", "run")
	p.command.Stdout, p.command.Stderr = log, log
	must(p.t, p.command.Start())
	await(p.t, "process 1 answers", func() bool { return run(p.t, "", "service", "status").code == 0 }, p.log)
}

// end ends it by a signal, and waits until it has.
func (p *process1) end(signal unix.Signal) {
	p.command.Process.Signal(signal)
	p.command.Process.Signal(unix.SIGCONT)
	p.command.Wait()
}

// stopping is a service that tells when it starts and is ended.
func stopping(name, journal string) service.Service {
	script := fmt.Sprintf("trap 'echo -%s >> %s; exit' TERM; echo +%s >> %s; echo ready; while :; do sleep 0.1; done",
		name, journal, name, journal)
	return service.Service{
		Name: name, Command: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"},
		Log: journal + "." + name, StopSeconds: 30,
	}
}

// The whole program: process 1, and its own client in front of it.
func TestProgram(t *testing.T) {
	p := startProcess1(t)
	journal := filepath.Join(t.TempDir(), "journal")

	// An answer comes only after the socket's mode was set.
	if output := says(t, "", "service", "status"); output != "{}\n" {
		t.Errorf("status: %q", output)
	}
	if info, err := os.Stat(service.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("everybody may control the sandbox: %v, %v", info.Mode(), err)
	}
	inner := stopping("inner", journal)
	if output := says(t, encode(t, inner), "service", "put"); !strings.HasPrefix(output, `{"inner":{"pid":`) {
		t.Errorf("put: %q", output)
	}
	got := run(t, "", "service", "restart", "outer")
	if want := (result{1, "", "sandbox-init: no service \"outer\"; there are [\"inner\"]\n"}); got != want {
		t.Errorf("the client hides the server's error: %+v", got)
	}
	output := says(t, `{"seconds":30}`, "service", "await", "inner")
	var outcome service.Outcome
	if err := json.Unmarshal([]byte(output), &outcome); err != nil || !outcome.Reached || outcome.State.PID == 0 {
		t.Errorf("await: %q, %v", output, err)
	}
	output = says(t, `{"file":"/none","seconds":1}`, "service", "await", "inner")
	if !strings.HasPrefix(output, `{"reached":false,"why":"not within 1 s","state":{"pid":`) ||
		!strings.Contains(output, `"log":"ready"}`) {
		t.Errorf("await: %q", output)
	}
	await(
		t,
		"the inner service",
		func() bool { return strings.Contains(contentOf(inner.Log), "ready") },
		p.log,
		inner.Log,
	)
	if output := says(t, "", "service", "stop", "none"); !strings.HasPrefix(output, `{"inner":{"pid":`) {
		t.Errorf("stop: %q", output)
	}
	p.end(unix.SIGTERM)
	if got := contentOf(journal); got != "+inner\n-inner\n" {
		t.Errorf("the inner service was not ended with SIGTERM: %q", got)
	}
	if got := contentOf(p.log); got != "" {
		t.Errorf("process 1 said %q", got)
	}
}

// A check that fails keeps what runs; where nothing runs, the start itself tells.
func TestCheckBeforehand(t *testing.T) {
	startProcess1(t)
	checked := stopping("checked", filepath.Join(t.TempDir(), "journal"))
	checked.Check = []string{"/bin/sh", "-c", "echo no good; exit 3"}
	before := says(t, encode(t, checked), "service", "put")
	checked.Revision = "2"
	got := run(t, encode(t, checked), "service", "put")
	want := result{1, "", "sandbox-init: /bin/sh -c echo no good; exit 3: exit status 3\nno good\n\n"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if now := says(t, "", "service", "status"); now != before {
		t.Errorf("what ran, %s, became %s", before, now)
	}
	checked.Check = []string{"/bin/sh", "-c", "exit 0"}
	if now := says(t, encode(t, checked), "service", "put"); now == before {
		t.Error("with a check that is content it is not restarted")
	}
}

// Nobody waits for ever for a process 1 that was stopped.
func TestProcess1ThatWasStopped(t *testing.T) {
	p := startProcess1(t)
	must(t, p.command.Process.Signal(unix.SIGSTOP))
	await(t, "it is stopped", func() bool {
		return strings.Contains(contentOf(fmt.Sprintf("/proc/%d/stat", p.command.Process.Pid)), ") T ")
	})
	client := service.NewClient(service.Socket).Within(100 * time.Millisecond)
	for _, verb := range []string{"status", "restart", "stop"} {
		arguments := map[string][]string{"restart": {"a"}, "stop": {"a"}}[verb]
		err := serviceCommand(client, verb, arguments)
		if err == nil ||
			!strings.HasPrefix(
				err.Error(),
				"sandbox-init has not answered within 100ms: it hangs, or somebody has stopped it; ",
			) {
			t.Errorf("%s: %v", verb, err)
		}
	}
}

func TestNothingSupervises(t *testing.T) {
	nstest.Tmpfs(t, "/run", "")
	for _, arguments := range [][]string{{"service", "status"}, {"service", "stop", "a"}, {"boot", "--replay"}} {
		got := run(t, "", arguments...)
		if got.code != 1 ||
			!strings.HasPrefix(
				got.stderr,
				"sandbox-init: no sandbox-init supervises services here; `gvisor-k3s up` starts one",
			) {
			t.Errorf("%q: %+v", arguments, got)
		}
	}
}

// A sandbox that was killed has in its next life what it had in the last, until somebody begins anew.
func TestReplay(t *testing.T) {
	p := startProcess1(t)
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	journal := at("journal")
	if output := says(t, "", "boot", "--replay"); output != "{\"facade\":false,\"services\":[]}\n" {
		t.Errorf("a first life has %q", output)
	}
	plan := fmt.Sprintf(`{"settings":[],"files":[{"path":%q,"content":"x"}],"mounts":[],"nodes":[]}`, at("facade"))
	says(t, plan, "facade")
	for _, name := range []string{"c", "a", "gone", "b"} {
		says(t, encode(t, stopping(name, journal)), "service", "put")
		await(t, name+" runs", func() bool { return strings.Contains(contentOf(journal), "+"+name) }, p.log)
	}
	says(t, "", "service", "stop", "gone")
	killed := func() {
		t.Helper()
		services := "^/bin/sh -c trap.*" + journal
		// What was put last may only be about to run.
		await(t, "a service runs", func() bool { return exec.Command("pgrep", "-f", services).Run() == nil }, p.log)
		p.end(unix.SIGKILL)
		must(t, exec.Command("pkill", "-KILL", "-f", services).Run())
		os.Remove(journal)
		os.Remove(at("facade"))
		p.start()
	}
	for _, life := range []string{"second", "third"} {
		killed()
		if output := says(t, "", "boot", "--replay"); output != "{\"facade\":true,\"services\":[\"c\",\"a\",\"b\"]}\n" {
			t.Errorf("the %s life has %q", life, output)
		}
		await(t, "all run", func() bool { return strings.Count(contentOf(journal), "+") == 3 }, p.log)
		if got := contentOf(at("facade")); got != "x" {
			t.Errorf("in the %s life the facade holds %q", life, got)
		}
	}
	// The end that is asked for forgets nothing, either.
	p.end(unix.SIGTERM)
	p.start()
	replayed := says(t, "", "boot", "--replay")
	if replayed != "{\"facade\":true,\"services\":[\"c\",\"a\",\"b\"]}\n" {
		t.Errorf("after an end in order there is %q", replayed)
	}

	// One that cannot be started keeps no other from it, and is told each time.
	broken := stopping("broken", journal)
	broken.Command = []string{"/no/such/program"}
	if got := run(t, encode(t, broken), "service", "put"); got.code != 1 {
		t.Errorf("put: %+v", got)
	}
	for range 2 {
		killed()
		got := run(t, "", "boot", "--replay")
		if got.code != 1 || !strings.HasPrefix(got.stderr, "sandbox-init: service broken: ") ||
			got.stdout != "{\"facade\":true,\"services\":[\"c\",\"a\",\"b\"]}\n" {
			t.Errorf("got %+v", got)
		}
	}

	// A damaged note is told by its name, and skipped.
	p.end(unix.SIGTERM)
	must(t, os.Truncate(service.NotesFile, 20))
	p.start()
	got := run(t, "", "boot", "--replay")
	why := service.NotesFile + ", which tells what ran before, cannot be read, so nothing of that is started again: "
	if got.code != 0 || !strings.HasPrefix(got.stderr, "sandbox-init: "+why) ||
		!strings.HasPrefix(got.stdout, `{"facade":false,"services":[],"problem":"`+why) {
		t.Errorf("got %+v", got)
	}
	if log := contentOf(p.log); !strings.Contains(log, "sandbox-init: "+why) {
		t.Errorf("process 1 said %q", log)
	}

	// Whoever boots again has it back, and whoever boots anew begins with nothing.
	says(t, plan, "facade")
	says(t, encode(t, stopping("a", journal)), "service", "put")
	for _, last := range []struct{ boot, replayed string }{
		{"boot", "{\"facade\":true,\"services\":[\"a\"]}\n"},
		{"boot --forget", "{\"facade\":false,\"services\":[]}\n"},
	} {
		killed()
		plan := `{"folders":[],"files":[],"links":[]}`
		if output := says(t, plan, strings.Fields(last.boot)...); output != "{\"changed\":[]}\n" {
			t.Errorf("%s: %q", last.boot, output)
		}
		if output := says(t, "", "boot", "--replay"); output != last.replayed {
			t.Errorf("after %s there is %q", last.boot, output)
		}
	}
}

func TestBoot(t *testing.T) {
	startProcess1(t)
	folder := t.TempDir()
	plan := fmt.Sprintf(
		`{"folders":[{"path":"%[1]s/tmp","mode":"1777"}],"links":[{"path":"%[1]s/bin/sh","target":"busybox"}],`+
			`"files":[{"path":"%[1]s/etc/hostname","mode":"644","content":"ZGV2Cg=="}]}`,
		folder,
	)
	changed := fmt.Sprintf("{\"changed\":[\"%[1]s/bin/sh\",\"%[1]s/tmp\",\"%[1]s/etc/hostname\"]}\n", folder)
	if output := says(t, plan, "boot"); output != changed {
		t.Errorf("got %q, want %q", output, changed)
	}
	if output := says(t, plan, "boot"); output != "{\"changed\":[]}\n" {
		t.Errorf("again: %q", output)
	}
	if content := contentOf(filepath.Join(folder, "etc/hostname")); content != "dev\n" {
		t.Errorf("the file holds %q", content)
	}
	got := run(t, `{"folders":[],"files":[],"links":[],"mounts":[]}`, "boot")
	if got.code != 1 || got.stderr != "sandbox-init: standard input, boot plan: json: unknown field \"mounts\"\n" {
		t.Errorf("got %+v", got)
	}
}

func TestFiles(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	put := fmt.Sprintf(
		`[{"path":%q,"mode":"600","content":"AP8KeA=="},{"path":%q,"mode":"644","content":""}]`,
		at("a/b/binary"),
		at("empty"),
	)
	must(t, unix.Mkfifo(at("fifo"), 0o666))
	const hashOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	ok := func(stdout string) result { return result{0, stdout, ""} }
	failed := func(code int, stderr string) result { return result{code, "", "sandbox-init: " + stderr + "\n"} }
	cases := []struct {
		input     string
		arguments []string
		want      result
	}{
		{put, []string{"put"}, ok("")},
		{"", []string{"get", at("a/b/binary")}, ok("\x00\xff\nx")},
		{"", []string{"get", at("empty")}, ok("")},
		{"", []string{"get", at("a/b/binary"), "--tail", "2"}, ok("\nx")},
		{"", []string{"get", at("a/b/binary"), "--limit", "2", "--tail", "2"}, ok("\nx")},
		{"", []string{"get", at("a/b/binary"), "--tail", "3", "--limit", "2"},
			failed(1, "--tail 3: at most 2 bytes are read; give another --limit")},
		{"", []string{"get", at("a/b/binary"), "--limit", "3"},
			failed(1, at("a/b/binary")+" is too large: it has 4 bytes, and at most 3 are read")},
		{"", []string{"get", at("a/b/binary"), "--limit", "-1"}, failed(1, "--limit -1: a number of bytes is needed")},
		{"", []string{"get", at("a/b/binary"), "--limit"}, failed(1, errUsage.Error())},
		{"", []string{"get", at("a/b/binary"), "--head", "2"}, failed(1, errUsage.Error())},
		{
			"",
			[]string{"get", at("none")},
			failed(3, "there is no "+at("none")+" (open "+at("none")+": no such file or directory)"),
		},
		{"", []string{"get", at("none"), "--tail", "2"},
			failed(3, "there is no "+at("none")+" (open "+at("none")+": no such file or directory)")},
		{"", []string{"get", at("fifo")}, failed(1, at("fifo")+" is a FIFO and no regular file")},
		{"", []string{"get", at("a")}, failed(1, at("a")+" is a folder and no regular file")},
		{encode(t, []string{at("empty"), at("none")}), []string{"hash"},
			ok(fmt.Sprintf(`{%q:{"sha256":%q},%q:{"absent":true}}`+"\n", at("empty"), hashOfNothing, at("none")))},
		{"", []string{"changed", at("empty"), "60", "00"}, ok("")},
		{"", []string{"changed", at("empty"), "0", hashOfNothing}, ok("")},
		{"", []string{"changed", at("empty"), "61"}, failed(1, `seconds "61": 0 to 60 is allowed`)},
		{"", []string{"changed", at("none"), "0"},
			failed(3, "there is no "+at("none")+" (stat "+at("none")+": no such file or directory)")},
		{`{"folders":["/none"],"seconds":1}`, []string{"usage"}, failed(1, "statfs /none: no such file or directory")},
		{"", []string{"list", folder}, ok("[\"empty\"]\n")},
		{"", []string{"list", at("none")}, ok("[]\n")},
		{"", []string{"list", at("fifo")}, failed(1, at("fifo")+" is a FIFO and no folder")},
		{encode(t, []string{at("a"), at("none"), at("fifo")}), []string{"remove"}, ok("")},
		{"", []string{"get", at("a/b/binary")},
			failed(3, "there is no "+at("a/b/binary")+" (open "+at("a/b/binary")+": no such file or directory)")},
		{`["/"]`, []string{"remove"}, failed(1, `path "/": everything is not removed`)},
		{`{"path":"x"}`, []string{"put"},
			failed(1, "standard input, files: json: cannot unmarshal object into Go value of type []files.File")},
		{`[{"path":"/x","mode":"600","content":"no base64"}]`, []string{"put"},
			failed(1, "standard input, files: illegal base64 data at input byte 2")},
		{`[{"path":"/x","mode":"600","contents":""}]`, []string{"put"},
			failed(1, `standard input, files: json: unknown field "contents"`)},
		{"", []string{"hash"}, failed(1, "standard input, paths: there is none: JSON is needed")},
		{"", []string{"remove"}, failed(1, "standard input, paths: there is none: JSON is needed")},
	}
	for _, c := range cases { // in order: some build on those before
		if got := run(t, c.input, append([]string{"files"}, c.arguments...)...); got != c.want {
			t.Errorf("files %q: got %+v, want %+v", c.arguments, got, c.want)
		}
	}
}

// A file system that never answers, such as a root in the sandbox can mount, is not waited for without end.
func TestFileSystemThatNeverAnswers(t *testing.T) {
	nstest.Need(t)
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("there is no FUSE here: ", err)
	}
	target := filepath.Join(t.TempDir(), "fuse")
	must(t, os.Mkdir(target, 0o755))
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", device.Fd())
	if err := unix.Mount("nobody", target, "fuse", 0, options); err != nil {
		t.Skip("FUSE cannot be mounted here: ", err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	t.Cleanup(func() { device.Close() }) // first of all: whoever waits then gets an error
	path := filepath.Join(target, "file")
	for input, arguments := range map[string][]string{
		"":                        {"files", "get", path},
		encode(t, []string{path}): {"files", "hash"},
		fmt.Sprintf(`[{"path":%q,"mode":"600","content":""}]`, path): {"files", "put"},
	} {
		command := itself(input, arguments...)
		command.Env = append(command.Env, hurried+"=200ms")
		got := finish(t, command)
		want := fmt.Sprintf("sandbox-init: %s %s has not ended within 200ms: something below the paths does not answer",
			arguments[0], arguments[1])
		if got.code != 1 || !strings.HasPrefix(got.stderr, want) {
			t.Errorf("%q: %+v", arguments, got)
		}
	}
}

// The lock belongs to the open file, so it is the caller's when the program has ended.
func TestFlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		t.Helper()
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		t.Cleanup(func() { file.Close() })
		return file
	}
	flock := func(file *os.File, arguments ...string) result {
		t.Helper()
		command := itself("", append([]string{"flock"}, arguments...)...)
		command.ExtraFiles = []*os.File{file}
		return finish(t, command)
	}
	held := result{4, "", "sandbox-init: somebody else has the lock\n"}
	first, second, third := open(), open(), open()
	for _, c := range []struct {
		file      *os.File
		arguments []string
		want      result
	}{
		{first, nil, result{}},
		{first, []string{"--nonblock"}, result{}}, // one's own is no hindrance
		{second, []string{"--nonblock"}, held},
		{second, []string{"--nonblock", "--shared"}, held},
		{first, []string{"--shared"}, result{}},
		{second, []string{"--shared", "--nonblock"}, result{}},
		{third, []string{"--nonblock"}, held},
		{third, []string{"--exclusive"}, result{1, "", "sandbox-init: " + errUsage.Error() + "\n"}},
	} {
		if got := flock(c.file, c.arguments...); got != c.want {
			t.Errorf("flock %q: got %+v, want %+v", c.arguments, got, c.want)
		}
	}

	// Without --nonblock it waits until both have let go.
	command := itself("", "flock")
	command.ExtraFiles = []*os.File{third}
	must(t, command.Start())
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	await(t, "it waits in flock", func() bool {
		return strings.Contains(
			contentOf("/proc/locks"),
			fmt.Sprintf("-> FLOCK  ADVISORY  WRITE %d ", command.Process.Pid),
		) ||
			noLocksFile()
	})
	first.Close()
	select {
	case err := <-ended:
		t.Fatalf("it has ended, %v, and somebody has the lock still", err)
	default:
	}
	second.Close()
	must(t, <-ended)
	if got := flock(open(), "--nonblock"); got != held {
		t.Errorf("the lock went with the process that took it: %+v", got)
	}
	third.Close()
	if got := flock(open(), "--nonblock"); got != (result{}) {
		t.Errorf("got %+v", got)
	}
}

// noLocksFile is gVisor, which does not tell who waits for a lock.
func noLocksFile() bool {
	_, err := os.Stat("/proc/locks")
	return err != nil
}

func TestFlockWithoutAFile(t *testing.T) {
	got := run(t, "", "flock")
	// Though the runtime may have a file open there.
	const advice = "; it must be the open file that is to be locked\n"
	if want := (result{1, "", "sandbox-init: descriptor 3: bad file descriptor" + advice}); got != want {
		t.Errorf("no descriptor: %+v", got)
	}
	reader, writer, err := os.Pipe()
	must(t, err)
	defer reader.Close()
	defer writer.Close()
	command := itself("", "flock")
	command.ExtraFiles = []*os.File{reader}
	got = finish(t, command)
	if want := (result{1, "", "sandbox-init: descriptor 3 is no file" + advice}); got != want {
		t.Errorf("a pipe: %+v", got)
	}
}

func TestHold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locks", "dev")
	if output := says(t, "the first\n", "hold", path); output != "held\n" {
		t.Errorf("got %q", output)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if output := says(t, "the second\nremove\n", "hold", path, "--shared"); output != "held\n" {
		t.Errorf("got %q", output)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	if got := run(t, "", "hold", path); got.code != 1 ||
		got.stderr != "sandbox-init: the input's first line must say who takes the lock\n" {
		t.Errorf("got %+v", got)
	}
}

func TestUsage(t *testing.T) {
	for _, arguments := range [][]string{
		{}, {"runn"}, {"run", "x"}, {"write", "x"}, {"remove", "x"},
		{"service"}, {"service", "put", "x"}, {"service", "stop"}, {"service", "await"}, {"service", "wait", "x"},
		{"files"}, {"files", "get"}, {"files", "list"}, {"files", "put", "x"}, {"files", "write"},
		{"boot", "--again"}, {"boot", "--replay", "x"}, {"boot", "--forget", "--replay"}, {"facade", "x"}, {"probe", "x"},
		{"flock", "3"}, {"hold"}, {"hold", "/x", "/y"},
		{"machine"}, {"machine", "restart"}, {"machine", "start", "x"},
	} {
		if got := run(t, "{}", arguments...); got != (result{1, "", "sandbox-init: " + errUsage.Error() + "\n"}) {
			t.Errorf("%q: got %+v, want the usage", arguments, got)
		}
	}
}

func TestMachineInputIsChecked(t *testing.T) {
	for _, verb := range []string{"start", "stop", "observe"} {
		got := run(t, `{"version":2,"name":"../x","home":"home","x":1}`, "machine", verb)
		if got.code != 1 || got.stderr != "sandbox-init: standard input, machine: json: unknown field \"x\"\n" {
			t.Errorf("%s: %+v", verb, got)
		}
		got = run(t, `{"version":2,"name":"../x","home":"home"}`, "machine", verb)
		problems := []string{"version 2: 1 is understood", `name "../x": `, `home: path "home": an absolute path`}
		for _, problem := range problems {
			if got.code != 1 || !strings.Contains(got.stderr, problem) {
				t.Errorf("%s: %+v does not say %q", verb, got, problem)
			}
		}
	}
}
