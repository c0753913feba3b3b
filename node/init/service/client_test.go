package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve answers at a socket for the time of a test.
func serve(t *testing.T, handler http.Handler) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", socket)
	must(t, err)
	server := &http.Server{Handler: handler}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return NewClient(socket)
}

func described(t *testing.T, service Service) []byte {
	t.Helper()
	content, err := json.Marshal(service)
	must(t, err)
	return content
}

func TestClient(t *testing.T) {
	client := serve(t, controlHandler(supervisor, supervisor.notes))
	service := shell(t, forever)
	answer, err := client.Put(described(t, service))
	if err != nil || !strings.HasPrefix(string(answer), fmt.Sprintf(`{"%s":{"pid":`, service.Name)) {
		t.Fatalf("put: %s, %v", answer, err)
	}
	pid := pidOf(service)
	if states, err := client.Status(); err != nil || states[service.Name].PID != pid {
		t.Errorf("status: %+v, %v", states, err)
	}
	if _, err := client.Restart(service.Name); err != nil || pidOf(service) == pid {
		t.Errorf("restart: %v, process %d", err, pidOf(service))
	}
	_, err = client.Restart("no&such")
	if want := fmt.Sprintf("no service \"no&such\"; there are [%q]", service.Name); errorText(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if note, problem, err := client.Note(); err != nil || problem != "" || note.Services[0].Name != service.Name {
		t.Errorf("note: %+v, %q, %v", note, problem, err)
	}
	if answer, err := client.Stop(service.Name); err != nil || string(answer) != "{}\n" {
		t.Errorf("stop: %s, %v", answer, err)
	}
	_, err = client.Put([]byte(`{"name":"a","comand":[]}`))
	if errorText(err) != `service: json: unknown field "comand"` {
		t.Errorf("unknown field: %v", err)
	}
}

// Nothing of process 1 is waited for without end: not that it takes a request, not that it answers one, not that it
// carries one out.
func TestProcess1ThatHangs(t *testing.T) {
	hangs := func(ready string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == ready {
				fmt.Fprint(w, `{"a":{"state":{"pid":0},"stopSeconds":1}}`)
				return
			}
			<-r.Context().Done()
		})
	}
	silent := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", silent) // whose connections nobody takes
	must(t, err)
	defer listener.Close()
	service := []byte(`{"name":"a","command":["/bin/true"],"log":"/l","stopSeconds":1}`)
	clients := map[string]*Client{
		"takes nothing":         NewClient(silent),
		"answers nothing":       serve(t, hangs("")),
		"carries out no change": serve(t, hangs("/details")),
	}
	for how, client := range clients {
		client = client.Within(50 * time.Millisecond)
		requests := map[string]func() error{
			"put": func() error {
				_, err := client.Put(service)
				return err
			},
			"restart": func() error {
				_, err := client.Restart("a")
				return err
			},
			"stop": func() error {
				_, err := client.Stop("a")
				return err
			},
			"status": func() error {
				_, err := client.Status()
				return err
			},
			"forget": client.Forget,
			"note": func() error {
				_, _, err := client.Note()
				return err
			},
		}
		for what, request := range requests {
			if err := request(); !errors.Is(err, context.DeadlineExceeded) ||
				!strings.HasPrefix(err.Error(), "sandbox-init has not answered within ") {
				t.Errorf("it %s, and %s says %v", how, what, err)
			}
		}
	}
}

func TestNothingRuns(t *testing.T) {
	folder := t.TempDir()
	gone := filepath.Join(folder, "gone")
	listener, err := net.Listen("unix", gone)
	must(t, err)
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	listener.Close()
	for _, socket := range []string{gone, filepath.Join(folder, "none"), filepath.Join(folder, "none", "below")} {
		if _, err := NewClient(socket).Status(); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", socket, err)
		}
		// Nor is a service waited for that nobody will start.
		if _, err := NewClient(socket).Await("a", Awaited{Seconds: 3600}); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", socket, err)
		}
	}
}

