// Command mkimage makes container images from files: a tar archive in OCI layout,
// as `ctr -n k8s.io images import` takes it. Same input, same bytes: times are the
// epoch, owners are root, entries are sorted, and the layer is not compressed.
//
//	mkimage -o pause.tar --name gvisor-k3s.local/pause:1 --platform linux/amd64 --file pause:/pause:0755 \
//	        --entrypoint /pause --user 65535:65535
//
// The options of a further image follow after `--`.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// spec is what an image is made of.
type spec struct {
	Names      []name.Tag
	Arch       string // of linux: amd64 or arm64
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	Labels     map[string]string
	Entries    []entry
}

// entry is one file or symbolic link of the image's only layer.
type entry struct {
	Dest   string // absolute path in the image
	Source string // file on this machine; empty for a link
	Mode   int64  // permission bits of a file or folder
	Target string // what a link points to
	Folder bool
}

var platforms = []string{"linux/amd64", "linux/arm64"}

// userForm is UID or UID:GID: names would need a passwd file in the image.
var userForm = regexp.MustCompile(`^[0-9]+(:[0-9]+)?$`)

func main() {
	err := run(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var images []*spec
	var problems []error
	var output string
	for more := true; more; {
		options := args
		if end := slices.Index(args, "--"); end >= 0 {
			options, args = args[:end], args[end+1:]
		} else {
			more = false
		}
		s, err := parse(options, &output)
		images, problems = append(images, s), append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return write(images, output)
}

// parse reads the options of an image; the first has the output. The error lists everything that is wrong with them.
func parse(args []string, output *string) (*spec, error) {
	s := &spec{Labels: map[string]string{}}
	var problems []error
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	flags := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	platform := flags.String("platform", platforms[0], "`platform`: "+strings.Join(platforms, ", "))
	flags.StringVar(&s.User, "user", "", "`UID[:GID]` to run as; root where it is not given")
	flags.StringVar(output, "o", *output, "archive `file` to write (required, with the first image)")
	list := func(to *[]string, name, usage string) {
		flags.Func(name, usage+"; can be repeated", func(v string) error {
			*to = append(*to, v)
			return nil
		})
	}
	var names, files, links, labels, roots []string
	list(&names, "name", "full `name` of the image, with registry and tag (required)")
	list(&files, "file", "`SRC:DEST:MODE`: a file, its absolute path in the image, its octal permissions")
	list(&roots, "root", "`FOLDER`: every file, link and folder below it, with its permissions, "+
		"where the same path is in the image")
	list(&links, "symlink", "`TARGET:DEST`: a symbolic link at the absolute path DEST")
	list(&s.Entrypoint, "entrypoint", "`word` of the entry point")
	list(&s.Cmd, "cmd", "`word` of the default arguments")
	list(&s.Env, "env", "`NAME=VALUE` in the environment")
	list(&labels, "label", "`NAME=VALUE` label")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}

	if flags.NArg() > 0 {
		problem("%q: only options are allowed", flags.Args())
	}
	if len(names) == 0 {
		problem("--name: missing, give registry, repository and tag, such as gvisor-k3s.local/pause:1")
	}
	for _, full := range names {
		tag, err := name.NewTag(full, name.StrictValidation)
		if err != nil {
			problem("--name %q: %v; give registry, repository and tag, such as gvisor-k3s.local/pause:1", full, err)
		}
		s.Names = append(s.Names, tag)
	}
	if !slices.Contains(platforms, *platform) {
		problem("--platform %q: allowed are %s", *platform, strings.Join(platforms, ", "))
	}
	s.Arch = strings.TrimPrefix(*platform, "linux/")
	if *output == "" {
		problem("-o: missing, give the file to write")
	}
	if s.User != "" && !userForm.MatchString(s.User) {
		problem("--user %q: give UID or UID:GID in digits", s.User)
	}
	for _, env := range s.Env {
		if key, _, ok := strings.Cut(env, "="); !ok || key == "" {
			problem("--env %q: give NAME=VALUE", env)
		}
	}
	for _, label := range labels {
		key, value, ok := strings.Cut(label, "=")
		if !ok || key == "" {
			problem("--label %q: give NAME=VALUE", label)
		}
		s.Labels[key] = value
	}
	for _, file := range files {
		e, err := parseFile(file)
		if err != nil {
			problem("--file %q: %w", file, err)
		}
		s.Entries = append(s.Entries, e)
	}
	for _, link := range links {
		target, dest, ok := strings.Cut(link, ":")
		if !ok || target == "" || !isClean(dest) {
			problem("--symlink %q: give TARGET:DEST, DEST an absolute path", link)
		}
		s.Entries = append(s.Entries, entry{Dest: dest, Target: target})
	}
	for _, root := range roots {
		entries, err := tree(root)
		if err != nil {
			problem("--root %q: %w", root, err)
		}
		s.Entries = append(s.Entries, entries...)
	}
	if len(s.Entries) == 0 {
		problem("--file: missing, an image needs at least one file")
	}
	slices.SortFunc(s.Entries, func(a, b entry) int { return strings.Compare(a.Dest, b.Dest) })
	for i := 1; i < len(s.Entries); i++ {
		if s.Entries[i].Dest == s.Entries[i-1].Dest {
			problem("%s: given more than once", s.Entries[i].Dest)
		}
	}
	return s, errors.Join(problems...)
}

// parseFile splits SRC:DEST:MODE from its end, as SRC may hold a colon.
func parseFile(arg string) (entry, error) {
	const form = "give SRC:DEST:MODE, such as pause:/pause:0755"
	parts := strings.Split(arg, ":")
	if len(parts) < 3 {
		return entry{}, errors.New(form)
	}
	n := len(parts)
	e := entry{Source: strings.Join(parts[:n-2], ":"), Dest: parts[n-2]}
	mode, err := strconv.ParseUint(parts[n-1], 8, 12)
	if err != nil || !isClean(e.Dest) || e.Source == "" {
		return e, errors.New(form + ": DEST an absolute path, MODE octal up to 7777")
	}
	e.Mode = int64(mode)
	info, err := os.Stat(e.Source)
	if err != nil {
		return e, err
	}
	if !info.Mode().IsRegular() {
		return e, fmt.Errorf("%s is not a regular file", filepath.Clean(e.Source))
	}
	return e, nil
}

// tree lists what is below a folder. Anything but files, links and folders is refused.
func tree(root string) ([]entry, error) {
	var entries []entry
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := entry{Dest: strings.TrimPrefix(file, filepath.Clean(root)), Mode: int64(info.Mode().Perm())}
		for bit, mode := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
			if info.Mode()&bit != 0 {
				e.Mode |= mode
			}
		}
		switch info.Mode().Type() {
		case 0:
			e.Source = file
		case fs.ModeDir:
			e.Folder = true
		case fs.ModeSymlink:
			if e.Target, err = os.Readlink(file); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is neither a file nor a link nor a folder", file)
		}
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

func isClean(dest string) bool {
	return path.IsAbs(dest) && path.Clean(dest) == dest && dest != "/"
}
