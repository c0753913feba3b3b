package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

const (
	previousStdout = "PULUMI_COMMAND_STDOUT"
	previousStderr = "PULUMI_COMMAND_STDERR"
)

// stopGrace is how long a cancelled command has between SIGTERM and SIGKILL. The engine itself kills a provider that
// is not gone five seconds after it was told to stop, and a provider that is killed first can no longer clean up.
const stopGrace = 3 * time.Second

// run runs one command to its end and, when it succeeds, fills out. out also holds what the last command wrote, for
// in.AddPreviousOutputInEnv. A command that fails leaves out as it was; its error carries the command's output. log
// is called with each line as it is written.
func run(ctx context.Context, command string, in ProcessInputs, out *ProcessOutputs, log func(line string)) error {
	argv := []string{"/bin/sh", "-c"}
	if in.Interpreter != nil && len(*in.Interpreter) > 0 {
		argv = slices.Clone(*in.Interpreter)
	}
	argv = append(argv, command)

	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	if in.Dir != nil {
		dir = *in.Dir
	}

	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = environment(in, *out)
	if in.Stdin != nil {
		cmd.Stdin = strings.NewReader(*in.Stdin)
	}
	written := newRecording(in.Logging, log)
	cmd.Stdout, cmd.Stderr = written.stdout, written.stderr

	if _, err = os.Stat(dir); err != nil {
		err = fmt.Errorf("dir: %w", err) // exec would blame the interpreter for a missing directory
	} else {
		err = runGroup(ctx, cmd)
	}
	if err := written.end(command, err, out); err != nil {
		return err
	}

	if in.AssetPaths != nil {
		if out.Assets, err = globAssets(dir, *in.AssetPaths); err != nil {
			return fmt.Errorf("assetPaths: %w", err)
		}
	}
	if in.ArchivePaths != nil {
		files, err := globAssets(dir, *in.ArchivePaths)
		if err != nil {
			return fmt.Errorf("archivePaths: %w", err)
		}
		members := make(map[string]any, len(files))
		for path, file := range files {
			members[path] = file
		}
		if out.Archive, err = resource.NewAssetArchive(members); err != nil {
			return fmt.Errorf("archivePaths: %w", err)
		}
	}
	return nil
}

// environment is the engine's environment with the resource's own variables and the last outputs, later ones winning.
func environment(in ProcessInputs, last ProcessOutputs) []string {
	env := os.Environ()
	if in.Environment != nil {
		for _, name := range slices.Sorted(maps.Keys(*in.Environment)) {
			env = append(env, name+"="+(*in.Environment)[name])
		}
	}
	if in.AddPreviousOutputInEnv == nil || *in.AddPreviousOutputInEnv {
		if last.Stdout != "" {
			env = append(env, previousStdout+"="+last.Stdout)
		}
		if last.Stderr != "" {
			env = append(env, previousStderr+"="+last.Stderr)
		}
	}
	return env
}

// runGroup runs cmd in a process group of its own. When ctx ends first, the whole group is told to stop and, after
// stopGrace, killed: a shell's children would otherwise live on and hold its pipes open. What a command that
// succeeds leaves in the background is left alone.
func runGroup(ctx context.Context, cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	signalGroup := func(sig syscall.Signal) error {
		err := syscall.Kill(-cmd.Process.Pid, sig)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	cmd.Cancel = func() error { return signalGroup(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace

	err := cmd.Run()
	if ctx.Err() == nil {
		return err
	}
	if cmd.Process != nil {
		_ = signalGroup(syscall.SIGKILL) // gone already is the usual case
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("stopped: the resource's timeout (customTimeouts) was reached")
	}
	return errors.New("stopped: the operation was cancelled")
}

// recording is what a command writes to its standard output and error, kept and, as far as it is to be, shown.
type recording struct {
	stdout, stderr       io.Writer
	outBuffer, errBuffer bytes.Buffer
	both                 syncBuffer // in the order of arrival, for the error
	outLog, errLog       lineLogger
}

func newRecording(logging *Logging, log func(line string)) *recording {
	r := &recording{outLog: lineLogger{log: log}, errLog: lineLogger{log: log}}
	r.stdout = tee(logging.shows(LogStdout), &r.outLog, &r.outBuffer, &r.both)
	r.stderr = tee(logging.shows(LogStderr), &r.errLog, &r.errBuffer, &r.both)
	return r
}

// end fills out or, when the command failed with err, adds to err what was written.
func (r *recording) end(command string, err error, out *ProcessOutputs) error {
	r.outLog.flush()
	r.errLog.flush()
	if err != nil {
		return fmt.Errorf("%w: running %q:\n%s", err, command, r.both.String())
	}
	out.Stdout = strings.TrimSuffix(r.outBuffer.String(), "\n")
	out.Stderr = strings.TrimSuffix(r.errBuffer.String(), "\n")
	return nil
}

func tee(show bool, log io.Writer, others ...io.Writer) io.Writer {
	if show {
		others = append(others, log)
	}
	return io.MultiWriter(others...)
}

// syncBuffer is a bytes.Buffer that stdout's and stderr's goroutines may share.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(data)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
