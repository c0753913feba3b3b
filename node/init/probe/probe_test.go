package probe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "can" { // the test's program stands for sandbox-init
		if err := Can(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "sandbox-init:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func ask(t *testing.T, probes ...Probe) []Answer {
	t.Helper()
	input, err := json.Marshal(probes)
	if err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	if err := Run(bytes.NewReader(input), &output); err != nil {
		t.Fatal(err)
	}
	var answers []Answer
	if err := json.Unmarshal(output.Bytes(), &answers); err != nil {
		t.Fatal(err)
	}
	return answers
}

// Linux can do all of it, and has what it did taken back.
func TestLinuxCan(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts and namespaces take root")
	}
	folder := t.TempDir()
	// The test's own folder may be on an overlay.
	if err := exec.Command("mount", "-t", "tmpfs", "tmpfs", folder).Run(); err != nil {
		t.Skip("nothing can be mounted here")
	}
	t.Cleanup(func() { exec.Command("umount", folder).Run() })
	before := everything(t, folder)
	abilities := map[string]string{
		"read": "/proc/self/stat", "mount": "tmpfs tmpfs nr_blocks=1,nr_inodes=1", "overlay": folder,
		"share-mounts": "", "tune": "vm/overcommit_memory kernel/panic",
		"number-procfs": "", "isolate-cgroups": "", "join": "pid", "link": "bridge", "adopt-orphans": "", "filter-pods": "",
	}
	for ability, arguments := range abilities {
		command := append([]string{"can", ability}, strings.Fields(arguments)...)
		for _, answer := range ask(t, Probe{ID: ability, Command: command, Milliseconds: 30_000}) {
			if !answer.Yes || answer.Reason != "" {
				t.Errorf("%+v", answer)
			}
		}
	}
	if after := everything(t, folder); after != before {
		t.Errorf("something was left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// everything that a probe could leave behind.
func everything(t *testing.T, folder string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	links, err2 := os.ReadFile("/proc/net/dev")
	made, err3 := filepath.Glob(filepath.Join(os.TempDir(), "can-*"))
	below, err4 := filepath.Glob(filepath.Join(folder, ".*"))
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	names := ""
	for line := range strings.Lines(string(links)) {
		names += strings.Split(line, ":")[0] + "\n" // the rest counts packets
	}
	return fmt.Sprintf("%s%s%q%q", mounts, names, made, below)
}

func TestKernelsWordIsTold(t *testing.T) {
	for _, c := range []struct{ command, reason string }{
		{"can read /nowhere/file", "open /nowhere/file: no such file or directory"},
		{"can mount nosuchfs none x=1", `mount -t nosuchfs -o "x=1": no such device`},
		{"can overlay /nowhere", "no such file or directory"},
		{"can tune no/such/name nor/this", "/proc/sys/no/such/name: no such file or directory\n" +
			"/proc/sys/nor/this: no such file or directory"},
		{"can join time", `namespace type "time": net or pid is allowed`},
		{"can link ring", `link type "ring": veth or bridge is allowed`},
		{"can fly", `can "fly": unknown, there are adopt-orphans, be-root, filter,`},
		{"can mount tmpfs", "can mount takes TYPE SOURCE OPTIONS"},
		{"can log x", "can log takes no arguments"},
		{"can tune", "can tune takes NAME..."},
		{"/nowhere/program", "no such file or directory"},
		{"/bin/sh -c false", "exit status 1"},
		{"", "it has no command"},
	} {
		t.Run(c.command, func(t *testing.T) {
			takesRoot := func(word string) bool { return strings.Contains(c.command, word) }
			if os.Geteuid() != 0 && slices.ContainsFunc([]string{"mount nosuchfs", "tune no", "link"}, takesRoot) {
				t.Skip("it takes root")
			}
			answer := ask(t, Probe{ID: "x", Command: strings.Fields(c.command), Milliseconds: 30_000})[0]
			if answer.Yes || answer.Hung || !strings.Contains(answer.Reason, c.reason) {
				t.Errorf("got %+v, want %q", answer, c.reason)
			}
		})
	}
}

// One probe that hangs, with a child that holds its output, is told and ended; the others are answered.
func TestProbeThatHangs(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	answers := ask(
		t,
		Probe{
			ID:           "hangs",
			Command:      []string{"/bin/sh", "-c", "sleep 1000 & echo $! > " + pid + "; wait"},
			Milliseconds: 1000,
		},
		Probe{ID: "other", Command: []string{"/bin/sh", "-c", ":"}, Milliseconds: 30_000},
	)
	if len(answers) != 2 || answers[0].ID != "hangs" || !answers[0].Hung || answers[0].Yes {
		t.Errorf("%+v", answers)
	}
	child, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	ended := func() bool {
		state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat")
		return err != nil || strings.Contains(string(state), ") Z ")
	}
	// It is killed, and takes its time to end.
	for deadline := time.Now().Add(10 * time.Second); !ended(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("its child lives on")
		}
	}
	if !answers[1].Yes || answers[1].Hung {
		t.Errorf("%+v", answers[1])
	}
}

func TestUnknownFieldIsRefused(t *testing.T) {
	err := Run(strings.NewReader(`[{"id":"x","comand":[]}]`), &bytes.Buffer{})
	if err == nil || err.Error() != `probes: json: unknown field "comand"` {
		t.Errorf("got %v", err)
	}
}
