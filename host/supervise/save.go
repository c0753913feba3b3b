package supervise

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/archive"
	"gvisor-k3s/host/process"
	"gvisor-k3s/host/program"
	"gvisor-k3s/host/usage"
)

const (
	// How long gVisor has to write a sandbox's memory.
	memoryTimeout = 5 * time.Minute
	// How long what a sandbox's programs have written has to reach its disk.
	syncTimeout = time.Minute

	memoryFolder = "memory"
	diskFile     = "disk"
)

// Saved is what is told of a save.
type Saved struct {
	// Frozen is for how many milliseconds nothing ran in the sandbox.
	Frozen int64 `json:"frozen"`
	// Files are those that were written, by their paths in the folder.
	Files map[string]SavedFile `json:"files"`
}

// SavedFile is one of them.
type SavedFile struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Save is the subcommand: save [--memory] [--end] SPEC_FILE FOLDER keeps what a sandbox has on its disk, or in its
// memory, or both, in a folder that is there. Nothing runs in the sandbox meanwhile, so that all is of one instant. It
// goes on whatever happens, also where this process is killed; with --end, it has ended.
func Save(args []string) error {
	flags := flag.NewFlagSet("save", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	memory := flags.Bool("memory", false, "keep what is in its memory, too")
	end := flags.Bool("end", false, "end it then, with its supervisor, and keep only its memory: its disk stays as it is")
	if err := flags.Parse(args); err != nil {
		return usage.Error{Reason: err}
	}
	if flags.NArg() != 2 {
		return usage.Wrong("save %q: [--memory] [--end] SPEC_FILE FOLDER is needed", args)
	}
	spec, _, err := readSpec(flags.Arg(0))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	s := &saver{
		sandbox: &sandbox{spec: spec, log: log.New(os.Stderr, "", 0)}, specFile: flags.Arg(0), folder: flags.Arg(1),
		memory: *memory, end: *end,
	}
	saved, err := s.save(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(saved)
}

type saver struct {
	sandbox     *sandbox
	specFile    string
	folder      string
	memory, end bool
	// hashes are those of files that were hashed as they were written.
	hashes map[string]SavedFile
}

func (s *saver) save(ctx context.Context) (Saved, error) {
	s.hashes = map[string]SavedFile{}
	if _, err := s.sandbox.exec(ctx, syncTimeout, "", []string{"/bin/busybox", "sync"}); err != nil {
		return Saved{}, fmt.Errorf("having the sandbox write what it holds back: %w", err)
	}
	thawed, err := guard(s.specFile)
	if err != nil {
		return Saved{}, err
	}
	begin := time.Now()
	err = s.frozen(ctx)
	if s.end && err == nil {
		frozen := time.Since(begin)
		saved, err := s.finish(frozen)
		if err == nil {
			err = s.endAll()
		}
		if err != nil {
			return Saved{}, errors.Join(err, s.thaw())
		}
		thawed()
		return saved, nil
	}
	if err != nil { // first, so that what goes on has room
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.folder, memoryFolder)),
			os.RemoveAll(filepath.Join(s.folder, diskFile)))
	}
	err = errors.Join(err, s.thaw())
	frozen := time.Since(begin)
	thawed()
	if err != nil {
		return Saved{}, err
	}
	return s.finish(frozen)
}

// frozen stops what runs in the sandbox, and writes what there is to be kept.
func (s *saver) frozen(ctx context.Context) error {
	if _, err := program.Run(ctx, s.sandbox.runsc(toolTimeout, "pause", s.sandbox.spec.Name)); err != nil {
		return fmt.Errorf("stopping what runs in the sandbox: %w", err)
	}
	if s.memory {
		if err := s.writeMemory(ctx); err != nil {
			return err
		}
	}
	if s.end {
		return nil
	}
	return s.writeDisk(ctx)
}

// thaw has the sandbox go on.
func (s *saver) thaw() error {
	_, err := program.Run(context.Background(), s.sandbox.runsc(toolTimeout, "resume", s.sandbox.spec.Name))
	if err != nil {
		return fmt.Errorf("having the sandbox go on: %w", err)
	}
	return nil
}