func TestAwaitRefusesItsInput(t *testing.T) {
	wrong := Awaited{File: "stages.json", Key: "x", Socket: "s", Seconds: 3601, Attempts: -1}
	_, err := NewClient("/nowhere").Await("a", wrong)
	want := `path "stages.json": an absolute path is needed, without . or .. or a slash at its end
path "s": an absolute path is needed, without . or .. or a slash at its end
seconds 3601: 1 to 3600 is allowed
attempts -1: 0 or more is allowed`
	if errorText(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = NewClient("/nowhere").Await("a", Awaited{Key: "x"})
	if want := "key \"x\": it needs a file\nseconds 0: 1 to 3600 is allowed"; errorText(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestAwaitThatItRuns(t *testing.T) {
	client := serve(t, controlHandler(supervisor, supervisor.notes))
	service := shell(t, forever)
	put(t, service)
	outcome, err := client.Await(service.Name, Awaited{Seconds: 30})
	if want := (Outcome{Reached: true, State: State{PID: pidOf(service)}}); err != nil || outcome != want {
		t.Errorf("got %+v, %v, want %+v", outcome, err, want)
	}
	outcome, err = client.Await("other", Awaited{Seconds: 30})
	want := Outcome{Why: fmt.Sprintf("there is no service \"other\"; there are [%q]", service.Name)}
	if err != nil || outcome != want {
		t.Errorf("got %+v, %v, want %+v", outcome, err, want)
	}
}

// What counts is what the process that runs now has noted, in a file that is one.
func TestAwaitWhatIsNoted(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "stages.json")
	service := shell(t, forever)
	put(t, service)
	pid := pidOf(service)
	write := func(content string, values ...any) func() error {
		return func() error { return os.WriteFile(file, fmt.Appendf(nil, content, values...), 0o600) }
	}
	notYet := []struct {
		what  string
		plant func() error
	}{
		{"no file", func() error { return nil }},
		{"a FIFO", func() error { return unix.Mkfifo(file, 0o600) }},
		{"a folder", func() error { return os.Mkdir(file, 0o700) }},
		{"a loop", func() error { return os.Symlink("stages.json", file) }},
		{"nothing", write("")},
		{"half of it", write(`{"pid":%d,"nodeRe`, pid)},
		{"no object", write(`[%d,"nodeReady"]`, pid)},
		{"no pid", write(`{"nodeReady":1}`)},
		{"a pid that is none", write(`{"pid":"%d","nodeReady":1}`, pid)},
		{"another process's", write(`{"pid":%d,"nodeReady":1}`, os.Getpid())},
		{"another stage", write(`{"pid":%d,"started":1}`, pid)},
		{"another process's problem", write(`{"pid":%d,"problem":"why"}`, os.Getpid())},
		{"a problem that is no text", write(`{"pid":%d,"problem":1}`, pid)},
		{"too much", write(`{"pid":%d,"nodeReady":1,"x":"%s"}`, pid, strings.Repeat("x", awaitedLimit))},
	}
	// Whatever is there is looked at several times; the next thing takes its place when it was, so nothing is timed.
	looked := make(chan int)
	awaited := Awaited{File: file, Key: "nodeReady", Seconds: 3600}
	for _, thing := range notYet {
		must(t, os.RemoveAll(file), thing.plant())
		if isNoted(awaited, pid) {
			t.Errorf("%s was taken for it", thing.what)
		}
	}
	must(t, os.RemoveAll(file), write(`{"pid":%d,"nodeReady":null,"x":"%s"}`, pid, "y")())
	if !isNoted(awaited, pid) {
		t.Error("it is there, and is not seen")
	}
	if isNoted(Awaited{File: file}, pid+1) {
		t.Error("without a key, another process's was taken for it")
	}
	if !isNoted(Awaited{File: file}, pid) {
		t.Error("without a key, its pid is enough")
	}

	// A handler that puts the file there after its third answer: so the wait goes on until then, and ends with it.
	must(t, os.Remove(file))
	var asked atomic.Int32
	control := controlHandler(supervisor, supervisor.notes)
	client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control.ServeHTTP(w, r)
		if asked.Add(1) == 3 {
			close(looked)
		}
	}))
	go func() {
		<-looked
		if err := write(`{"pid":%d,"nodeReady":1}`, pid)(); err != nil {
			t.Error(err)
		}
	}()
	outcome, err := client.Await(service.Name, awaited)
	if want := (Outcome{Reached: true, State: State{PID: pid}}); err != nil || outcome != want {
		t.Errorf("got %+v, %v, want %+v", outcome, err, want)
	}
	if asked.Load() < 3 {
		t.Errorf("reached after %d answers", asked.Load())
	}
}

// What the process has noted for a reason is told at once, with its log.
func TestAwaitEndsWithAProblemThatIsNoted(t *testing.T) {
	service := shell(t, forever)
	put(t, service)
	pid := pidOf(service)
	file := filepath.Join(t.TempDir(), "stages.json")
	must(t, os.WriteFile(file, fmt.Appendf(nil, `{"pid":%d,"problem":"why","api":1}`, pid), 0o600))
	client := serve(t, controlHandler(supervisor, supervisor.notes))
	outcome, err := client.Await(service.Name, Awaited{File: file, Key: "node", Seconds: 3600})
	if err != nil || outcome.Reached || outcome.Why != "why" {
		t.Errorf("got %+v, %v", outcome, err)
	}
	outcome, err = client.Await(service.Name, Awaited{File: file, Key: "api", Seconds: 3600})
	if err != nil || !outcome.Reached {
		t.Errorf("what is reached is not: %+v, %v", outcome, err)
	}
}

