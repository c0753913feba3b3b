package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// asItself tells this program, started anew, that it is gvisor-k3s-node: its components keep global state that one
// process has once.
const asItself = "GVISOR_K3S_NODE_TEST_AS_ITSELF"

func TestMain(m *testing.M) {
	if os.Getenv(asItself) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// output is what act prints to standard output.
func output(t *testing.T, act func()) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	defer func(stdout *os.File) { os.Stdout = stdout }(os.Stdout)
	os.Stdout = file
	act()
	content, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestReadiness(t *testing.T) {
	answers := map[string]string{}
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		w.Header().Set("Content-Type", "application/json")
		if !ok {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprint(w, answer)
	}))
	config := configFor(t, fmt.Sprintf("https-listen-port: %d\n", api.Listener.Addr().(*net.TCPAddr).Port))
	p := prepare(t, config)
	pair, err := tls.LoadX509KeyPair(p.cert("apiserver"), p.key("apiserver"))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(certificate(t, p.cert(clientCA)))
	api.TLS = &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientCAs:    clients,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}
	api.StartTLS()
	defer api.Close()

	node := func(status string, heartbeat time.Time) string {
		return fmt.Sprintf(
			`{"kind":"Node","apiVersion":"v1","status":{"conditions":[{"type":"DiskPressure","status":"True"},`+
				`{"type":"Ready","status":%q,"lastHeartbeatTime":%q,"message":"why"}]}}`,
			status,
			heartbeat.UTC().Format(time.RFC3339),
		)
	}
	const account = `{"kind":"ServiceAccount","apiVersion":"v1"}`
	const accountPath, nodePath = "/api/v1/namespaces/default/serviceaccounts/default", "/api/v1/nodes/node-1"
	var stages *stages
	const quiet, gone = "controllers and scheduler do not answer yet", "they keep ending"
	steps := []struct {
		name       string
		act        func()
		want       Readiness
		message    string // part of it
		agentless  bool
		apiReached bool
		reached    bool // the stage "node"
	}{
		{name: "never started", act: func() {}, message: "the server has not started"},
		{name: "no answer", act: func() { stages = newStages(config) }, message: "the API server does not answer: "},
		{
			name:    "no account",
			act:     func() { answers["/readyz"] = "ok" },
			want:    Readiness{APIReady: true},
			message: "could not find",
		},
		{
			name:       "no controllers",
			act:        func() { answers[accountPath] = account },
			want:       Readiness{APIReady: true, DefaultServiceAccount: true},
			message:    quiet,
			apiReached: true,
		},
		{
			name:       "controllers that keep ending",
			act:        func() { stages.note(problemNote, gone) },
			want:       Readiness{APIReady: true, DefaultServiceAccount: true},
			message:    gone,
			apiReached: true,
		},
		{
			name: "no node",
			act: func() {
				stages.agentStarts()
				stages.note(controllersNote, time.Now().UnixMilli(), problemNote)
			},
			want:       Readiness{APIReady: true, DefaultServiceAccount: true},
			message:    "could not find",
			apiReached: true,
		},
		{
			name:       "no node is needed",
			act:        func() {},
			want:       Readiness{APIReady: true, DefaultServiceAccount: true, AgentAlive: true},
			agentless:  true,
			apiReached: true,
			reached:    true,
		},
		{name: "not ready", act: func() { answers[nodePath] = node("False", time.Now().Add(time.Hour)) },
			want:       Readiness{APIReady: true, DefaultServiceAccount: true, AgentAlive: true},
			message:    "node node-1 is not Ready: why",
			apiReached: true,
		},
		// What an earlier run left in the datastore says nothing about this one.
		{name: "ready before the start", act: func() { answers[nodePath] = node("True", time.Now().Add(-time.Hour)) },
			want:       Readiness{APIReady: true, DefaultServiceAccount: true},
			message:    "node node-1 is not Ready: why",
			apiReached: true,
		},
		{name: "ready", act: func() { answers[nodePath] = node("True", time.Now().Add(time.Hour)) },
			want:       Readiness{APIReady: true, DefaultServiceAccount: true, AgentAlive: true, NodeReady: true},
			apiReached: true,
			reached:    true,
		},
		// Nor what an agent did that was before.
		{name: "ready, and the agent ended", act: func() { stages.agentStarts() },
			want:       Readiness{APIReady: true, DefaultServiceAccount: true},
			message:    quiet,
			apiReached: true,
		},
	}
	for _, step := range steps { // in order: each builds on the one before
		t.Run(step.name, func(t *testing.T) {
			step.act()
			config.DisableAgent = step.agentless
			got := readiness(t.Context(), config)
			if !strings.Contains(got.Message, step.message) || (got.Message == "") != (step.message == "") {
				t.Errorf("message %q, want %q", got.Message, step.message)
			}
			api, node := got.reached(config, "api"), got.reached(config, "node")
			if api != step.apiReached || node != step.reached {
				t.Errorf("stage api reached: %v, node: %v", api, node)
			}
			message := got.Message
			if got.Message = ""; got != step.want {
				t.Errorf("got %+v, want %+v", got, step.want)
			}
			var err error
			printed := output(t, func() { err = reportReadiness(t.Context(), config, "node", 0) })
			if (err == nil) != step.reached || err != nil && err.Error() != "not ready (node) after 0 s: "+message {
				t.Errorf("the command ends with %v", err)
			}
			var state Readiness
			if err := json.Unmarshal([]byte(printed), &state); err != nil || state.NodeReady != step.want.NodeReady ||
				state.APIReady != step.want.APIReady {
				t.Errorf("printed %q, %v", printed, err)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"":                                   usage,
		"fly":                                `unknown command "fly"; ` + usage,
		"check --config /no/such/file":       "open /no/such/file: no such file or directory",
		"check --config " + config:           "",
		"ready --stage x --config " + config: `--stage "x": api, agent and node are allowed`,
	} {
		got := ""
		if err := dispatch(strings.Fields(line)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
	var versions map[string]string
	printed := output(t, func() { dispatch([]string{"version"}) })
	err := json.Unmarshal([]byte(printed), &versions)
	if err != nil || versions["kine"] == "" || versions["kubernetes"] == "" {
		t.Errorf("version: %v, %v", versions, err)
	}
}

// What waits for an agent that cannot run is told so, and why.
func TestAgentThatKeepsEnding(t *testing.T) {
	config := configFor(t, fmt.Sprintf("https-listen-port: %d\n"+
		"kube-scheduler-arg: [config=/none]\nkube-controller-manager-arg: [kubeconfig=/none]\n", freePort(t)))
	prepare(t, config)
	t.Setenv(asItself, "1")
	stages := newStages(config)
	agent := newAgent(config.path("config.yaml"), config, stages)
	close(agent.ready)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		agent.run(ctx)
		close(ended)
	}()
	var found noted
	err := wait.PollUntilContextTimeout(ctx, pollEvery, 2*time.Minute, true, func(context.Context) (bool, error) {
		found, _ = readStages(config)
		return found.Problem != "", nil
	})
	what, why, _ := strings.Cut(found.Problem, ": ")
	if err != nil || what != "controllers, scheduler and kubelet keep ending, the last time" ||
		!strings.Contains(why, " ended: ") || !strings.Contains(why, "/none: no such file or directory") {
		t.Errorf("%v, %+v", err, found)
	}
	stop()
	<-ended
}

// alone is what a server is told beside which others may run.
const alone = "https-listen-port: %d\nkube-controller-manager-arg: [secure-port=0]\n" +
	"kube-scheduler-arg: [secure-port=0]\n"

// The real server without a kubelet: it starts, deploys the manifests and follows their changes, keeps its state over a
// restart, and ends on SIGTERM.
func TestServer(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes two starts of a control plane")
	}
	config := configFor(t, fmt.Sprintf(alone, freePort(t)))
	manifest := config.path("server", "manifests", "test.yaml")
	if err := os.MkdirAll(filepath.Dir(manifest), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, []byte(configMap("first")), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := startServer(t, config)
	awaitConfigMaps(ctx, t, config, "first") // the folder as it was at the start
	if err := os.WriteFile(manifest, []byte(configMap("second")), 0o600); err != nil {
		t.Fatal(err)
	}
	awaitConfigMaps(ctx, t, config, "second")
	if info, err := os.Stat(config.datastoreSocket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("everybody can read the datastore: %v, %v", info, err)
	}
	stages, err := readStages(config)
	inOrder := 0 < stages.Started && stages.Started <= stages.Datastore && stages.Datastore <= stages.APIReady
	if err != nil || !inOrder {
		t.Errorf("stages %v, %v", stages, err)
	}
	// Who has no certificate is nobody.
	anonymous := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
	}
	response, err := anonymous.Get(config.localURL() + "/api")
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusUnauthorized {
		t.Errorf("an anonymous call is answered: %s", response.Status)
	}
	awaitControllers(ctx, t, config)
	stop()

	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	ctx, stop = startServer(t, config)
	awaitConfigMaps(ctx, t, config) // what went while nobody looked; only the datastore knew of it
	awaitControllers(ctx, t, config)
	stop()
}

// awaitControllers waits until a namespace comes and goes. While the controller that takes a namespace away starts, it
// ends the whole process if it can't reach the API server, as when both are to end.
func awaitControllers(ctx context.Context, t *testing.T, config *Config) {
	t.Helper()
	client, err := adminClient(config)
	if err != nil {
		t.Fatal(err)
	}
	const name = "comes-and-goes"
	namespaces := client.CoreV1().Namespaces()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := namespaces.Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := namespaces.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	err = wait.PollUntilContextTimeout(ctx, pollEvery, time.Minute, true, func(ctx context.Context) (bool, error) {
		namespace, err = namespaces.Get(ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
	if err != nil {
		t.Fatalf("the namespace stays: %v; %+v", err, namespace)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// startServer returns when `ready` says so, with a context that ends when the server does, and what ends it as a
// supervisor would.
func startServer(t *testing.T, config *Config) (ctx context.Context, stop func()) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	t.Cleanup(func() {
		if t.Failed() {
			content, _ := os.ReadFile(log.Name())
			t.Logf("the server's last words:\n%s", content[max(0, len(content)-4000):])
		}
	})
	command := exec.Command("/proc/self/exe", "server", "--config", config.path("config.yaml"))
	command.Env = append(os.Environ(), asItself+"=1")
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that is killed leaves nothing behind
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, ended := context.WithCancel(context.Background()) // the test's own ends before its cleanup
	exit := make(chan error, 1)
	go func() {
		exit <- command.Wait()
		ended()
	}()
	t.Cleanup(func() {
		command.Process.Kill()
		<-ctx.Done()
	})
	output(t, func() { err = reportReadiness(ctx, config, "node", 120) })
	if err != nil {
		t.Fatal(err)
	}
	return ctx, func() {
		t.Helper()
		defer watchAll(ctx, t, config)() // as on every node
		command.Process.Signal(syscall.SIGTERM)
		if err := <-exit; err != nil {
			t.Errorf("SIGTERM should end it without an error: %v", err)
		}
		if content, err := os.ReadFile(log.Name()); err != nil || strings.Contains(string(content), outOfPatience) {
			t.Errorf("it was cut off: %v, or %s", err, outOfPatience)
		}
	}
}

// watchAll has somebody watch until that is stopped: it does not end by itself.
func watchAll(ctx context.Context, t *testing.T, config *Config) (stop func()) {
	t.Helper()
	client, err := adminClient(config)
	if err != nil {
		t.Fatal(err)
	}
	watching, err := client.CoreV1().Namespaces().Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return watching.Stop
}

// awaitConfigMaps waits until of the manifests' objects these are there, and no others.
func awaitConfigMaps(ctx context.Context, t *testing.T, config *Config, want ...string) {
	t.Helper()
	client, err := adminClient(config)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]error{}
	err = wait.PollUntilContextTimeout(ctx, pollEvery, time.Minute, true, func(ctx context.Context) (bool, error) {
		done := true
		for _, name := range []string{"first", "second"} {
			_, err := client.CoreV1().ConfigMaps("default").Get(ctx, name, metav1.GetOptions{})
			there[name] = err
			wanted := strings.Contains(strings.Join(want, " "), name)
			done = done && (wanted && err == nil || !wanted && apierrors.IsNotFound(err))
		}
		return done, nil
	})
	if err != nil {
		t.Fatalf("never had just %q: %v; last answers: %v", want, err, there)
	}
}
