package facade

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/input"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MadeFile is there on a machine that lives on without the node, and keeps what the facade made on it, as a plan
// without settings: all of that is taken away with the node, and nothing that was there before.
const MadeFile = "/var/lib/sandbox-init/made.json"

// madeLimit is how large that file may be; a plan has some 3 KiB.
const madeLimit = 1 << 20

// Apply carries a plan out, and notes what it makes before it does, if there is a file for that.
func Apply(plan Plan, madeFile string) error {
	noted, err := isThere(madeFile)
	if err != nil {
		return err
	}
	if noted {
		missing, err := plan.missing()
		if err != nil {
			return err
		}
		if err := NoteMade(missing, madeFile); err != nil {
			return err
		}
	}
	return plan.Apply()
}

// NoteMade adds to what is noted as made, and makes the file for that.
func NoteMade(more Plan, madeFile string) error {
	made, err := readMade(madeFile)
	if err != nil {
		return err
	}
	before, err := json.Marshal(made)
	if err != nil {
		return err
	}
	made.Files = union(made.Files, more.Files, func(f File) string { return f.Path })
	made.Mounts = union(made.Mounts, more.Mounts, func(m Mount) string { return m.Type + " " + m.Target })
	made.Nodes = union(made.Nodes, more.Nodes, func(n Node) string { return n.Path })
	made.Links = union(made.Links, more.Links, func(l Link) string { return l.Path })
	made.Private = union(made.Private, more.Private, func(path string) string { return path })
	made.Shared = union(made.Shared, more.Shared, func(path string) string { return path })
	after, err := json.Marshal(made)
	if err != nil {
		return err
	}
	if there, err := isThere(madeFile); err != nil || there && bytes.Equal(before, after) {
		return err
	}
	return files.Write(madeFile, 0o600, after)
}

// union adds what is new by its key, and puts what is known in place of what was.
func union[T any](known, more []T, key func(T) string) []T {
	for _, one := range more {
		at := slices.IndexFunc(known, func(other T) bool { return key(other) == key(one) })
		if at < 0 {
			known = append(known, one)
		} else {
			known[at] = one
		}
	}
	return known
}

func readMade(madeFile string) (Plan, error) {
	var made Plan
	content, err := files.Read(madeFile, madeLimit)
	if files.IsAbsent(err) {
		return made, nil
	}
	if err == nil {
		err = input.Decode(bytes.NewReader(content), &made)
	}
	if err != nil {
		return made, fmt.Errorf(
			"%s, which tells what the facade made, cannot be read (%w); remove it, and look after a "+
				"`destroy` for what is left of these: /proc/sys, /sys/fs/cgroup, /dev/kmsg, /etc/machine-id",
			madeFile,
			err,
		)
	}
	return made, nil
}

// missing is what Apply will make of a plan.
func (p Plan) missing() (Plan, error) {
	var missing Plan
	var problems []error
	for _, file := range p.Files {
		there, err := isThere(file.Path)
		problems = append(problems, err)
		if !there {
			missing.Files = append(missing.Files, file)
		}
	}
	for _, mount := range p.Mounts {
		mounted, err := mountedType(mount.Target)
		problems = append(problems, err)
		if mounted != mount.Type {
			missing.Mounts = append(missing.Mounts, mount)
		}
	}
	for _, node := range p.Nodes {
		there, err := isThere(node.Path)
		problems = append(problems, err)
		if !there {
			missing.Nodes = append(missing.Nodes, node)
		}
	}
	for _, link := range p.Links {
		there, err := isThere(link.Path)
		problems = append(problems, err)
		if !there {
			missing.Links = append(missing.Links, link)
		}
	}
	for _, folder := range p.Private {
		mounted, err := mountedType(folder)
		problems = append(problems, err)
		if mounted == "" {
			missing.Private = append(missing.Private, folder)
		}
	}
	for _, folder := range p.Shared {
		mounts, err := unshared(folder, p.Private)
		problems = append(problems, err)
		missing.Shared = append(missing.Shared, mounts...)
	}
	return missing, errors.Join(problems...)
}

// Unmake takes away what is noted as made, as far as it still is as it was made, and forgets it.
func Unmake(madeFile string) error {
	made, err := readMade(madeFile)
	if err != nil {
		return err
	}
	var problems []error
	for _, mount := range slices.Backward(made.Mounts) {
		problems = append(problems, mount.unmake())
	}
	for _, file := range made.Files {
		content, err := files.Read(file.Path, madeLimit)
		if err == nil && string(content) == file.Content {
			problems = append(problems, os.Remove(file.Path))
		}
	}
	for _, node := range made.Nodes {
		var stat unix.Stat_t
		err := unix.Lstat(node.Path, &stat)
		if err == nil && stat.Mode&unix.S_IFMT == unix.S_IFCHR && stat.Rdev == unix.Mkdev(node.Major, node.Minor) {
			problems = append(problems, os.Remove(node.Path))
		}
	}
	for _, link := range made.Links {
		if target, err := os.Readlink(link.Path); err == nil && target == link.Target {
			problems = append(problems, os.Remove(link.Path))
		}
	}
	for _, folder := range made.Private {
		// What is mounted there no more is no mount, which is EINVAL.
		err := unix.Unmount(folder, unix.MNT_DETACH)
		if err != nil && err != unix.EINVAL && err != unix.ENOENT {
			problems = append(problems, fmt.Errorf("umount --lazy %s: %w", folder, err))
		}
	}
	for _, mount := range made.Shared {
		if err := unix.Mount("", mount, "", unix.MS_PRIVATE, ""); err != nil && err != unix.EINVAL && err != unix.ENOENT {
			problems = append(problems, fmt.Errorf("mount --make-private %s: %w", mount, err))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return files.Remove([]string{madeFile})
}

func (m Mount) unmake() error {
	mounted, err := mountedType(m.Target)
	if err != nil || mounted != m.Type {
		return err
	}
	// gVisor takes a hierarchy of cgroups for busy as long as anything was ever in it; nothing uses it any more.
	if err := unix.Unmount(m.Target, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("umount --lazy %s: %w", m.Target, err)
	}
	return nil
}

// Legacy is what a facade of gvisor-k3s up to 0.2.0 has made on a machine, which noted nothing of it.
func Legacy(name string) (Plan, error) {
	id := sha256.Sum256([]byte("gvisor-k3s machine " + name))
	made := Plan{
		Files:  []File{{"/etc/machine-id", fmt.Sprintf("%x\n", id[:16])}},
		Mounts: []Mount{{Type: "overlay", Target: "/proc/sys"}},
		Nodes:  []Node{{"/dev/kmsg", 1, 3}},
	}
	// Its own mark that the cgroups are the facade's.
	if there, err := isThere("/run/gvisor-k3s/cgroup-mounts"); err != nil || !there {
		return made, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter("/sys/fs/cgroup"))
	for _, mount := range mounts {
		if mount.FSType == "tmpfs" || strings.HasPrefix(mount.FSType, "cgroup") {
			made.Mounts = append(made.Mounts, Mount{Type: mount.FSType, Target: mount.Mountpoint})
		}
	}
	return made, err
}
