package service

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shell is a service that runs a script and is stopped after the test.
func shell(t *testing.T, script string) Service {
	name := strings.ToLower(regexp.MustCompile(`[^A-Za-z0-9]+`).ReplaceAllString(t.Name(), "-"))
	t.Cleanup(func() { supervisor.Stop(name) })
	return Service{Name: name, Command: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"},
		Log: filepath.Join(t.TempDir(), "service.log"), StopSeconds: 30}
}

func put(t *testing.T, service Service) {
	t.Helper()
	if err := supervisor.Put(service); err != nil {
		t.Fatal(err)
	}
}

func awaitLog(t *testing.T, service Service, text string) {
	t.Helper()
	await(
		t,
		fmt.Sprintf("%q in the log", text),
		func() bool { return strings.Contains(read(service.Log), text) },
		service.Log,
	)
}

func pidOf(service Service) int { return supervisor.Status()[service.Name].PID }

// gone tells that a process has ended and was reaped: a zombie still takes signals.
func gone(pid int) bool { return unix.Kill(pid, 0) == unix.ESRCH }

const forever = "exec sleep 1000"

func TestValidate(t *testing.T) {
	good := Service{
		Name: "k3s-1", Command: []string{"/bin/true"}, Log: "/var/log/x", StopSeconds: 600, RestartEvery: longestRun,
	}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", "K3s", "-a", "a-", "a_b", "a b", "a\n"} {
		bad := good
		bad.Name = name
		want := fmt.Sprintf("name %q: lower-case letters, digits and dashes are allowed", name)
		if errorText(bad.validate()) != want {
			t.Errorf("got %v, want %s", bad.validate(), want)
		}
	}
	// Everything at once: whoever mends a description should not have to guess how often.
	want := `name "A": lower-case letters, digits and dashes are allowed
command ["sh"]: the program's absolute path must come first
log "log": an absolute path is needed
stopSeconds 601: 1 to 600 is allowed
restartEvery -1: 0 to 315360000 is allowed`
	bad := Service{Name: "A", Command: []string{"sh"}, Log: "log", StopSeconds: 601, RestartEvery: -1}
	if err := supervisor.Put(bad); errorText(err) != want {
		t.Errorf("got %v, want\n%s", err, want)
	}
	err := Service{Name: "a", Log: "/l", StopSeconds: 1}.validate()
	if errorText(err) != `command []: the program's absolute path must come first` {
		t.Errorf("no command: %v", err)
	}
}

func TestPutRestartsOnlyWhatChanged(t *testing.T) {
	service := shell(t, forever)
	put(t, service)
	pid := pidOf(service)
	if pid == 0 {
		t.Fatal("Put returned before the program ran")
	}
	same := service
	same.Command, same.Env = append([]string{}, service.Command...), append([]string{}, service.Env...)
	put(t, same)
	if pidOf(service) != pid {
		t.Error("the same description restarted the service")
	}
	supervisor.notes.mu.Lock()
	content, err := json.Marshal(supervisor.notes.note.Services[0])
	supervisor.notes.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	for _, same := range []string{
		string(content), // as the next life has it
		strings.Replace(string(content), `"revision"`, `"check":[],"restartEvery":0,"revision"`, 1),
	} {
		var again Service
		if err := json.Unmarshal([]byte(same), &again); err != nil {
			t.Fatal(err)
		}
		put(t, again)
		if pidOf(service) != pid {
			t.Errorf("the same description as %s restarted the service", same)
		}
	}
	for field, change := range map[string]func(*Service){
		"revision":    func(s *Service) { s.Revision = "2" },
		"command":     func(s *Service) { s.Command = []string{"/bin/sleep", "1001"} },
		"env":         func(s *Service) { s.Env = append(s.Env, "X=1") },
		"log":         func(s *Service) { s.Log += ".other" },
		"stopSeconds": func(s *Service) { s.StopSeconds++ },
		// Long enough never to come.
		"restartEvery": func(s *Service) { s.RestartEvery = longestRun },
	} {
		change(&service)
		put(t, service)
		if now := pidOf(service); now == pid || now == 0 || !gone(pid) {
			t.Errorf("a change of %s: process %d became %d, and the old one is gone: %v", field, pid, now, gone(pid))
		}
		pid = pidOf(service)
	}
	if err := supervisor.Restart(service.Name); err != nil || pidOf(service) == pid || !gone(pid) {
		t.Errorf("Restart: %v, process %d became %d", err, pid, pidOf(service))
	}
	if state := supervisor.Status()[service.Name]; state.Restarts != 0 || state.LastExit != "" {
		t.Errorf("restarts on demand count as failures: %+v", state)
	}
}

