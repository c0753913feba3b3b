package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const spec = `{ "ociVersion":"1.2.0",
  "process": {"args":["a\u003cb", "é"],  "n": 1.50},
  "mounts": [{"destination":"/proc","type":"proc"},{"destination":"/sys/fs/cgroup","type":"cgroup"}],
  "linux": {"namespaces":[{"type":"pid"},{"type":"cgroup"},{"type":"mount"}],
    "maskedPaths":["/proc/kcore","/sys/firmware"],"seccomp":{"x":1}}}
`

func TestApply(t *testing.T) {
	cases := []struct{ name, rule, from, to string }{
		{
			"drops a namespace", `{"dropNamespace":"cgroup"}`,
			`{"type":"pid"},{"type":"cgroup"},{"type":"mount"}`, `{"type":"pid"},{"type":"mount"}`,
		},
		{"drops the last namespace", `{"dropNamespace":"mount"}`, `,{"type":"mount"}`, ``},
		{"drops a masked path", `{"dropMaskedPath":"/sys/firmware"}`, `,"/sys/firmware"`, ``},
		{"drops a mount", `{"dropMount":"/sys/fs/cgroup"}`, `,{"destination":"/sys/fs/cgroup","type":"cgroup"}`, ``},
		{"unsets", `{"unset":"linux.seccomp"}`, `,"seccomp":{"x":1}`, ``},
		{"sets", `{"set":"process.n","value":{"k":[1]}}`, `"n": 1.50`, `"n": {"k":[1]}`},
		{"leaves a spec that has nothing to drop", `{"dropNamespace":"time"}`, ``, ``},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var rule Rule
			if err := json.Unmarshal([]byte(c.rule), &rule); err != nil {
				t.Fatal(err)
			}
			got, err := Apply([]byte(spec), []Rule{rule})
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.Replace(spec, c.from, c.to, 1); string(got) != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	if _, err := Apply([]byte(`{"a":`), nil); err == nil || !strings.Contains(err.Error(), "not valid JSON") {
		t.Errorf("broken spec: %v", err)
	}
	if _, err := Apply([]byte(spec), []Rule{{Set: "process.n"}}); err == nil ||
		!strings.Contains(err.Error(), "rule 1: it says nothing to do") {
		t.Errorf("set without a value: %v", err)
	}
}

func TestBundleOf(t *testing.T) {
	for line, want := range map[string]string{
		"--root /r --log /l --log-format json create --bundle /b --pid-file /p id": "/b",
		"--root=/r create -b /b id":      "/b",
		"run --bundle=/b id":             "/b",
		"--debug --systemd-cgroup run x": ".",
		"restore --bundle /b id":         "/b",
		"--root /r exec --process /x id": "-",
		"--root create delete --force x": "-",
		"--version":                      "-",
	} {
		bundle, reads := bundleOf(strings.Fields(line))
		if !reads {
			bundle = "-"
		}
		if bundle != want {
			t.Errorf("%s: bundle %q, want %q", line, bundle, want)
		}
	}
}

// The wrapper as a process: it rewrites the bundle, hands its arguments on, and passes errors and exit codes through.
func TestProcess(t *testing.T) {
	folder := t.TempDir()
	wrapper := filepath.Join(folder, "wrapper")
	if output, err := exec.Command("go", "build", "-o", wrapper, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	runtime := write("runtime", "#!/bin/sh\necho \"$@\"\nexit 7\n", 0o755)
	write("rules.json", `{"runtime":["`+runtime+`","before"],"rules":[{"dropNamespace":"cgroup"}]}`, 0o644)
	config := write("config.json", spec, 0o600)

	output, err := exec.Command(wrapper, "--root", "/r", "create", "--bundle", folder, "id").CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 {
		t.Errorf("the runtime's exit code did not come through: %v", err)
	}
	if want := "before --root /r create --bundle " + folder + " id\n"; string(output) != want {
		t.Errorf("the runtime was called with %q, want %q", output, want)
	}
	if got, _ := os.ReadFile(config); strings.Contains(string(got), `{"type":"cgroup"}`) {
		t.Errorf("the rule was not applied: %s", got)
	}

	os.Remove(runtime)
	output, err = exec.Command(wrapper, "--version").CombinedOutput()
	if err == nil || !strings.Contains(string(output), "runc-wrapper: exec "+runtime) {
		t.Errorf("a missing runtime: %v, %s", err, output)
	}
}
