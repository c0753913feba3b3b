package files

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// GetLimit is how much Get reads if it is not told otherwise.
	GetLimit = 16 << 20
	// hashLimit is how large a file may be for its hash.
	hashLimit = 64 << 20
	// listLimit is how many entries a folder may have for a list of its files.
	listLimit = 10_000
)

// Read reads a regular file of at most limit bytes.
func Read(path string, limit int64) ([]byte, error) {
	file, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > limit {
		return nil, tooLarge(path, size, limit)
	}
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(content)) > limit { // it grows, or is one of /proc that tells no size
		return nil, tooLarge(path, int64(len(content)), limit)
	}
	return content, err
}

// Tail reads the last count bytes of a regular file, or all of a shorter one.
func Tail(path string, count int64) ([]byte, error) {
	file, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Seek(max(0, size-count), io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(file, count))
}

// LastLines are the last lines of a file, such as a log, for a message; or why there are none.
func LastLines(path string, count int) string {
	const width = 4096 // of a line, on average
	content, err := Tail(path, int64(count)*width)
	if IsAbsent(err) {
		return "there is no " + path
	}
	if err != nil {
		return err.Error()
	}
	return LastLinesOf(string(content), count)
}

// LastLinesOf are the last lines of a text.
func LastLinesOf(text string, count int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

// lookEvery is how often Changed looks at its file.
const lookEvery = 25 * time.Millisecond

// Changed reads a regular file as soon as the SHA-256 of what is in it is another one than known, in hex, or when the
// time is up. Where there was no file known is "", and where there is none the error is one of IsAbsent.
func Changed(path, known string, patience time.Duration) ([]byte, error) {
	deadline := time.Now().Add(patience)
	var last fs.FileInfo
	for {
		info, err := os.Stat(path)
		late := time.Now().After(deadline)
		if absent := IsAbsent(err); absent && (late || known != "") {
			return nil, err
		} else if !absent && (late || last == nil || !sameFile(last, info)) {
			content, err := Read(path, GetLimit)
			if err != nil && !IsAbsent(err) || err == nil && (late || sumOf(content) != known) {
				return content, err
			}
			last = info
		}
		time.Sleep(lookEvery)
	}
}

// sameFile tells that nothing was written in between, as far as that shows.
func sameFile(a, b fs.FileInfo) bool {
	return b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// Sum is what Hash tells of a file: one of three.
type Sum struct {
	SHA256  string `json:"sha256,omitempty"`
	Absent  bool   `json:"absent,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Hash tells the content of files by its SHA-256.
func Hash(paths []string) (map[string]Sum, error) {
	if err := checkPaths(paths); err != nil {
		return nil, err
	}
	sums := make(map[string]Sum, len(paths))
	for _, path := range paths {
		sums[path] = hash(path)
	}
	return sums, nil
}

func hash(path string) Sum {
	file, size, err := open(path)
	if IsAbsent(err) {
		return Sum{Absent: true}
	}
	if err != nil {
		return Sum{Problem: err.Error()}
	}
	defer file.Close()
	sum := sha256.New()
	if size <= hashLimit {
		size, err = io.Copy(sum, io.LimitReader(file, hashLimit+1))
	}
	if err != nil {
		return Sum{Problem: err.Error()}
	}
	if size > hashLimit {
		return Sum{Problem: tooLarge(path, size, hashLimit).Error()}
	}
	return Sum{SHA256: hex.EncodeToString(sum.Sum(nil))}
}

// List names the regular files of a folder, sorted; there are none in one that does not exist.
func List(path string) ([]string, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	names := []string{}
	folder, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		info, statErr := os.Stat(path)
		if IsAbsent(statErr) {
			return names, nil
		}
		if statErr == nil && !info.IsDir() {
			return nil, fmt.Errorf("%s is %s and no folder", path, Kind(info.Mode()))
		}
		return nil, err
	}
	defer folder.Close()
	entries, err := folder.ReadDir(listLimit + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(entries) > listLimit {
		return nil, fmt.Errorf("%s has more than %d entries, which nothing of this project's has", path, listLimit)
	}
	for _, entry := range entries {
		if entry.Type().IsRegular() {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// open opens a regular file and tells its size. What is no regular file is refused by its kind, and not waited for: a
// FIFO that is opened for reading waits for a writer unless it is asked not to.
func open(path string) (*os.File, int64, error) {
	if err := CheckPath(path); err != nil {
		return nil, 0, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		info, statErr := os.Stat(path) // a socket and some devices cannot be opened at all
		if statErr == nil && !info.Mode().IsRegular() {
			err = notRegular(path, info.Mode())
		}
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path, info.Mode())
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

func notRegular(path string, mode fs.FileMode) error {
	return fmt.Errorf("%s is %s and no regular file", path, Kind(mode))
}

func tooLarge(path string, size, limit int64) error {
	return fmt.Errorf("%s is too large: it has %d bytes, and at most %d are read", path, size, limit)
}

func checkPaths(paths []string) error {
	var problems []error
	for _, path := range paths {
		problems = append(problems, CheckPath(path))
	}
	return errors.Join(problems...)
}

// resolved is a path whose folder is named without links; what lies at the path may be a link itself.
func resolved(path string) (string, error) {
	folder, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(folder, filepath.Base(path)), err
}
