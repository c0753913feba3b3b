package egress

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/netns"
)

// openTap takes hold of a tap device in another network namespace. The device is persistent, so it outlives this
// process, and the sandbox keeps it.
func openTap(namespace, name string) (int, error) {
	return netns.In(namespace, func() (int, error) { return openTapHere(namespace, name) })
}

func openTapHere(namespace, name string) (int, error) {
	// The kernel would make one that is not there, and nothing would ever come out of it.
	if _, err := net.InterfaceByName(name); err != nil {
		return -1, fmt.Errorf("%s in %s: %w", name, namespace, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/net/tun: %w; load it (modprobe tun)", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("taking %s in %s: %w", name, namespace, err)
	}
	return fd, nil
}
