package egress

import (
	"bytes"
	"container/list"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"gvisor-k3s/relay"
)

// How long a flow without a datagram is kept: Linux's nf_conntrack_udp_timeout for a question with its answer,
// nf_conntrack_udp_timeout_stream once the client has sent again after an answer.
const (
	questionIdle = 30 * time.Second
	streamIdle   = 120 * time.Second
)

// flow is the datagrams between two sockets. It waits for answers in a goroutine; what comes out of the sandbox is
// passed on as it comes.
type flow struct {
	source   netip.Addr
	outside  *net.UDPConn
	raw      syscall.RawConn
	inside   tcpip.Endpoint
	queue    waiter.Queue
	last     atomic.Int64 // when the last datagram passed, in either direction; Unix nanoseconds
	answered atomic.Bool
	stream   atomic.Bool

	// The places in the two lists of flows.
	among, amongSource *list.Element
}

// flows are all flows, by how long they have been idle.
type flows struct {
	total, perSource int

	mutex  sync.Mutex
	open   int // those included that are about to be closed
	idle   *list.List
	of     map[netip.Addr]*list.List
	closed bool
}

func newFlows(total, perSource int) *flows {
	return &flows{total: total, perSource: perSource, idle: list.New(), of: map[netip.Addr]*list.List{}}
}

// add takes a flow up. The one that has been idle for longest makes way, of the same source if that has too many. It
// tells whether there is room.
func (s *flows) add(f *flow) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if own := s.of[f.source]; own != nil && own.Len() >= s.perSource {
		s.evict(own.Front().Value.(*flow))
	}
	if s.idle.Len() >= s.total {
		s.evict(s.idle.Front().Value.(*flow))
	}
	if s.closed || s.open >= s.total+udpEnding {
		return false
	}
	s.open++
	if s.of[f.source] == nil {
		s.of[f.source] = list.New()
	}
	f.among, f.amongSource = s.idle.PushBack(f), s.of[f.source].PushBack(f)
	return true
}

// evict has a flow end: its socket wakes who waits for answers.
func (s *flows) evict(f *flow) {
	s.forget(f)
	f.outside.Close()
}

func (s *flows) forget(f *flow) {
	if f.among == nil {
		return
	}
	s.idle.Remove(f.among)
	own := s.of[f.source]
	if own.Remove(f.amongSource); own.Len() == 0 {
		delete(s.of, f.source)
	}
	f.among, f.amongSource = nil, nil
}

// used notes that a datagram passes.
func (s *flows) used(f *flow) {
	f.last.Store(time.Now().UnixNano())
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if f.among != nil {
		s.idle.MoveToBack(f.among)
		s.of[f.source].MoveToBack(f.amongSource)
	}
}

// remove is for a flow whose socket is closed.
func (s *flows) remove(f *flow) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.forget(f)
	s.open--
}

func (s *flows) close() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.closed = true
	for s.idle.Len() > 0 {
		s.evict(s.idle.Front().Value.(*flow))
	}
}

// forwardUDP takes up the flow that a datagram begins. One that returns false is answered with "port unreachable".
func (g *gateway) forwardUDP(request *udp.ForwarderRequest) bool {
	from, to := ends(request.ID())
	if !g.permits(from, to) {
		return false
	}
	dialed, err := g.dialer(0, 0).Dial("udp4", to.String())
	if err != nil {
		g.notes.add("a flow from %s to %s: %v", from.Addr(), to, err)
		return true // lost, as datagrams may be
	}
	f := &flow{source: from.Addr(), outside: dialed.(*net.UDPConn)}
	if f.raw, err = f.outside.SyscallConn(); err != nil || !g.udp.add(f) {
		f.outside.Close()
		return true
	}
	g.udp.used(f)
	var failure tcpip.Error
	if f.inside, failure = request.CreateEndpoint(&f.queue); failure != nil {
		f.outside.Close()
		g.udp.remove(f)
		return true
	}
	// All of a flow comes to one goroutine of the stack's, which is this one.
	entry := waiter.NewFunctionEntry(waiter.ReadableEvents, func(waiter.EventMask) { g.ask(f) })
	f.queue.EventRegister(&entry)
	g.ask(f)
	go g.answer(f)
	return true
}

// ask passes on what has come out of the sandbox. It waits for nothing: what the host cannot take now is lost.
func (g *gateway) ask(f *flow) {
	buffer := relay.Take()
	defer relay.Give(buffer)
	for {
		into := tcpip.SliceWriter(buffer[:])
		result, failure := f.inside.Read(&into, tcpip.ReadOptions{})
		if failure != nil {
			return
		}
		g.udp.used(f)
		if f.answered.Load() {
			f.stream.Store(true)
		}
		var refused bool
		f.raw.Write(func(fd uintptr) bool {
			_, err := unix.Write(int(fd), buffer[:result.Count])
			refused = err == unix.ECONNREFUSED // of an earlier one
			return true
		})
		if refused {
			f.outside.Close()
			return
		}
	}
}

// answer passes datagrams back until the flow was idle for long enough, has to make way, or is refused.
func (g *gateway) answer(f *flow) {
	defer func() {
		f.outside.Close()
		f.inside.Close()
		g.udp.remove(f)
	}()
	for {
		f.outside.SetReadDeadline(time.Unix(0, f.last.Load()).Add(f.idle()))
		var failure error
		err := f.raw.Read(func(fd uintptr) bool {
			buffer := relay.Take()
			defer relay.Give(buffer)
			var n int
			if n, failure = unix.Read(int(fd), buffer[:]); failure == unix.EAGAIN {
				return false
			}
			if failure == nil {
				f.answered.Store(true) // before the client can send again
				failure = f.reply(buffer[:n])
			}
			return true
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if time.Since(time.Unix(0, f.last.Load())) >= f.idle() {
				return
			}
		case err != nil || failure != nil:
			return
		default:
			g.udp.used(f)
		}
	}
}

func (f *flow) reply(datagram []byte) error {
	_, failure := f.inside.Write(bytes.NewReader(datagram), tcpip.WriteOptions{})
	switch failure.(type) {
	case *tcpip.ErrClosedForSend, *tcpip.ErrInvalidEndpointState:
		return net.ErrClosed
	}
	return nil // or lost, as datagrams may be
}

func (f *flow) idle() time.Duration {
	if f.stream.Load() {
		return streamIdle
	}
	return questionIdle
}
