package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Measure is what is asked of a disk.
type Measure struct {
	// Folders are measured with all that lies below them on the same file system.
	Folders []string `json:"folders"`
	Seconds int      `json:"seconds"` // after which it is told what was seen by then; 1 to 60
}

// Usage is what a disk holds, in bytes.
type Usage struct {
	Size int64 `json:"size"` // of the file system of the first folder
	Free int64 `json:"free"` // of it, for those without privileges
	// Used is what the folders take, by their paths; one that is not there takes nothing.
	Used map[string]int64 `json:"used"`
	// Whole is false where the time was too short, or something could not be looked at: it is more then.
	Whole bool `json:"whole"`
}

func (m Measure) validate() error {
	problems := []error{checkPaths(m.Folders)}
	if len(m.Folders) == 0 {
		problems = append(problems, errors.New("folders: one at least is needed"))
	}
	if m.Seconds < 1 || m.Seconds > 60 {
		problems = append(problems, fmt.Errorf("seconds %d: 1 to 60 is allowed", m.Seconds))
	}
	return errors.Join(problems...)
}

// Run measures. Links are not followed, and a file that has several names is counted once for each folder.
func (m Measure) Run() (Usage, error) {
	if err := m.validate(); err != nil {
		return Usage{}, err
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(m.Folders[0], &disk); err != nil {
		return Usage{}, &fs.PathError{Op: "statfs", Path: m.Folders[0], Err: err}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(m.Seconds)*time.Second)
	defer cancel()
	usage := Usage{
		Size:  int64(disk.Blocks) * disk.Bsize,
		Free:  int64(disk.Bavail) * disk.Bsize,
		Used:  map[string]int64{},
		Whole: true,
	}
	walked := &meter{ctx: ctx, usage: &usage, seen: map[counted]bool{}}
	for _, folder := range m.Folders {
		usage.Used[folder] = 0
	}
	for _, folder := range m.roots() {
		walked.walk(folder, m.Folders)
	}
	return usage, nil
}

// roots are the folders that lie in no other of them on the same file system: who walks these meets all others.
func (m Measure) roots() []string {
	return slices.DeleteFunc(slices.Clone(m.Folders), func(folder string) bool {
		return slices.ContainsFunc(m.Folders, func(other string) bool {
			return other != folder && within(folder, other) && device(folder) == device(other)
		})
	})
}

func within(path, folder string) bool {
	return path == folder || folder == "/" || strings.HasPrefix(path, folder+"/")
}

// device is the file system that a folder is on, or 0 if there is none.
func device(folder string) uint64 {
	info, err := os.Lstat(folder)
	if err != nil {
		return 0
	}
	return uint64(info.Sys().(*syscall.Stat_t).Dev)
}

// counted is a file with several names in a folder that is measured.
type counted struct {
	folder        string
	device, inode uint64
}

type meter struct {
	ctx   context.Context
	usage *Usage
	seen  map[counted]bool
}

// walk counts what is below root for each of the folders that it is in.
func (m *meter) walk(root string, folders []string) {
	on := device(root)
	folders = slices.DeleteFunc(slices.Clone(folders), func(folder string) bool { return device(folder) != on })
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if m.ctx.Err() != nil {
			return m.ctx.Err()
		}
		if err != nil {
			m.missed(err)
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			m.missed(err)
			return nil
		}
		stat := info.Sys().(*syscall.Stat_t)
		// What is mounted here is a folder, but for a few small files; a file of an overlay is often on another device than
		// the overlay's folders (Linux: Documentation/filesystems/overlayfs.rst, "Inode properties"; gVisor's likewise).
		if entry.IsDir() && uint64(stat.Dev) != on {
			return filepath.SkipDir
		}
		for _, folder := range folders {
			if within(path, folder) {
				m.count(folder, stat)
			}
		}
		return nil
	})
	if err != nil {
		m.missed(err)
	}
}

func (m *meter) count(folder string, stat *syscall.Stat_t) {
	if stat.Nlink > 1 && stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		this := counted{folder, uint64(stat.Dev), stat.Ino}
		if m.seen[this] {
			return
		}
		m.seen[this] = true
	}
	m.usage.Used[folder] += stat.Blocks * 512
}

// missed notes that something is not counted, unless it has gone in the meantime.
func (m *meter) missed(err error) {
	if !IsAbsent(err) {
		m.usage.Whole = false
	}
}