// What is not described is not there, though this process has it.
func TestEnvironmentIsWhole(t *testing.T) {
	t.Setenv("SANDBOX_INIT_TEST_OWN", "1")
	for _, env := range [][]string{nil, {}, {"GIVEN=1"}} {
		service := shell(t, "/usr/bin/env; echo end; "+forever)
		service.Env = env
		put(t, service)
		awaitLog(t, service, "end\n")
		if log := read(service.Log); strings.Contains(log, "_OWN=") ||
			strings.Contains(log, "GIVEN=1") != (len(env) == 1) {
			t.Errorf("with %q it has\n%s", env, log)
		}
	}
}

// Several clients may change one service at once; one process is left, and nobody's restart is lost in a panic.
func TestPutAtOnce(t *testing.T) {
	service := shell(t, forever)
	var clients sync.WaitGroup
	for i := range 8 {
		changed := service
		changed.Revision = strconv.Itoa(i)
		clients.Go(func() {
			if err := supervisor.Put(changed); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	supervisor.mu.Lock()
	defer supervisor.mu.Unlock()
	if len(supervisor.exits) != 1 {
		t.Errorf("%d processes are left of one service", len(supervisor.exits))
	}
}

func TestUnstartable(t *testing.T) {
	service := shell(t, "")
	service.Command = []string{"/no/such/program"}
	for _, when := range []string{"first", "second"} { // a failed Put must not make the same one seem done
		if err := supervisor.Put(service); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("%s Put: %v", when, err)
		}
	}
	if state, exists := supervisor.Status()[service.Name]; exists {
		t.Errorf("it is still there: %+v", state)
	}
	service.Command = []string{"/bin/sleep", "1000"}
	put(t, service)
	if pidOf(service) == 0 {
		t.Error("the mended service does not run")
	}
}

func TestEndedServiceStartsAgain(t *testing.T) {
	for script, ending := range map[string]string{
		"echo out; echo err >&2; exit 3": "exit code 3",
		"kill -KILL $$":                  "signal SIGKILL",
	} {
		t.Run(ending, func(t *testing.T) {
			service := shell(t, script)
			put(t, service)
			// Each delay is twice the one before. The text says so; a clock would say how busy the machine is.
			for _, delay := range []string{"100ms", "200ms", "400ms"} {
				awaitLog(
					t,
					service,
					fmt.Sprintf("sandbox-init: %s ended: %s; it starts again in %s\n", service.Name, ending, delay),
				)
			}
			if state := supervisor.Status()[service.Name]; state.Restarts < 3 || state.LastExit != ending {
				t.Errorf("state %+v", state)
			}
			if strings.HasPrefix(script, "echo") {
				awaitLog(t, service, "out\nerr\n")
			}
			supervisor.Stop(service.Name) // which it may be waiting for its next start at
			if states := supervisor.Status(); len(states) != 0 {
				t.Errorf("a stopped service is still there: %+v", states)
			}
		})
	}
}

func TestNextBackoff(t *testing.T) {
	for _, c := range []struct{ previous, ran, want time.Duration }{
		{0, 0, firstBackoff},
		{firstBackoff, 0, 2 * firstBackoff},
		{firstBackoff, stableAfter, 2 * firstBackoff},
		{4 * time.Second, time.Second, lastBackoff},
		{lastBackoff, time.Second, lastBackoff},
		{lastBackoff, stableAfter + 1, firstBackoff}, // it ran well; this failure is a new one
	} {
		if got := nextBackoff(c.previous, c.ran); got != c.want {
			t.Errorf("after a delay of %s and a run of %s: %s, want %s", c.previous, c.ran, got, c.want)
		}
	}
}

func TestStop(t *testing.T) {
	t.Run("SIGTERM lets a program tidy up", func(t *testing.T) {
		service := shell(t, "trap 'echo tidied; exit' TERM; echo ready; while :; do sleep 0.1; done")
		put(t, service)
		awaitLog(t, service, "ready")
		supervisor.Stop(service.Name)
		awaitLog(t, service, "tidied")
	})
	t.Run("SIGKILL ends one that does not", func(t *testing.T) {
		service := shell(t, "trap 'echo no' TERM; echo ready; while :; do sleep 0.1; done")
		service.StopSeconds = 1
		put(t, service)
		awaitLog(t, service, "ready")
		pid := pidOf(service)
		supervisor.Stop(service.Name)
		if !gone(pid) {
			t.Errorf("process %d is left", pid)
		}
		awaitLog(t, service, "no") // so SIGTERM came first
	})
}

func TestStopAllEndsTheLastStartedFirst(t *testing.T) {
	order := filepath.Join(t.TempDir(), "order")
	for _, name := range []string{"c", "a", "b"} {
		script := fmt.Sprintf("trap 'echo %s >> %s; exit' TERM; echo ready; while :; do sleep 0.1; done", name, order)
		service := shell(t, script)
		service.Name = name
		put(t, service)
		t.Cleanup(func() { supervisor.Stop(name) }) // and have it no longer noted
		awaitLog(t, service, "ready")
	}
	noted, err := supervisor.notes.Note()
	if err != nil {
		t.Fatal(err)
	}
	supervisor.StopAll()
	if after, _ := supervisor.notes.Note(); len(after.Services) != 3 || !reflect.DeepEqual(after, noted) {
		t.Errorf("the end of this life changed what the next one has: %+v", after)
	}
	if got := read(order); got != "b\na\nc\n" || len(supervisor.Status()) != 0 {
		t.Errorf("ended in the order %q; left: %v", got, supervisor.Status())
	}
}

func TestOrphansAreReaped(t *testing.T) {
	service := shell(t, "(sleep 1000 & echo orphan=$!.); "+forever) // the subshell ends before its child
	put(t, service)
	awaitLog(t, service, ".")
	orphan, err := strconv.Atoi(regexp.MustCompile(`orphan=(\d+)`).FindStringSubmatch(read(service.Log))[1])
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the orphan to become this process's child", func() bool {
		return strings.Contains(read(fmt.Sprintf("/proc/%d/status", orphan)), fmt.Sprintf("PPid:\t%d\n", os.Getpid()))
	})
	if err := unix.Kill(orphan, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the orphan to be reaped", func() bool { return gone(orphan) })
	if state := supervisor.Status()[service.Name]; state.PID == 0 || state.Restarts != 0 {
		t.Errorf("an orphan's end was taken for the service's: %+v", state)
	}
}

func TestLogRotates(t *testing.T) {
	// 55 MiB in files of 10: five are full, of which three stay.
	service := shell(t, "head -c 57671680 /dev/zero | tr '\\0' x; echo the end >&2; "+forever)
	put(t, service)
	awaitLog(t, service, "the end")
	await(t, "three old logs", func() bool {
		old, err := filepath.Glob(strings.TrimSuffix(service.Log, ".log") + "-*.log")
		return err == nil && len(old) == 3
	})
}

// A FIFO in place of the log would have everything wait for a reader: the program, and whoever ends it.
func TestLogThatIsNoFile(t *testing.T) {
	service := shell(t, forever)
	if err := unix.Mkfifo(service.Log, 0o666); err != nil {
		t.Fatal(err)
	}
	want := service.Log + " is a FIFO, and a log is to be written there; remove it"
	if err := supervisor.Put(service); errorText(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := os.Remove(service.Log); err != nil {
		t.Fatal(err)
	}
	put(t, service)
}

// A full disk must not end what writes to it.
func TestLogThatFailsDoesNotEndTheService(t *testing.T) {
	folder := t.TempDir()
	file, done := filepath.Join(folder, "file"), filepath.Join(folder, "done")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done; echo > %s; %s", done, forever)
	service := shell(t, script)
	service.Log = filepath.Join(file, "a file is no folder")
	put(t, service)
	await(t, "the program to have written everything", func() bool {
		_, err := os.Stat(done)
		return err == nil || supervisor.Status()[service.Name].Restarts > 0
	})
	if state := supervisor.Status()[service.Name]; state.Restarts != 0 {
		t.Errorf("the program ended: %+v", state)
	}
}

// A program that only reads its certificates at its start is started anew now and then, which is no failure of it.
func TestRestartEvery(t *testing.T) {
	service := shell(t, "trap 'echo tidied $$; exit' TERM; echo started $$; while :; do sleep 0.1; done")
	service.RestartEvery = 1
	put(t, service)
	pids := map[int]bool{}
	await(t, "three processes, one after another", func() bool {
		if pid := pidOf(service); pid != 0 {
			pids[pid] = true
		}
		return len(pids) == 3
	}, service.Log)
	for pid := range pids {
		awaitLog(t, service, fmt.Sprintf("started %d\n", pid))
	}
	awaitLog(t, service, fmt.Sprintf("sandbox-init: %s has run for 1 s and is started anew\n", service.Name))
	if tidied := strings.Count(read(service.Log), "tidied "); tidied < 2 {
		t.Errorf("it had %d times the time to tidy up", tidied)
	}
	if state := supervisor.Status()[service.Name]; state.Restarts != 0 || state.LastExit != "" {
		t.Errorf("it counts as a failure: %+v", state)
	}
	service.RestartEvery = 0
	put(t, service)
	if state := supervisor.Status()[service.Name]; state.PID == 0 || pids[state.PID] {
		t.Errorf("a change of it restarts the service: %+v", state)
	}
}

// A service that is ended anyway when its time has come is not started once more.
func TestStopDuringARenewal(t *testing.T) {
	service := shell(t, "trap 'echo ending' TERM; echo started; while :; do sleep 0.1; done")
	service.RestartEvery, service.StopSeconds = 1, 2
	put(t, service)
	awaitLog(t, service, "ending")
	supervisor.Stop(service.Name)
	if states := supervisor.Status(); len(states) != 0 {
		t.Errorf("it is still there: %+v", states)
	}
	if started := strings.Count(read(service.Log), "started\n"); started != 1 {
		t.Errorf("it was started %d times", started)
	}
}

// What is not noted would be missing after the next start, so it is not done, and what runs goes on.
func TestPutThatCannotBeNoted(t *testing.T) {
	service := shell(t, forever)
	put(t, service)
	pid := pidOf(service)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := supervisor.notes
	supervisor.notes = OpenNotes(filepath.Join(file, "boot.json"))
	defer func() { supervisor.notes = before }()
	changed := service
	changed.Revision = "2"
	want := "nothing is changed, since it cannot be noted for the next start: " + file +
		" is a regular file where a folder is needed"
	if err := supervisor.Put(changed); !strings.HasPrefix(errorText(err), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if pidOf(service) != pid || gone(pid) {
		t.Error("what ran was ended")
	}
	supervisor.notes.note.Services = []Service{service} // so that there is something to take out
	want = service.Name + " is stopped, but it will be there again after the next start: "
	if err := supervisor.Stop(service.Name); !strings.HasPrefix(errorText(err), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if !gone(pid) {
		t.Error("it was not stopped")
	}
}
