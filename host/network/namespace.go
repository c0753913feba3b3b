package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where ip-netns(8) keeps the namespaces that have names.
const namespaces = "/run/netns"

// addNamespace makes a namespace that stays until it is removed, as `ip netns add` does it.
func addNamespace(name string) error {
	if err := makeFolder(namespaces); err != nil {
		return fmt.Errorf("making %s ready for network namespaces: %w", namespaces, err)
	}
	file, err := os.OpenFile(File(name), os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the network namespace %s is there already: remove it by `gvisor-k3s-host network down %s`",
			name, name)
	}
	if err != nil {
		return err
	}
	file.Close()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and no other one gets to be in that namespace.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", File(name), "none", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("making the network namespace %s: %w", name, err)
	}
	return nil
}

// makeFolder makes the folder a mount that others share, so that a namespace that is removed is gone for processes
// with other mounts too. `ip netns add` takes turns at this by a lock of the folder.
func makeFolder(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	unlock, err := lockFolder(path)
	if err != nil {
		return err
	}
	defer unlock()
	share := func() error { return unix.Mount("", path, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if err := share(); err != unix.EINVAL { // it is no mount
		return err
	}
	if err := unix.Mount(path, path, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return share()
}

// lockFolder has who works on something take turns, until unlock is called or the process ends.
func lockFolder(path string) (unlock func(), err error) {
	folder, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX); err != nil {
		folder.Close()
		return nil, err
	}
	return func() { folder.Close() }, nil
}

// Down removes the namespace and the link, also half-made ones; that there is neither is no error. The kernel takes a
// link down some time after its namespace is gone: when this returns the link's name is free.
func Down(ctx context.Context, namespace string) error {
	if err := checkName(namespace); err != nil {
		return fmt.Errorf("the network namespace %w", err)
	}
	if err := removeLink(ctx, namespace); err != nil {
		return err
	}
	return removeNamespace(namespace)
}

func removeNamespace(name string) error {
	for { // what was mounted twice is there twice
		err := unix.Unmount(File(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.EINVAL || err == unix.ENOENT { // nothing is mounted there
			break
		}
		if err != nil {
			return fmt.Errorf("taking the network namespace %s off: %w", name, err)
		}
	}
	if err := os.Remove(File(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeLink removes a link of one of these types, by default a veth.
func removeLink(ctx context.Context, name string, types ...string) error {
	types = append(types, "veth")
	stop := make(chan struct{})
	changes := make(chan netlink.LinkUpdate)
	// Before the first look, so that nothing happens between the two.
	if err := netlink.LinkSubscribe(changes, stop); err != nil {
		return fmt.Errorf("watching the host's links: %w", err)
	}
	defer func() {
		close(stop)
		for range changes { // until who sends has ended
		}
	}()
	for {
		link, err := netlink.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking for the link %s: %w", name, err)
		}
		if !slices.Contains(types, link.Type()) {
			return fmt.Errorf("the link %s is none of a sandbox's, but of the type %s: it is left alone", name, link.Type())
		}
		failure := netlink.LinkDel(link)
		if failure == nil {
			continue
		}
		// It may be about to go with its namespace.
		select {
		case _, open := <-changes:
			if !open {
				return fmt.Errorf("removing the link %s: %w", name, failure)
			}
		case <-ctx.Done():
			return fmt.Errorf("removing the link %s: %w (%w)", name, failure, context.Cause(ctx))
		}
	}
}
