package lock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"gvisor-k3s/node/init/files"

	"golang.org/x/sys/unix"
)

// whoLimit is how long it may be who has a lock.
const whoLimit = 200

// Hold takes the lock of a file of this machine for somebody on another one, and keeps it as long as the connection
// lasts.
//
// The input's first line says who that is, which the file then tells those who wait. The output says "waiting for WHO"
// if the lock is somebody else's, and "held" when it is taken. It ends when the input does; "remove" on a line of the
// input has the file removed then.
func Hold(path string, shared bool, input io.Reader, output io.Writer) error {
	if err := files.CheckPath(path); err != nil {
		return err
	}
	lines := readLines(input)
	who, ok := <-lines
	if who = printable(who); !ok || who == "" {
		return errors.New("the input's first line must say who takes the lock")
	}
	file, err := acquire(path, shared, lines, output)
	if err != nil {
		return err
	}
	defer file.Close() // which gives the lock back
	if err := tell(file, who); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(output, "held"); err != nil {
		return err
	}
	remove := false
	for line := range lines {
		if line != "remove" {
			return fmt.Errorf("input %q: only \"remove\" is understood; the lock is given back", printable(line))
		}
		remove = true
	}
	return release(file, path, shared, remove)
}

// readLines has the lines of the input, and is closed at its end.
func readLines(input io.Reader) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(input); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	return lines
}

// acquire opens the file and takes its lock. The file may have been removed meanwhile, and then the lock is one that
// nobody else looks at.
func acquire(path string, shared bool, lines <-chan string, output io.Writer) (*os.File, error) {
	for {
		file, err := open(path)
		if files.IsAbsent(err) { // its folder was removed since it was made
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := await(file, shared, lines, output); err != nil {
			file.Close()
			return nil, err
		}
		same, err := isAt(file, path)
		if err == nil && same {
			return file, nil
		}
		file.Close()
		if err != nil {
			return nil, err
		}
	}
}

// open opens the file, and makes it, and its folder, if they are not there.
func open(path string) (*os.File, error) {
	if err := files.MakeFolders(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		if info, statErr := os.Lstat(path); statErr == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s is %s where a lock's file is needed; remove it", path, files.Kind(info.Mode()))
		}
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is %s where a lock's file is needed; remove it", path, files.Kind(info.Mode()))
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// await waits for the lock, as long as somebody waits for this.
func await(file *os.File, shared bool, lines <-chan string, output io.Writer) error {
	descriptor := int(file.Fd())
	if err := flock(descriptor, shared, false); !errors.Is(err, ErrHeld) {
		return err
	}
	if _, err := fmt.Fprintln(output, "waiting for "+holder(file)); err != nil {
		return err
	}
	taken := make(chan error, 1)
	go func() { taken <- flock(descriptor, shared, true) }()
	select {
	case err := <-taken:
		return err
	case line, more := <-lines:
		if more {
			return fmt.Errorf("input %q: nothing is understood before the lock is held", printable(line))
		}
		return errors.New("the input has ended, so nobody waits for the lock any more")
	}
}

// isAt tells whether the file is the one that a path leads to.
func isAt(file *os.File, path string) (bool, error) {
	opened, err := file.Stat()
	if err != nil {
		return false, err
	}
	found, err := os.Lstat(path)
	if files.IsAbsent(err) {
		return false, nil
	}
	return err == nil && os.SameFile(opened, found), err
}

// tell writes into the file who has the lock.
func tell(file *os.File, who string) error {
	_, err := file.WriteAt([]byte(who+"\n"), 0)
	return errors.Join(err, file.Truncate(int64(len(who)+1)))
}

// holder is who the file says has the lock.
func holder(file *os.File) string {
	content := make([]byte, whoLimit)
	count, _ := file.ReadAt(content, 0)
	line, _, _ := strings.Cut(string(content[:count]), "\n")
	if who := printable(line); who != "" {
		return who
	}
	return "somebody"
}

// release removes the file if that is wanted, or has it tell nobody any more. One that others share is left to the last
// of them.
func release(file *os.File, path string, shared, remove bool) error {
	if shared {
		if err := flock(int(file.Fd()), false, false); errors.Is(err, ErrHeld) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if !remove {
		return file.Truncate(0)
	}
	// Somebody may have put another file in its place since, which is then somebody else's lock.
	if same, err := isAt(file, path); err != nil || !same {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	os.Remove(filepath.Dir(path)) // unless there is something else in it
	return nil
}

// printable is a text that is safe on anybody's terminal.
func printable(text string) string {
	clean := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
	if len(clean) > whoLimit-1 {
		clean = strings.ToValidUTF8(clean[:whoLimit-1], "")
	}
	return strings.TrimSpace(clean)
}
