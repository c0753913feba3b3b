package egress

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialer makes sockets of the host's. A buffer of 0 is as large as the kernel sees fit from time to time.
func (g *gateway) dialer(timeout time.Duration, buffer int) *net.Dialer {
	return &net.Dialer{Timeout: timeout, Control: func(_, _ string, raw syscall.RawConn) error {
		var failure error
		if err := raw.Control(func(fd uintptr) { failure = g.prepare(int(fd), buffer) }); err != nil {
			return err
		}
		return failure
	}}
}

func (g *gateway) prepare(fd, buffer int) error {
	// Kernels before Linux 6.3 cannot do this.
	both := int(uint32(g.share.Last)<<16 | uint32(g.share.First))
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, both); err != nil &&
		err != unix.ENOPROTOOPT {
		return fmt.Errorf("the ports that a socket may get: %w", err)
	}
	if buffer == 0 {
		return nil
	}
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, buffer); err != nil {
			return fmt.Errorf("a socket's buffers: %w", err)
		}
	}
	return nil
}
