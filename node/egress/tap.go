package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// openTap takes hold of a tap device in another network namespace. The device is persistent, so it outlives this process, and the sandbox keeps it.
func openTap(namespace, name string) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and no other one gets to be in that namespace.
		runtime.LockOSThread()
		fd, err := openTapHere(namespace, name)
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}

func openTapHere(namespace, name string) (int, error) {
	file, err := os.Open(namespace)
	if err != nil {
		return -1, err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("entering %s: %w", namespace, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return -1, fmt.Errorf("taking %s in %s: %w", name, namespace, err)
	}
	return fd, nil
}
