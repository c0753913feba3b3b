package files

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// File is a file that is written.
type File struct {
	Path    string `json:"path"`
	Mode    string `json:"mode"`    // octal, up to 777
	Content []byte `json:"content"` // in JSON as base64
}

// Check tells everything that is wrong with a list of files.
func Check(list []File) error {
	var problems []error
	seen := map[string]bool{}
	for _, file := range list {
		_, err := Mode(file.Mode, 0o777)
		problems = append(problems, CheckPath(file.Path), err)
		if file.Content == nil {
			problems = append(problems, fmt.Errorf("path %q: it has no content", file.Path))
		}
		if seen[file.Path] {
			problems = append(problems, fmt.Errorf("path %q: it is there twice", file.Path))
		}
		seen[file.Path] = true
	}
	return errors.Join(problems...)
}

// Put writes files: each to a temporary name beside it, and only when all are on the disk do they take their places. So
// whoever watches sees whole files, and where the disk is full nothing has changed. A link, a FIFO, a device or a
// socket at a path makes way; what a link leads to is not touched. Folders that are missing are made, open to all for
// reading.
func Put(list []File) error {
	if err := Check(list); err != nil {
		return err
	}
	var problems []error
	var written []*renameio.PendingFile
	defer func() {
		for _, file := range written {
			file.Cleanup()
		}
	}()
	for _, file := range list {
		pending, err := file.write()
		if pending != nil {
			written = append(written, pending)
		}
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	for i, file := range written {
		err := file.CloseAtomicallyReplace()
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf(
				"%s cannot be replaced, since something is mounted on it; unmount it (%w)",
				list[i].Path,
				err,
			)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// Write puts one file.
func Write(path string, mode fs.FileMode, content []byte) error {
	return Put([]File{{Path: path, Mode: fmt.Sprintf("%o", mode), Content: content}})
}

// WriteJSON puts one file that holds a value as JSON.
func WriteJSON(path string, mode fs.FileMode, value any) error {
	content, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return Write(path, mode, content)
}

// write writes the file to its temporary name.
func (f File) write() (*renameio.PendingFile, error) {
	mode, err := Mode(f.Mode, 0o777)
	if err != nil {
		return nil, err
	}
	folder := filepath.Dir(f.Path)
	if err := MakeFolders(folder, 0o755); err != nil {
		return nil, fmt.Errorf("%s cannot be written: %w", f.Path, err)
	}
	if info, err := os.Lstat(f.Path); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a folder where a file is to be written; remove it or move it away", f.Path)
	}
	pending, err := renameio.NewPendingFile(f.Path,
		renameio.WithTempDir(folder), renameio.WithStaticPermissions(fs.FileMode(mode)))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be written: %w", f.Path, err)
	}
	_, err = pending.Write(f.Content)
	if err = errors.Join(err, pending.Sync()); err != nil {
		err = fmt.Errorf("%s cannot be written: %w", f.Path, err)
	}
	return pending, err
}
