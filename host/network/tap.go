package network

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// OpenTap takes hold of a tap, which is made if there is none of that name. It does not block who reads of it.
// flags are those of TUNSETIFF beside what a tap has.
func OpenTap(name string, flags uint16) (fd int, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/net/tun: %w; load it (modprobe tun)", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("taking %s: %w", name, err)
	}
	return fd, nil
}
