package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/netns"
)

// fakeRunsc stands for runsc, and a process of the host's for the sandbox. Its first argument is a folder in which it
// notes what it is called for, and finds what it is to do: a file of a name that is a command, as below.
//
//	run.fails    print what it says and end with exit code 3
//	run.silent   start nothing, and note no process
//	run.short    start a sandbox that ends at once
//	exec.fails   the same as run.fails, of what is run in the sandbox; so do pause.fails, resume.fails, checkpoint.fails
//	             and restore.fails of these
//	checkpoint.hangs never end
//	exec.floods  print for ever
//	exec.hangs   never end
//	stubborn     have a sandbox that does not end when it is asked to
//	floods       have a sandbox that prints so many bytes
func fakeRunsc(args []string) error {
	folder, args := args[0], args[1:]
	var flags []string
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		flags, args = append(flags, args[0]), args[1:]
	}
	knob := func(name string) (string, bool) {
		text, err := os.ReadFile(filepath.Join(folder, name))
		return string(text), err == nil
	}
	command, args := args[0], args[1:]
	note(folder, "calls", command+" "+strings.Join(args, " "))
	if text, ok := knob(command + ".fails"); ok {
		fmt.Fprint(os.Stderr, text)
		os.Exit(3)
	}
	root := valueOf(flags, "root")
	switch command {
	case "pause", "resume":
		return nil
	case "checkpoint":
		image := valueOf(args, "image-path")
		err := os.WriteFile(filepath.Join(image, "pages.img"), []byte("what is in memory"), 0o644)
		if _, ok := knob("checkpoint.hangs"); ok {
			hang()
		}
		return err
	case "run", "restore":
		note(folder, "flags", strings.Join(flags, " "))
		if _, ok := knob("run.silent"); ok {
			return nil
		}
		name, pidFile := args[len(args)-1], valueOf(args, "pid-file")
		fmt.Println("runsc starts", name)
		sandbox := exec.Command("/proc/self/exe", "test-sandbox", "--root="+root, folder, name)
		sandbox.Stdout, sandbox.Stderr = os.Stdout, os.Stderr
		sandbox.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		ready, err := sandbox.StdinPipe() // it waits until it is in its group
		if err != nil {
			return err
		}
		if err := sandbox.Start(); err != nil {
			return err
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/gvisor-k3s/" + name + "/cgroup.procs")
		for _, group := range groups {
			if err := os.WriteFile(group, []byte(strconv.Itoa(sandbox.Process.Pid)), 0); err != nil {
				return err
			}
		}
		ready.Close()
		if _, ok := knob("run.short"); ok {
			sandbox.Wait()
		}
		return os.WriteFile(pidFile, []byte(strconv.Itoa(sandbox.Process.Pid)), 0o600)
	case "exec":
		if _, ok := knob("exec.floods"); ok {
			for {
				fmt.Println("a line of a flood")
			}
		}
		if _, ok := knob("exec.hangs"); ok {
			hang()
		}
		return execFake(folder, args[1:])
	case "kill", "delete":
		signal := unix.SIGTERM
		if command == "delete" {
			signal = unix.SIGKILL
		}
		pid, err := pidIn(filepath.Join(root, "pid"))
		if err != nil {
			return err
		}
		return unix.Kill(pid, signal)
	}
	return fmt.Errorf("what is %q?", command)
}

// execFake runs something in the network of the sandbox, which is all that the fake one has of its own.
func execFake(folder string, args []string) error {
	if args[0] == "/bin/busybox" { // which the host need not have
		return nil
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	note(folder, "inputs", string(input))
	namespace, err := os.ReadFile(filepath.Join(folder, "namespace"))
	if err != nil {
		return err
	}
	_, err = netns.In(string(namespace), func() (any, error) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return nil, cmd.Run()
	})
	return err
}

// fakeSandbox is the process that a fake sandbox is.
func fakeSandbox(args []string) error {
	bufio.NewReader(os.Stdin).ReadByte() // to its end
	folder := args[1]
	fmt.Println("a word of the sandbox's")
	if _, err := os.Stat(filepath.Join(folder, "run.short")); err == nil {
		return nil
	}
	if text, err := os.ReadFile(filepath.Join(folder, "floods")); err == nil {
		count, _ := strconv.Atoi(string(text))
		line := strings.Repeat("x", 1023) + "\n"
		for written := 0; written < count; written += len(line) {
			os.Stdout.WriteString(line)
		}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM)
	for range signals {
		note(folder, "signals", "TERM")
		if _, err := os.Stat(filepath.Join(folder, "stubborn")); err != nil {
			return nil
		}
	}
	return nil
}

func note(folder, file, line string) {
	f, err := os.OpenFile(filepath.Join(folder, file), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		fmt.Fprintln(f, line)
		f.Close()
	}
}

func valueOf(flags []string, name string) string {
	for _, flag := range flags {
		if value, ok := strings.CutPrefix(flag, "--"+name+"="); ok {
			return value
		}
	}
	return ""
}

func pidIn(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// withoutCgroups is the program on a host that has none. Its argument is the program's.
func withoutCgroups(args []string) error {
	runtime.LockOSThread() // which alone gets other mounts, and is the process from then on
	err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""),
		unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH))
	if err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", append([]string{"gvisor-k3s-host"}, args...), os.Environ())
}

// withFewFiles is the program where few files may be open.
func withFewFiles(args []string) error {
	few := unix.Rlimit{Cur: 4000, Max: 4000}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", append([]string{"gvisor-k3s-host"}, args...), os.Environ())
}

// hang waits for ever. To wait for nothing would be a deadlock, which Go's runtime ends.
func hang() {
	for {
		time.Sleep(time.Hour)
	}
}
