// Package boot makes what a sandbox needs before anything runs in it, or has again what the last life had.
package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gvisor-k3s/node/init/files"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Plan is what a sandbox is to have. Links are made first, since folders may lie below them, and files last.
type Plan struct {
	Folders []Folder     `json:"folders"`
	Files   []files.File `json:"files"`
	Links   []Link       `json:"links"`
}

// Folder is made, and those above it, which get the mode 755.
type Folder struct {
	Path string `json:"path"`
	Mode string `json:"mode"` // octal, up to 1777
}

// Link is a symbolic link. What is in its way is replaced, but no folder that has something in it.
type Link struct {
	Path   string `json:"path"`
	Target string `json:"target"`
}

func (p Plan) validate() error {
	problems := []error{files.Check(p.Files)}
	seen := map[string]bool{}
	once := func(path string) {
		if seen[path] {
			problems = append(problems, fmt.Errorf("path %q: it is there twice", path))
		}
		seen[path] = true
	}
	for _, folder := range p.Folders {
		_, err := files.Mode(folder.Mode, 0o1777)
		problems = append(problems, files.CheckPath(folder.Path), err)
		once(folder.Path)
	}
	for _, link := range p.Links {
		problems = append(problems, files.CheckPath(link.Path))
		if link.Target == "" {
			problems = append(problems, fmt.Errorf("link %q: it has no target", link.Path))
		}
		once(link.Path)
	}
	for _, file := range p.Files {
		if seen[file.Path] {
			once(file.Path)
		}
	}
	return errors.Join(problems...)
}

// Apply makes what is not as it should be, and names it. It tells everything that failed.
func (p Plan) Apply() (changed []string, err error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	var problems []error
	note := func(path string, did bool, err error) {
		if did && err == nil {
			changed = append(changed, path)
		}
		problems = append(problems, err)
	}
	for _, link := range p.Links {
		did, err := link.make()
		note(link.Path, did, err)
	}
	for _, folder := range p.Folders {
		mode, err := files.Mode(folder.Mode, 0o1777)
		if err != nil {
			return changed, err
		}
		did, err := files.EnsureFolder(folder.Path, mode)
		note(folder.Path, did, err)
	}
	var due []files.File
	for _, file := range p.Files {
		if !isRight(file) {
			due = append(due, file)
		}
	}
	err = files.Put(due)
	for _, file := range due {
		note(file.Path, err == nil, nil)
	}
	return changed, errors.Join(append(problems, err)...)
}

// isRight tells whether a file is there as it should be, and no link to one that is.
func isRight(file files.File) bool {
	info, err := os.Lstat(file.Path)
	if err != nil {
		return false
	}
	mode, err := files.Mode(file.Mode, 0o777)
	if err != nil || uint32(info.Mode()) != mode { // which tells of all but regular files what they are, too
		return false
	}
	content, err := files.Read(file.Path, int64(len(file.Content)))
	return err == nil && bytes.Equal(content, file.Content)
}

func (l Link) make() (changed bool, err error) {
	if target, err := os.Readlink(l.Path); err == nil && target == l.Target {
		return false, nil
	}
	if err := files.MakeFolders(filepath.Dir(l.Path), 0o755); err != nil {
		return false, fmt.Errorf("%s cannot be made: %w", l.Path, err)
	}
	info, err := os.Lstat(l.Path)
	if err == nil && info.IsDir() {
		err := unix.Rmdir(l.Path)
		if err == unix.ENOTEMPTY || err == unix.EEXIST || err == unix.EBUSY {
			return false, fmt.Errorf(
				"%s is a folder that is in use, where a link to %s is needed; remove it or move it away",
				l.Path,
				l.Target,
			)
		}
		if err != nil && err != unix.ENOENT {
			return false, fmt.Errorf("remove the empty folder %s, where a link is needed: %w", l.Path, err)
		}
	}
	if err := renameio.Symlink(l.Target, l.Path); err != nil {
		return false, fmt.Errorf("%s cannot be made: %w", l.Path, err)
	}
	return true, nil
}
