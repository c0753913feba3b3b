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

// A process is where and how a command runs.
type process interface {
	// run runs one command to its end and, when it succeeds, fills out. out also holds what the last command wrote, for
	// addPreviousOutputInEnv. A command that fails leaves out as it was; its error carries the command's output. log is
	// called with each line as it is written.
	run(ctx context.Context, command string, out *ProcessOutputs, log func(line string)) error
}

func (in ProcessInputs) run(ctx context.Context, command string, out *ProcessOutputs, log func(line string)) error {
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

	streams := newStreams(in.Logging, log)
	cmd.Stdout, cmd.Stderr = streams.stdout, streams.stderr

	if _, err = os.Stat(dir); err != nil {
		err = fmt.Errorf("dir: %w", err) // exec would blame the interpreter for a missing directory
	} else {
		err = runGroup(ctx, cmd)
	}
	streams.flush()
	if err != nil {
		return fmt.Errorf("%w: running %q:\n%s", err, command, streams.both.String())
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
	streams.keep(out)
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
	return stopped(ctx)
}

// stopped tells why a command was not left to its end.
func stopped(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.New("stopped: the resource's timeout (customTimeouts) was reached")
	}
	return errors.New("stopped: the operation was cancelled")
}

// streams take what a command writes: to keep it, and to show it while the command runs.
type streams struct {
	stdout, stderr   io.Writer
	both             *syncBuffer // in the order of arrival, for the error
	keptOut, keptErr bytes.Buffer
	outLog, errLog   *lineLogger
}

func newStreams(logging *Logging, log func(line string)) *streams {
	s := &streams{both: &syncBuffer{}, outLog: &lineLogger{log: log}, errLog: &lineLogger{log: log}}
	s.stdout = tee(logging.shows(LogStdout), s.outLog, &s.keptOut, s.both)
	s.stderr = tee(logging.shows(LogStderr), s.errLog, &s.keptErr, s.both)
	return s
}

// flush shows a last line that had no end.
func (s *streams) flush() {
	s.outLog.flush()
	s.errLog.flush()
}

// keep puts what was written into the outputs.
func (s *streams) keep(out *ProcessOutputs) {
	out.Stdout = strings.TrimSuffix(s.keptOut.String(), "\n")
	out.Stderr = strings.TrimSuffix(s.keptErr.String(), "\n")
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
