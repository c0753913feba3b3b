package egress

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const procPortRange = "/proc/sys/net/ipv4/ip_local_port_range"

// ports are a range, with both ends.
type ports struct{ first, last uint16 }

// share is the upper half of the ports that the host's own sockets get. All sandboxes' sockets are among these, those
// included that are closed and wait (TIME-WAIT), so that the host keeps half of its ports whatever they do.
func share() (ports, error) {
	text, err := os.ReadFile(procPortRange)
	if err != nil {
		return ports{}, err
	}
	var all ports
	if _, err := fmt.Sscan(string(text), &all.first, &all.last); err != nil || all.last < all.first {
		return ports{}, fmt.Errorf("%s has %q, and two ports are expected: %w", procPortRange, text, err)
	}
	return ports{all.last - (all.last-all.first)/2, all.last}, nil
}

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
	both := int(uint32(g.share.last)<<16 | uint32(g.share.first))
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