func TestAwaitThatItListens(t *testing.T) {
	service := shell(t, forever)
	put(t, service)
	socket := filepath.Join(t.TempDir(), "socket")
	awaited := Awaited{Socket: socket, Seconds: 3600}
	if isNoted(awaited, pidOf(service)) {
		t.Error("there is no socket, and it was taken for reached")
	}
	listener, err := net.Listen("unix", socket)
	must(t, err)
	outcome, err := serve(t, controlHandler(supervisor, supervisor.notes)).Await(service.Name, awaited)
	if err != nil || !outcome.Reached {
		t.Errorf("somebody listens, and it is not seen: %+v, %v", outcome, err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, listener.Close())
	if isNoted(awaited, pidOf(service)) {
		t.Error("nobody listens any more, and it was taken for reached")
	}
}

func isNoted(awaited Awaited, pid int) bool {
	reached, _ := awaited.noted(pid)
	return reached
}

// The process that noted it has ended since, and process 1 has not been asked again yet.
func TestAwaitedProcessMustRunStill(t *testing.T) {
	service := shell(t, forever)
	put(t, service)
	file := filepath.Join(t.TempDir(), "stages.json")
	pid := pidOf(service)
	must(t, os.WriteFile(file, fmt.Appendf(nil, `{"pid":%d}`, pid), 0o600))
	if !isNoted(Awaited{File: file}, pid) {
		t.Error("it runs")
	}
	supervisor.Stop(service.Name)
	if isNoted(Awaited{File: file}, pid) {
		t.Error("it has ended")
	}
}

func TestAwaitEndsWithAServiceThatKeepsEnding(t *testing.T) {
	client := serve(t, controlHandler(supervisor, supervisor.notes))
	service := shell(t, "for i in 1 2 3 4 5 6 7 8; do echo line $i; done; exit 7")
	put(t, service)
	outcome, err := client.Await(service.Name, Awaited{File: "/nowhere/file", Seconds: 3600, Attempts: 2})
	if err != nil || outcome.Reached || outcome.Why != "it keeps ending, the last time with exit code 7" ||
		outcome.State.Restarts < 2 || outcome.State.LastExit != "exit code 7" {
		t.Errorf("got %+v, %v", outcome, err)
	}
	lines := strings.Split(outcome.Log, "\n")
	if len(lines) != 15 ||
		!strings.Contains(outcome.Log, "line 8\nsandbox-init: "+service.Name+" ended: exit code 7; ") {
		t.Errorf("the log's end:\n%s", outcome.Log)
	}
}

// What went wrong before counts for nobody who begins to wait now.
func TestAwaitCountsFromItsBeginning(t *testing.T) {
	answers := []int{7, 8, 1, 2, 3, 4} // restarts; it is put again after the second
	var asked atomic.Int32
	client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := min(int(asked.Add(1)), len(answers)) - 1
		fmt.Fprintf(w, `{"a":{"state":{"pid":0,"restarts":%d,"lastExit":"exit code %d"}}}`, answers[at], at)
	}))
	outcome, err := client.Await("a", Awaited{Seconds: 3600, Attempts: 2})
	want := Outcome{
		Why:   "it keeps ending, the last time with exit code 4",
		State: State{Restarts: 3, LastExit: "exit code 4"},
	}
	if err != nil || outcome != want {
		t.Errorf("got %+v, %v, want %+v", outcome, err, want)
	}
}

func TestAwaitGivesUp(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	must(t, os.WriteFile(log, []byte("the last line\n"), 0o600))
	var asked atomic.Int32
	client := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		fmt.Fprintf(w, `{"a":{"state":{"pid":%d},"log":%q}}`, os.Getpid(), log)
	}))
	begin := time.Now()
	outcome, err := client.Await("a", Awaited{File: "/nowhere/file", Seconds: 1})
	want := Outcome{Why: "not within 1 s", State: State{PID: os.Getpid()}, Log: "the last line"}
	if err != nil || outcome != want {
		t.Errorf("got %+v, %v, want %+v", outcome, err, want)
	}
	// However long it took: process 1 was not asked more often than it may be.
	if most := 1 + int(time.Since(begin)/askEvery); int(asked.Load()) > most {
		t.Errorf("process 1 was asked %d times, and %d are allowed", asked.Load(), most)
	}

	hangs := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	outcome, err = hangs.Await("a", Awaited{Seconds: 1})
	if want := (Outcome{Why: "not within 1 s: sandbox-init does not answer"}); err != nil || outcome != want {
		t.Errorf("got %+v, %v, want %+v", outcome, err, want)
	}
}

func TestOutcomeAsJSON(t *testing.T) {
	for want, outcome := range map[string]Outcome{
		`{"reached":true,"state":{"pid":7,"restarts":0,"lastExit":""}}`: {Reached: true, State: State{PID: 7}},
		`{"reached":false,"why":"w","state":{"pid":0,"restarts":3,"lastExit":"x"},"log":"l"}`: {
			Why: "w", State: State{Restarts: 3, LastExit: "x"}, Log: "l"},
	} {
		if got, err := json.Marshal(outcome); err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	}
}