// writeMemory has gVisor write what the sandbox has in its memory. Without --leave-running it would end a sandbox that
// it cannot save.
func (s *saver) writeMemory(ctx context.Context) error {
	folder := filepath.Join(s.folder, memoryFolder)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	output, err := os.CreateTemp("", "gvisor-k3s-save-")
	if err != nil {
		return err
	}
	defer output.Close()
	if err := os.Remove(output.Name()); err != nil {
		return err
	}
	command := s.sandbox.runsc(memoryTimeout, "checkpoint", "--image-path="+folder, "--leave-running", "--direct",
		s.sandbox.spec.Name)
	command.Output = output
	if _, err := program.Run(ctx, command); err != nil {
		return fmt.Errorf("gVisor does not save the sandbox's memory: %s", firstLine(output, err))
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries { // gVisor has others read them
		if err := os.Chmod(filepath.Join(folder, entry.Name()), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// firstLine is what gVisor says first, which is why: a trace of all that it was at follows.
func firstLine(output *os.File, otherwise error) string {
	text := make([]byte, 1000)
	length, _ := output.ReadAt(text, 0)
	line, _, _ := strings.Cut(program.Text(string(text[:length])), "\n")
	if line == "" {
		return otherwise.Error()
	}
	return line
}

func (s *saver) writeDisk(ctx context.Context) error {
	file, err := os.OpenFile(filepath.Join(s.folder, diskFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	buffer := bufio.NewWriterSize(io.MultiWriter(file, sum), 1<<20)
	if err := archive.Pack(ctx, filepath.Join(s.sandbox.spec.Runsc.Bundle, "rootfs"), buffer); err != nil {
		return fmt.Errorf("keeping the sandbox's disk: %w", err)
	}
	if err := buffer.Flush(); err != nil {
		return fmt.Errorf("keeping the sandbox's disk: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	s.hashes[diskFile] = SavedFile{info.Size(), hex.EncodeToString(sum.Sum(nil))}
	return nil
}

// finish has what was written reach the host's disk, and takes its hashes.
func (s *saver) finish(frozen time.Duration) (Saved, error) {
	saved := Saved{frozen.Milliseconds(), s.hashes}
	var names []string
	for _, folder := range []string{"", memoryFolder} {
		entries, err := os.ReadDir(filepath.Join(s.folder, folder))
		if err != nil && !(folder == memoryFolder && errors.Is(err, os.ErrNotExist)) {
			return Saved{}, err
		}
		for _, entry := range entries {
			if entry.Type().IsRegular() {
				names = append(names, filepath.Join(folder, entry.Name()))
			}
		}
	}
	problems := make([]error, len(names))
	files := make([]SavedFile, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			known, ok := s.hashes[name]
			files[i], problems[i] = settle(filepath.Join(s.folder, name), known, ok)
		})
	}
	all.Wait()
	if err := errors.Join(problems...); err != nil {
		return Saved{}, err
	}
	for i, name := range names {
		saved.Files[name] = files[i]
	}
	return saved, syncFolders(s.folder, filepath.Join(s.folder, memoryFolder))
}

// settle has a file reach the host's disk.
func settle(path string, known SavedFile, isKnown bool) (SavedFile, error) {
	file, err := os.Open(path)
	if err != nil {
		return SavedFile{}, err
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return SavedFile{}, err
	}
	if isKnown {
		return known, nil
	}
	sum := sha256.New()
	size, err := io.Copy(sum, file)
	return SavedFile{size, hex.EncodeToString(sum.Sum(nil))}, err
}

func syncFolders(folders ...string) error {
	for _, folder := range folders {
		opened, err := os.Open(folder)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = opened.Sync()
		opened.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// endAll kills the supervisor, which would start the sandbox again, and the sandbox.
func (s *saver) endAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), clearTimeout)
	defer cancel()
	spec := s.sandbox.spec
	supervisors := func() []int {
		all := process.WithArgument("supervise")
		return slices.DeleteFunc(process.WithArgument(s.specFile), func(pid int) bool { return !slices.Contains(all, pid) })
	}
	if err := process.Kill(ctx, "the sandbox's supervisor", supervisors); err != nil {
		return err
	}
	root := func() []int { return process.WithArgument(spec.rootArgument()) }
	return process.Kill(ctx, "the sandbox", root)
}

// Guard is the subcommand: thaw SPEC_FILE waits until who has started it has ended, and has the sandbox go on then,
// unless it was told that all is well.
func Guard(args []string) error {
	if len(args) != 1 {
		return usage.Wrong("thaw %q: the file of a sandbox's spec is needed", args)
	}
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	word, err := io.ReadAll(os.Stdin)
	if err != nil || len(word) > 0 {
		return err
	}
	spec, _, err := readSpec(args[0])
	if err != nil {
		return err
	}
	s := &saver{sandbox: &sandbox{spec: spec, log: log.New(os.Stderr, "", 0)}}
	return s.thaw()
}

// guard starts a process that has the sandbox go on if this one is killed. What is returned tells it that all is well.
func guard(specFile string) (func(), error) {
	cmd := exec.Command("/proc/self/exe", "thaw", specFile)
	cmd.Args[0] = "gvisor-k3s-host"
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	word, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		io.WriteString(word, "all is well")
		word.Close()
		cmd.Wait()
	}, nil
}
