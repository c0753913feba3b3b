package service

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// supervisor is the only one of this process: it reaps every child, so nothing here may use os/exec.
var supervisor *Supervisor

func TestMain(m *testing.M) {
	// Process 1 inherits orphans; a test process has to ask for them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become a subreaper:", err)
		os.Exit(1)
	}
	folder, err := os.MkdirTemp("", "sandbox-init-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	notes := OpenNotes(filepath.Join(folder, "notes", "boot.json"))
	supervisor = NewSupervisor(notes, filepath.Join(folder, "processes.json"))
	code := m.Run()
	supervisor.StopAll()
	os.RemoveAll(folder)
	os.Exit(code)
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

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestControlHandler(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	t.Cleanup(func() { supervisor.Stop("web") })
	good := fmt.Sprintf(`{"name":"web","command":["/bin/sleep","1000"],"log":%q,"stopSeconds":5}`, log)
	facade := `{"settings":[],"files":[{"path":"/etc/machine-id","content":"x"}],"mounts":[],"nodes":[]}`
	cases := []struct {
		name, method, target, body string
		code                       int
		answer                     string // part of it
	}{
		{"nothing runs yet", "GET", "/status", "", 200, `{}`},
		{"an unknown field is refused", "POST", "/put", strings.Replace(good, `"log"`, `"logg"`, 1),
			400, `service: json: unknown field "logg"`},
		{"a bad description is refused", "POST", "/put", strings.Replace(good, `:5`, `:0`, 1),
			400, `stopSeconds 0: 1 to 600 is allowed`},
		{"what is refused is not noted", "GET", "/note", "", 200, `{"note":{"version":1,"facade":null,"services":`},
		{"put starts", "POST", "/put", good, 200, `{"web":{"pid":`},
		{"it is noted", "GET", "/note", "", 200, `"services":[{"name":"web","command":["/bin/sleep","1000"]`},
		{"restart answers with the state", "POST", "/restart?name=web", "", 200, `"restarts":0`},
		{"restart of an unknown service names the known ones", "POST", "/restart?name=nope", "",
			400, `no service "nope"; there are ["web"]`},
		{
			"details tell more",
			"GET",
			"/details",
			"",
			200,
			fmt.Sprintf(`"lastExit":""},"log":%q,"stopSeconds":5}}`, log),
		},
		{"a facade is noted", "POST", "/facade", facade, 200, `"facade":` + facade},
		{
			"an unknown facade is refused",
			"POST",
			"/facade",
			`{"flies":[]}`,
			400,
			`facade plan: json: unknown field "flies"`,
		},
		{
			"to forget leaves what runs",
			"POST",
			"/forget",
			"",
			200,
			`{"note":{"version":1,"facade":null,"services":null}}`,
		},
		{"it runs", "GET", "/status", "", 200, `{"web":{"pid":`},
		{"the same put again notes it again", "POST", "/put", good, 200, `{"web":{"pid":`},
		{"so it is there", "GET", "/note", "", 200, `"services":[{"name":"web"`},
		{"stop forgets", "POST", "/stop?name=web", "", 200, `{}`},
		{"stop again is no error", "POST", "/stop?name=web", "", 200, `{}`},
		{"and so does the note", "GET", "/note", "", 200, `"services":[]`},
		{"a change needs POST", "GET", "/stop?name=web", "", 405, ``},
	}
	handler := controlHandler(supervisor, supervisor.notes)
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
