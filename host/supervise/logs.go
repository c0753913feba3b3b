package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/google/renameio/v2"
	"gopkg.in/natefinch/lumberjack.v2"

	"gvisor-k3s/host/process"
)

const (
	// Of the supervisor's own log, in MiB.
	ownLogSize = 5
	ownLogsOld = 2
	// What others' logs may have, of which as much is kept when they begin anew. A sandbox may write into its log what it
	// likes, and as fast as it can.
	mostLog = 10 << 20
	// How many of runsc's debug logs are kept. Each of its commands writes one.
	mostDebugLogs = 20
	oldSuffix     = ".1"
	// How long what is written is let be, so that who writes for ever does not keep this process busy.
	logPause = time.Second
)

func newLog(file string) *log.Logger {
	return log.New(&lumberjack.Logger{Filename: file, MaxSize: ownLogSize, MaxBackups: ownLogsOld}, "",
		log.LstdFlags|log.LUTC)
}

// logKeeper keeps the logs that others append to from filling the disk.
type logKeeper struct {
	folder string // of the host's
	debug  string // of runsc's
	own    string // which is kept by who writes it
	root   string // the argument of the sandbox's processes
	log    *log.Logger
}

func newLogKeeper(s Spec, l *log.Logger) *logKeeper {
	return &logKeeper{folder: s.logs(), debug: s.runscLogs(), own: s.ownLog(), root: s.rootArgument(), log: l}
}

// watch looks after the logs whenever something is written, until the context ends.
func (k *logKeeper) watch(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the logs: %w", err)
	}
	for _, folder := range []string{k.folder, k.debug} {
		if err := watcher.Add(folder); err != nil {
			watcher.Close()
			return fmt.Errorf("watching the logs: %w", err)
		}
	}
	go func() {
		defer watcher.Close()
		for {
			k.tidy()
			if !awaitChange(ctx, watcher) {
				return
			}
		}
	}()
	return nil
}

// awaitChange returns some time after something has changed. The kernel counts what changes meanwhile as one.
func awaitChange(ctx context.Context, watcher *fsnotify.Watcher) bool {
	select {
	case <-ctx.Done():
		return false
	case <-watcher.Events:
	case <-watcher.Errors: // there was more than the kernel could tell
	}
	pause := time.After(logPause)
	for told := 0; ; {
		events := watcher.Events
		if told++; told > 1000 { // the rest waits for the next time
			events = nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-pause:
			return true
		case <-events:
		case <-watcher.Errors:
		}
	}
}

// tidy shortens what is too long and removes what is too much.
func (k *logKeeper) tidy() {
	for _, folder := range []string{k.folder, k.debug} {
		for _, file := range regularFiles(folder) {
			if k.isOwn(file.path) || strings.HasSuffix(file.path, oldSuffix) || file.info.Size() <= mostLog {
				continue
			}
			if err := beginAnew(file.path); err != nil {
				k.log.Printf("shortening %s: %v", file.path, err)
			}
		}
	}
	if err := k.prune(); err != nil {
		k.log.Printf("removing old logs of runsc's: %v", err)
	}
}

// isOwn tells of the supervisor's own log and its old ones, whose names have a time before the suffix.
func (k *logKeeper) isOwn(path string) bool {
	suffix := filepath.Ext(k.own)
	return strings.HasPrefix(path, strings.TrimSuffix(k.own, suffix)) && strings.HasSuffix(path, suffix)
}

type logFile struct {
	path string
	info fs.FileInfo
}

func regularFiles(folder string) []logFile {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil
	}
	var all []logFile
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			all = append(all, logFile{filepath.Join(folder, entry.Name()), info})
		}
	}
	return all
}

// beginAnew keeps a log's end aside and empties it. Who writes it has it open, and appends.
func beginAnew(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	old, err := renameio.NewPendingFile(path+oldSuffix, renameio.WithTempDir(filepath.Dir(path)),
		renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer old.Cleanup()
	// Never more than this, whatever size the file has by now.
	end := io.NewSectionReader(file, max(0, info.Size()-mostLog), mostLog)
	_, copied := io.Copy(old, end)
	if copied == nil {
		copied = old.CloseAtomicallyReplace()
	}
	// Also where there is no room for a copy: all the more.
	return errors.Join(copied, file.Truncate(0))
}

// prune removes runsc's debug logs but for the newest, and but for those that processes of the sandbox have open: these
// would grow on without a name, where nobody finds them.
func (k *logKeeper) prune() error {
	logs := slices.DeleteFunc(regularFiles(k.debug), func(f logFile) bool {
		name := filepath.Base(f.path)
		return name == "panic.log" || strings.HasSuffix(name, oldSuffix) || strings.HasPrefix(name, ".")
	})
	if len(logs) <= mostDebugLogs {
		return nil
	}
	slices.SortFunc(logs, func(a, b logFile) int { return b.info.ModTime().Compare(a.info.ModTime()) })
	open := k.openFiles()
	var problems []error
	for _, old := range logs[mostDebugLogs:] {
		if open[idOf(old.info)] {
			continue
		}
		problems = append(problems, os.Remove(old.path))
		if err := os.Remove(old.path + oldSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

type fileID struct{ device, inode uint64 }

func idOf(info fs.FileInfo) fileID {
	stat := info.Sys().(*syscall.Stat_t)
	return fileID{uint64(stat.Dev), stat.Ino}
}

// openFiles are those that the sandbox's processes have open.
func (k *logKeeper) openFiles() map[fileID]bool {
	open := map[fileID]bool{}
	for _, pid := range process.WithArgument(k.root) {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, link := range links {
			if info, err := os.Stat(link); err == nil {
				open[idOf(info)] = true
			}
		}
	}
	return open
}
