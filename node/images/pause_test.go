package images_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "pause")
	if out, err := exec.Command("pause/build.sh", binary).CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	return binary
}

func TestSameBytes(t *testing.T) {
	first, err := os.ReadFile(build(t))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(build(t))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("two builds differ")
	}
}

// start runs pause as PID 1 of a namespace, with one child that it did not start. It needs root.
func start(t *testing.T) (cmd *exec.Cmd, child int) {
	t.Helper()
	// exec keeps the child, as a container's orphans come to pause.
	cmd = exec.Command("sh", "-c", `sleep 3600 & exec "$0"`, build(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	await(t, "pause has a child and runs", func() bool {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		child = firstChild(cmd.Process.Pid)
		return string(comm) == "pause\n" && child != 0
	})
	return cmd, child
}

// firstChild is 0 when there is none.
func firstChild(pid int) int {
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	first, _, _ := strings.Cut(string(list), " ")
	child, _ := strconv.Atoi(first)
	return child
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not so within 10 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestReaps(t *testing.T) {
	cmd, child := start(t)
	if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the child that ended is gone", func() bool {
		return syscall.Kill(child, 0) == syscall.ESRCH
	})
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("pause has ended: %v", err)
	}
}

func TestEndsOnSignals(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			cmd, _ := start(t)
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("ended with %v, want status 0", err)
			}
		})
	}
}
