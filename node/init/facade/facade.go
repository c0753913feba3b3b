// Package facade gives a sandbox what a kubelet and runc look for and gVisor does not have.
package facade

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gvisor-k3s/node/init/files"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Plan is what a sandbox lacks and gets: settings of its kernel first, then files, mounts in order, device nodes,
// links, and mounts that are shared.
// Everything that is there already is left as it is, so a plan can be applied again at any time.
type Plan struct {
	Settings []File  `json:"settings"` // written unless they read so already
	Files    []File  `json:"files"`
	Mounts   []Mount `json:"mounts"`
	Nodes    []Node  `json:"nodes"`
	Links    []Link  `json:"links,omitempty"`
	// Private are folders that are made, with a mount of their own each, which is not shared.
	Private []string `json:"private,omitempty"`
	// Shared are folders: what is mounted there or below is made shared, as by mount --make-rshared, but for what is
	// private.
	Shared []string `json:"shared,omitempty"`
}

// File is written if it does not exist; its folders are made.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content"`
}

// Mount is made unless something of this type is mounted on Target already. Target and Folders are created before.
type Mount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Target  string   `json:"target"`
	Options string   `json:"options"` // as in mount(8)'s -o, without generic flags
	Folders []string `json:"folders"`
	// Optional leaves the target out, without an error, where the kernel does not know the file system or its options.
	Optional bool `json:"optional"`
}

// Node is a character device, made with mode 0666.
type Node struct {
	Path  string `json:"path"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
}

// Link is a symbolic link to a folder, which is made with mode 0700 as well.
type Link struct {
	Path   string `json:"path"`
	Target string `json:"target"`
}

// Apply carries the plan out and reports everything that failed.
func (p Plan) Apply() error {
	var problems []error
	for _, setting := range p.Settings {
		problems = append(problems, setting.set())
	}
	for _, file := range p.Files {
		problems = append(problems, file.write())
	}
	for _, mount := range p.Mounts {
		problems = append(problems, mount.make())
	}
	for _, node := range p.Nodes {
		problems = append(problems, node.make())
	}
	for _, link := range p.Links {
		problems = append(problems, link.make())
	}
	for _, folder := range p.Private {
		problems = append(problems, keepPrivate(folder))
	}
	for _, folder := range p.Shared {
		problems = append(problems, share(folder, p.Private))
	}
	return errors.Join(problems...)
}

// set writes a setting of the kernel, in place, since it is no file of a disk. What somebody put there instead is not
// waited for.
func (f File) set() error {
	const limit = 1 << 16 // a page is what the kernel's own have at most
	current, err := files.Read(f.Path, limit)
	if err == nil && strings.TrimSpace(string(current)) == f.Content {
		return nil
	}
	file, err := os.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	_, err = file.WriteString(f.Content)
	return errors.Join(err, file.Close())
}

func (f File) write() error {
	if there, err := isThere(f.Path); err == nil && there {
		return nil
	}
	return files.Write(f.Path, 0o644, []byte(f.Content))
}

func (m Mount) make() error {
	mounted, err := mountedType(m.Target)
	if err != nil || mounted == m.Type {
		return err
	}
	for _, folder := range append(m.Folders, m.Target) {
		if err := files.MakeFolders(folder, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(m.Source, m.Target, m.Type, 0, m.Options); err != nil {
		if m.Optional && (err == unix.EINVAL || err == unix.ENODEV || err == unix.ENOENT) {
			return os.Remove(m.Target)
		}
		return fmt.Errorf("mount -t %s -o %q %s %s: %w", m.Type, m.Options, m.Source, m.Target, err)
	}
	return nil
}

func (n Node) make() error {
	err := unix.Mknod(n.Path, unix.S_IFCHR|0o666, int(unix.Mkdev(n.Major, n.Minor)))
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mknod %s: %w", n.Path, err)
	}
	return os.Chmod(n.Path, 0o666) // mknod heeds the umask
}

func (l Link) make() error {
	if there, err := isThere(l.Path); err != nil || there {
		return err
	}
	if err := files.MakeFolders(filepath.Dir(l.Path), 0o755); err != nil {
		return err
	}
	if err := files.MakeFolders(l.Target, 0o700); err != nil {
		return err
	}
	return os.Symlink(l.Target, l.Path)
}

// keepPrivate gives a folder a mount of its own.
func keepPrivate(folder string) error {
	mounted, err := mountedType(folder)
	if err != nil {
		return err
	}
	if mounted == "" {
		if err := files.MakeFolders(folder, 0o711); err != nil {
			return err
		}
		if err := unix.Mount(folder, folder, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount --rbind %s %s: %w", folder, folder, err)
		}
	}
	if err := unix.Mount("", folder, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount --make-private %s: %w", folder, err)
	}
	return nil
}

// share makes what is mounted at a folder or below it shared, but for what is mounted at others or below these.
func share(folder string, others []string) error {
	mounts, err := unshared(folder, others)
	for _, mount := range mounts {
		if failed := unix.Mount("", mount, "", unix.MS_SHARED, ""); failed != nil {
			err = errors.Join(err, fmt.Errorf("mount --make-shared %s: %w", mount, failed))
		}
	}
	return err
}

// unshared are the mounts that share makes shared.
func unshared(folder string, others []string) ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(strings.TrimSuffix(folder, "/"))) // "" for /
	var list []string
	for _, mount := range mounts {
		within := func(other string) bool {
			return mount.Mountpoint == other || strings.HasPrefix(mount.Mountpoint, other+"/")
		}
		if !strings.Contains(mount.Optional, "shared:") && !slices.ContainsFunc(others, within) {
			list = append(list, mount.Mountpoint)
		}
	}
	return list, err
}

// isThere tells whether there is anything at a path, of whatever kind.
func isThere(path string) (bool, error) {
	_, err := os.Lstat(path)
	if files.IsAbsent(err) {
		return false, nil
	}
	return err == nil, err
}

// mountedType is the type of the newest file system on target, "" if nothing is mounted there.
func mountedType(target string) (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if len(mounts) == 0 {
		return "", err
	}
	return mounts[len(mounts)-1].FSType, err
}
