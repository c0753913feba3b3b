package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// binary is testpod as it goes into the image.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "testpod")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "testpod")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	code := 1
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// start runs testpod as a server on a free port and returns its log line and base URL.
func start(t *testing.T) (cmd *exec.Cmd, line, url string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cmd = exec.Command(binary, "--port", fmt.Sprint(port))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	// It listens before it says so.
	line, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, line, fmt.Sprintf("http://127.0.0.1:%d", port)
}

func TestServe(t *testing.T) {
	cmd, line, url := start(t)
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("gvisor-k3s test pod %s is running on kernel %s", hostname, release); line != want {
		t.Errorf("log line is %q, want %q", line, want)
	}
	for path, want := range map[string]string{"/": hostname + " 127.0.0.1\n", "/healthz": "ok\n"} {
		out, err := exec.Command(binary, "get", url+path).Output()
		if err != nil || string(out) != want {
			t.Errorf("get %s: %q, %v, want %q", path, out, err, want)
		}
	}
	var stderr bytes.Buffer
	missing := exec.Command(binary, "get", url+"/missing")
	missing.Stderr = &stderr
	if err := missing.Run(); err == nil || !strings.Contains(stderr.String(), "404") {
		t.Errorf("get of a missing page: %v, %s", err, &stderr)
	}

	// SIGTERM ends it with an open connection, too.
	conn, err := net.Dial("tcp4", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func TestCommands(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for _, c := range []struct {
		args []string
		want string // in the error; none when empty
	}{
		{[]string{"true"}, ""},
		{[]string{"sleep"}, ""},
		{[]string{"get"}, `unknown command \["get"\]`},
		{[]string{"get", gone.URL}, "connect"},
		{
			[]string{"bogus"},
			`unknown command \["bogus"\]: allowed are get URL, resolve NAME, measure URL, id, echo PORT, sleep, true`,
		},
		{[]string{"measure", gone.URL}, "connect"},
		{[]string{"resolve", "localhost"}, ""},
		{[]string{"resolve", "no-such-name.invalid"}, "lookup no-such-name.invalid"},
		{[]string{"--port", "70000"}, "--port 70000 is not within 1 to 65535"},
	} {
		ctx := context.Background()
		if c.args[0] == "sleep" {
			ctx = ended
		}
		err := run(ctx, c.args, &bytes.Buffer{})
		if c.want == "" && err != nil ||
			c.want != "" && (err == nil || !regexp.MustCompile(c.want).MatchString(err.Error())) {
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
}
