package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 30 * time.Second

// sleeper is a process that ends when it is told to.
func sleeper(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", "read line", "name"}, args...)...)
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		input.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func of(t *testing.T, pid int) ID {
	t.Helper()
	id, ok := Of(pid)
	if !ok {
		t.Fatalf("there is no process %d", pid)
	}
	return id
}

func await(t *testing.T, w *Watched) {
	t.Helper()
	select {
	case <-w.Ended():
	case <-time.After(patience):
		t.Fatal("its end is not noticed")
	}
}

func TestAProcessIsKnownByItsStart(t *testing.T) {
	self := of(t, os.Getpid())
	if !self.Alive() {
		t.Error("this process is not alive")
	}
	other := ID{self.PID, self.StartTime + "0"}
	if other.Alive() {
		t.Error("another one that had its number is alive")
	}
	if _, err := Watch(other); !errors.Is(err, unix.ESRCH) {
		t.Errorf("another one is watched: %v", err)
	}
	if _, ok := Of(1 << 30); ok {
		t.Error("there is a process of a number that none has")
	}
}

// A name that looks like the fields behind it.
func TestAStrangeName(t *testing.T) {
	program := t.TempDir() + "/) Z 1 2 3 ("
	text, err := os.ReadFile("/bin/sh")
	if err == nil {
		err = os.WriteFile(program, text, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-c", "read line")
	input, _ := cmd.StdinPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id := of(t, cmd.Process.Pid)
	if !id.Alive() || strings.Contains(id.StartTime, "(") {
		t.Errorf("got %v", id)
	}
	input.Close()
	cmd.Wait()
}

func TestTheEndIsAwaited(t *testing.T) {
	cmd := sleeper(t)
	w, err := Watch(of(t, cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	select {
	case <-w.Ended():
		t.Fatal("it is told to have ended while it runs")
	default:
	}
	if err := w.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, w)
	// It is a zombie now, which is dead.
	if w.Alive() {
		t.Error("it lives still")
	}
	cmd.Wait()
	if err := w.Signal(unix.SIGKILL); err != nil {
		t.Errorf("a signal to who is gone: %v", err)
	}
	if _, err := Watch(w.ID); err == nil {
		t.Error("one that is gone is watched")
	}
}

func TestNobodyIsKilledByAWatchThatEnds(t *testing.T) {
	cmd := sleeper(t)
	w, err := Watch(of(t, cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	select {
	case <-w.Ended():
		t.Error("a watch that was given up tells an end")
	default:
	}
	if !w.Alive() {
		t.Error("it was killed")
	}
}

func TestKill(t *testing.T) {
	argument := fmt.Sprintf("--root=/gvisor-k3s-test-%d", os.Getpid())
	var ids []ID
	for range 3 {
		ids = append(ids, of(t, sleeper(t, "a", argument).Process.Pid))
	}
	other := of(t, sleeper(t, argument+"0", "b "+argument).Process.Pid)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 {
		if err := Kill(ctx, "the test's processes", func() []int { return WithArgument(argument) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range ids {
		if id.Alive() {
			t.Errorf("%d lives", id.PID)
		}
	}
	if !other.Alive() {
		t.Error("one with another argument was killed")
	}
}

const asLeader = "GVISOR_K3S_TEST_LEADER"

// init is on the program's first thread.
func init() {
	if os.Getenv(asLeader) == "" {
		return
	}
	go func() {
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}()
	unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0) // of this thread alone
}

func TestAProcessLivesAsLongAsAnyOfItsThreads(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asLeader+"=1")
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id := of(t, cmd.Process.Pid)
	for began := time.Now(); ; {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id.PID))
		if err != nil || time.Since(began) > patience {
			t.Fatalf("its first thread does not end: %s, %v", text, err)
		}
		if strings.Contains(string(text), ") Z ") {
			break
		}
	}
	if !id.Alive() {
		t.Error("others of its threads run, and it counts as gone")
	}
	input.Close()
	for began := time.Now(); id.Alive(); {
		if time.Since(began) > patience {
			t.Fatal("all of its threads have ended, and it counts as alive")
		}
	}
	cmd.Wait()
}
