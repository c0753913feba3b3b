package egress

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"gvisor-k3s/relay"
)

const (
	// As long as Linux tries by default, in most programs' view; the caller's own patience is often shorter.
	dialTimeout = 30 * time.Second
	// A connection whose end in the sandbox has vanished, as with a pod's network, ends after two minutes. One whose reset
	// was lost, as some are where thousands are broken off at once (the tap's queue has 500 places), ends with the first
	// probe. The values are those of the other end (net.KeepAliveConfig).
	keepaliveIdle     = 15 * time.Second
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 9
)

// forwardTCP opens the connection to the outside first, so that who is refused there is refused here.
func (g *gateway) forwardTCP(request *tcp.ForwarderRequest) {
	from, to := ends(request.ID())
	if !g.permits(from, to) {
		request.Complete(true)
		return
	}
	open := g.tcp.take(from.Addr())
	if open == 0 {
		g.notes.add("%s is refused: there are too many connections, %d of %s or %d in all", to, g.tcp.perSource,
			from.Addr(), g.tcp.total)
		request.Complete(true)
		return
	}
	inside, outside := g.connect(request, to, open)
	if inside == nil {
		g.tcp.give(from.Addr())
		return
	}
	// Not in this goroutine, whose stack has grown with what it did, and would be kept so for each connection.
	go func() {
		relay.Join(inside, outside)
		// It counts until nothing is left of it: who does not take note of its end would have it kept uncounted.
		inside.awaitEnd()
		g.tcp.give(from.Addr())
	}()
}

// connect makes both connections, while so many are open, or tells who asked that there is none.
func (g *gateway) connect(request *tcp.ForwarderRequest, to netip.AddrPort, open int) (*insideConn, *outsideConn) {
	buffer := budget(open)
	outsideBuffer := buffer
	if buffer == largestBuffer {
		outsideBuffer = 0 // the way outside may be long, and takes what the kernel finds
	}
	dialed, err := g.dialer(dialTimeout, outsideBuffer).Dial("tcp4", to.String())
	if err != nil {
		request.Complete(true)
		return nil, nil
	}
	outside := &outsideConn{Conn: relay.TCP(dialed.(*net.TCPConn)), tcp: dialed.(*net.TCPConn)}
	queue := new(waiter.Queue)
	endpoint, failure := request.CreateEndpoint(queue)
	request.Complete(false)
	if failure != nil {
		outside.Reset()
		return nil, nil
	}
	return newInsideConn(endpoint, queue, buffer), outside
}

// outsideConn is a connection of the host's to the outside.
type outsideConn struct {
	relay.Conn
	tcp *net.TCPConn
}

// Close leaves what is not sent yet to the kernel, for a while. It has no more patience with who takes nothing: what
// was closed is counted no more.
func (c *outsideConn) Close() error {
	if raw, err := c.tcp.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lingering/time.Millisecond))
		})
	}
	return c.Conn.Close()
}

// insideConn is the end in the sandbox.
type insideConn struct {
	endpoint tcpip.Endpoint
	// Each gets a word when there may be something to read, room to write, and when the state is another one.
	readable, writable, changed <-chan struct{}

	mutex   sync.Mutex
	saidAll bool
	closed  chan struct{}
	isOver  bool
}

func newInsideConn(endpoint tcpip.Endpoint, queue *waiter.Queue, buffer int) *insideConn {
	c := &insideConn{endpoint: endpoint, closed: make(chan struct{})}
	const ending = waiter.EventHUp | waiter.EventErr | waiter.EventRdHUp
	watch := func(events waiter.EventMask) <-chan struct{} {
		entry, notified := waiter.NewChannelEntry(events)
		queue.EventRegister(&entry)
		return notified
	}
	c.readable = watch(waiter.ReadableEvents | ending)
	c.writable = watch(waiter.WritableEvents | ending)
	c.changed = watch(waiter.ReadableEvents | waiter.WritableEvents | ending)
	options := endpoint.SocketOptions()
	options.SetReceiveBufferSize(int64(buffer), true)
	options.SetSendBufferSize(int64(buffer), true)
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	endpoint.SetSockOpt(&idle)
	endpoint.SetSockOpt(&interval)
	endpoint.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	options.SetKeepAlive(true)
	return c
}

func (c *insideConn) Receive() (*relay.Buffer, int, error) {
	for {
		buffer := relay.Take()
		into := tcpip.SliceWriter(buffer[:])
		result, failure := c.endpoint.Read(&into, tcpip.ReadOptions{})
		if failure == nil {
			return buffer, result.Count, nil
		}
		relay.Give(buffer)
		switch failure.(type) {
		case *tcpip.ErrWouldBlock:
			select {
			case <-c.readable:
			case <-c.closed:
				return nil, 0, net.ErrClosed
			}
		case *tcpip.ErrClosedForReceive:
			if c.broken() {
				return nil, 0, syscall.ECONNRESET
			}
			return nil, 0, io.EOF
		default:
			return nil, 0, syscall.ECONNRESET
		}
	}
}

// broken tells whether a connection from which nothing more is to be read has broken off. As with the kernel's, the
// error itself is told only once.
func (c *insideConn) broken() bool {
	switch tcp.EndpointState(c.endpoint.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose: // in good order only if both have said all
		c.mutex.Lock()
		defer c.mutex.Unlock()
		return !c.saidAll
	}
	return false
}

func (c *insideConn) Write(data []byte) (int, error) {
	written := 0
	var rest bytes.Reader
	for written < len(data) {
		rest.Reset(data[written:])
		n, failure := c.endpoint.Write(&rest, tcpip.WriteOptions{})
		written += int(n)
		if _, wait := failure.(*tcpip.ErrWouldBlock); wait {
			select {
			case <-c.writable:
			case <-c.closed:
				return written, net.ErrClosed
			}
		} else if failure != nil {
			return written, syscall.EPIPE
		}
	}
	return written, nil
}

func (c *insideConn) CloseWrite() error {
	c.mutex.Lock()
	c.saidAll = true
	c.mutex.Unlock()
	if failure := c.endpoint.Shutdown(tcpip.ShutdownWrite); failure != nil {
		return syscall.ENOTCONN
	}
	return nil
}

func (c *insideConn) Broken() {
	for !c.broken() {
		select {
		case <-c.changed:
		case <-c.closed:
			return
		}
	}
}

// end is done once: by who closes the connection, or breaks it off.
func (c *insideConn) end(how func()) {
	c.mutex.Lock()
	over := c.isOver
	c.isOver = true
	c.mutex.Unlock()
	if over {
		return
	}
	how()
	close(c.closed)
}

func (c *insideConn) Close() error {
	c.end(func() {
		patience := tcpip.TCPUserTimeoutOption(lingering)
		c.endpoint.SetSockOpt(&patience)
		c.endpoint.Close()
	})
	return nil
}

func (c *insideConn) Reset() {
	c.end(func() {
		c.endpoint.Abort()
		c.endpoint.Close() // of what is left
	})
}

// awaitEnd waits until nothing of a connection that was closed is left.
func (c *insideConn) awaitEnd() {
	patience := time.NewTimer(2 * lingering)
	defer patience.Stop()
	for {
		switch tcp.EndpointState(c.endpoint.State()) {
		case tcp.StateClose, tcp.StateError:
			return
		}
		select {
		case <-c.changed:
		case <-patience.C:
			c.endpoint.Abort()
			return
		}
	}
}
