package relay

import (
	"io"
	"net"
	"sync/atomic"
	"syscall"
)

// TCP is a connection of the kernel's.
func TCP(conn *net.TCPConn) Conn {
	raw, err := conn.SyscallConn()
	return &tcpConn{TCPConn: conn, raw: raw, failure: err}
}

type tcpConn struct {
	*net.TCPConn
	raw     syscall.RawConn
	failure error
	saidAll atomic.Bool
}

func (c *tcpConn) Receive() (*Buffer, int, error) {
	if c.failure != nil {
		return nil, 0, c.failure
	}
	var buffer *Buffer
	var n int
	var failure error
	err := c.raw.Read(func(fd uintptr) bool {
		buffer = Take()
		for {
			if n, failure = syscall.Read(int(fd), buffer[:]); failure != syscall.EINTR {
				break
			}
		}
		if failure == nil && n > 0 {
			return true
		}
		Give(buffer)
		buffer = nil // nor is it kept from being freed while this waits
		if failure == syscall.EAGAIN {
			return false
		}
		if failure == nil {
			failure = c.ending(int(fd))
		}
		return true
	})
	if err != nil {
		return nil, 0, err
	}
	if failure != nil {
		return nil, 0, failure
	}
	return buffer, n, nil
}

// States of a connection, as Linux numbers them (include/net/tcp_states.h).
const (
	timeWait  = 6
	closeWait = 8
	lastAck   = 9
	closing   = 11
)

// ending tells what it means that nothing more is to be read. The kernel tells an error once, to whoever comes first,
// and to others that the connection has ended: where it is a writer who comes first, this looks as if all were said.
func (c *tcpConn) ending(fd int) error {
	info, err := syscall.GetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_INFO)
	if err != nil {
		return err
	}
	// The state is the first byte of tcp_info, and all machines that this is for are little-endian.
	switch info & 0xff {
	case closeWait, lastAck, closing, timeWait:
		return io.EOF
	}
	// The end has heard all and said all, and the connection is gone in good order. Looked at last: another goroutine
	// may be about to close.
	if c.saidAll.Load() {
		return io.EOF
	}
	return syscall.ECONNRESET
}

func (c *tcpConn) CloseWrite() error {
	c.saidAll.Store(true)
	return c.TCPConn.CloseWrite()
}

func (c *tcpConn) Broken() {
	c.raw.Read(func(fd uintptr) bool {
		failure, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
		return err != nil || failure != 0
	})
}

func (c *tcpConn) Reset() {
	c.SetLinger(0)
	c.Close()
}
