package main

import (
	"bytes"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

const private os.FileMode = 0o600

// writePrivate replaces a file with one that only its owner can read. It is there whole or as it was before, also on a
// disk that is full and after a loss of power. One that holds the content already is left alone: a start on a full disk
// needs no room for what has not changed.
func writePrivate(file string, content []byte) error {
	if holds(file, content) {
		return nil
	}
	pending, err := renameio.TempFile(filepath.Dir(file), file) // in the same folder, with mode 0600
	if err != nil {
		return err
	}
	defer pending.Cleanup()
	if _, err := pending.Write(content); err != nil {
		return err
	}
	return pending.CloseAtomicallyReplace()
}

func holds(file string, content []byte) bool {
	info, err := os.Lstat(file)
	if err != nil || info.Mode() != private || info.Size() != int64(len(content)) {
		return false
	}
	present, err := os.ReadFile(file)
	return err == nil && bytes.Equal(present, content)
}
