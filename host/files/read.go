// Package files reads and removes what a sandbox has written, for which it could have put anything: links that lead to
// the host's files, FIFOs that nobody writes, devices, files without an end, and paths longer than the kernel takes.
package files

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/usage"
)

const (
	// What is read unless it is said.
	defaultLimit = 64 << 20
	// How many names of one folder are listed.
	mostNames = 100_000
)

// Read is the subcommand: read ROOT PATH [--tail BYTES] [--limit BYTES] prints a regular file beneath a folder.
func Read(args []string) error {
	flags := flag.NewFlagSet("read", flag.ContinueOnError)
	tail := flags.Int64("tail", -1, "print no more than the last `bytes`")
	limit := flags.Int64("limit", defaultLimit, "refuse a file of more `bytes`")
	places, err := parse(flags, args, 2)
	if err != nil {
		return err
	}
	content, err := read(places[0], places[1], *tail, *limit)
	if err != nil {
		return absent(err)
	}
	_, err = os.Stdout.Write(content)
	return err
}

// List is the subcommand: list ROOT PATH prints the names of the regular files of a folder beneath a folder, one a
// line. A name that is none to be printed in a line is left out, and told on standard error.
func List(args []string) error {
	places, err := parse(flag.NewFlagSet("list", flag.ContinueOnError), args, 2)
	if err != nil {
		return err
	}
	names, odd, err := list(places[0], places[1])
	if err != nil {
		return absent(err)
	}
	for _, name := range odd {
		fmt.Fprintf(os.Stderr, "%s is left out\n", strconv.Quote(name))
	}
	for _, name := range names {
		if _, err := fmt.Println(name); err != nil {
			return err
		}
	}
	return nil
}

// AbsentError is that there is no such file.
type AbsentError struct{ error }

func absent(err error) error {
	if isAbsent(err) {
		return AbsentError{err}
	}
	return err
}

// parse takes flags before, between and behind so many arguments.
func parse(flags *flag.FlagSet, args []string, count int) ([]string, error) {
	flags.SetOutput(io.Discard)
	var rest []string
	for {
		if err := flags.Parse(args); err != nil {
			return nil, usage.Error{Reason: err}
		}
		if args = flags.Args(); len(args) == 0 {
			break
		}
		rest, args = append(rest, args[0]), args[1:]
	}
	if len(rest) != count {
		return nil, usage.Wrong("%d arguments are needed, and there are %q", count, rest)
	}
	return rest, nil
}

// read reads a file, or its end. Links are followed as long as they do not lead out of the folder.
func read(root, path string, tail, limit int64) ([]byte, error) {
	file, err := open(root, path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	size := info.Size()
	most := limit
	if tail >= 0 {
		most = min(tail, limit)
		if _, err := file.Seek(max(0, size-most), io.SeekStart); err != nil {
			return nil, err
		}
	} else if size > limit {
		return nil, fmt.Errorf("%s beneath %s has %d bytes, more than the limit of %d", path, root, size, limit)
	}
	content, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) <= most {
		return content, nil
	}
	if tail >= 0 { // it has grown meanwhile
		return content[:most], nil
	}
	return nil, fmt.Errorf("%s beneath %s grows beyond the limit of %d bytes", path, root, limit)
}

// open opens a regular file. It does not wait for who would write into a FIFO, and a device is not opened at all, or
// that alone could have it do something.
func open(root, path string) (*os.File, error) {
	beneath, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	defer beneath.Close()
	info, err := beneath.Stat(path)
	if err != nil {
		return nil, explain(root, err)
	}
	if err := isRegular(root, path, info); err != nil {
		return nil, err
	}
	return openRegular(beneath, root, path)
}

// openRegular opens what was a regular file when it was looked at, and may be something else by now.
func openRegular(beneath *os.Root, root, path string) (*os.File, error) {
	file, err := beneath.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, explain(root, err)
	}
	info, err := file.Stat()
	if err == nil {
		err = isRegular(root, path, info)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// rootError tells that the folder itself cannot be had, of which the host alone decides: that it is not there is no
// answer.
type rootError struct{ error }

func openRoot(root string) (*os.Root, error) {
	beneath, err := os.OpenRoot(root)
	if err != nil {
		return nil, rootError{fmt.Errorf("the folder to look in: %w", err)}
	}
	return beneath, nil
}

func explain(root string, err error) error {
	if isAbsent(err) {
		return err
	}
	return fmt.Errorf("beneath %s: %w", root, err)
}

// isAbsent tells whether an error means that there is no such file.
func isAbsent(err error) bool {
	if errors.As(err, &rootError{}) {
		return false
	}
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

func isRegular(root, path string, info fs.FileInfo) error {
	if info.Mode().IsRegular() {
		return nil
	}
	return fmt.Errorf("%s beneath %s is no regular file, but %s", path, root, kind(info.Mode()))
}

func kind(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else (" + mode.String() + ")"
}

// list returns the names of the regular files of a folder, and apart those that cannot be printed in a line.
func list(root, path string) (names, odd []string, err error) {
	beneath, err := openRoot(root)
	if err != nil {
		return nil, nil, err
	}
	defer beneath.Close()
	folder, err := beneath.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		// Either a part of the path is none, or what it leads to is none.
		if info, failure := beneath.Stat(path); failure == nil {
			return nil, nil, fmt.Errorf("%s beneath %s is no folder, but %s", path, root, kindOf(info))
		}
	}
	if err != nil {
		return nil, nil, explain(root, err)
	}
	defer folder.Close()
	for {
		entries, err := folder.ReadDir(1000)
		for _, entry := range entries {
			if !entry.Type().IsRegular() {
				continue
			}
			if isPlain(entry.Name()) {
				names = append(names, entry.Name())
			} else {
				odd = append(odd, entry.Name())
			}
		}
		if len(names)+len(odd) > mostNames {
			return nil, nil, fmt.Errorf("%s beneath %s has more than %d files", path, root, mostNames)
		}
		if err == io.EOF {
			return names, odd, nil
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

func kindOf(info fs.FileInfo) string {
	if info.Mode().IsRegular() {
		return "a file"
	}
	return kind(info.Mode())
}

func isPlain(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}
