package main

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// How long a flow without a datagram is kept: Linux's nf_conntrack_udp_timeout for a question with its answer,
// nf_conntrack_udp_timeout_stream once the client has sent again after an answer.
const (
	questionIdle = 30 * time.Second
	streamIdle   = 120 * time.Second
)

// Datagrams' buffers. A flow that waits for an answer has none: a busy DNS client leaves thousands of such flows
// behind.
var buffers = sync.Pool{New: func() any { return new([65535]byte) }}

// udpRelay passes datagrams on. Each client address is a flow, which stays with an endpoint for as long as there is one
// and datagrams come.
type udpRelay struct {
	conn *net.UDPConn
	pool *pool

	mutex sync.Mutex
	flows map[netip.AddrPort]*flow
}

// flow is a client's datagrams; its socket is connected to the endpoint, so answers come from there only.
type flow struct {
	client   netip.AddrPort
	endpoint netip.AddrPort
	conn     *net.UDPConn
	last     atomic.Int64 // when the last datagram passed, in either direction; Unix nanoseconds
	answered atomic.Bool
	stream   atomic.Bool
}

func listenUDP(address netip.AddrPort, pool *pool) (server, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return nil, err
	}
	r := &udpRelay{conn: conn, pool: pool, flows: map[netip.AddrPort]*flow{}}
	go r.serve()
	return r, nil
}

// Close ends the flows too: the Service has no endpoint any more, or is gone.
func (r *udpRelay) Close() error {
	err := r.conn.Close()
	r.endFlows(func(*flow) bool { return true })
	return err
}

// endpointsChanged ends the flows to endpoints that are gone or not allowed any more, so that their clients' next
// datagrams find another.
func (r *udpRelay) endpointsChanged() {
	r.endFlows(func(f *flow) bool { return !r.pool.has(f.client.Addr().Unmap(), f.endpoint) })
}

func (r *udpRelay) endFlows(which func(*flow) bool) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	for client, f := range r.flows {
		if which(f) {
			delete(r.flows, client)
			f.conn.Close()
		}
	}
}

func (r *udpRelay) serve() {
	buffer := make([]byte, 65535)
	for {
		n, client, err := r.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			klog.V(2).InfoS("receiving", "address", r.conn.LocalAddr(), "err", err)
			continue
		}
		f, err := r.flowOf(client)
		if err != nil {
			klog.V(2).InfoS("no endpoint takes a datagram", "service", r.pool.name.port, "err", err)
			continue
		}
		f.last.Store(time.Now().UnixNano())
		if f.answered.Load() {
			f.stream.Store(true)
		}
		if _, err := f.conn.Write(buffer[:n]); err != nil { // an endpoint that refused an earlier one
			r.end(f)
		}
	}
}

func (r *udpRelay) flowOf(client netip.AddrPort) (*flow, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if f := r.flows[client]; f != nil {
		return f, nil
	}
	err := errors.New("there is none")
	for _, endpoint := range r.pool.candidates(client.Addr().Unmap()) {
		var conn *net.UDPConn
		if conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(endpoint)); err != nil {
			continue
		}
		r.pool.chosen(client.Addr().Unmap(), endpoint)
		f := &flow{client: client, endpoint: endpoint, conn: conn}
		f.last.Store(time.Now().UnixNano())
		r.flows[client] = f
		go r.answer(f)
		return f, nil
	}
	return nil, err
}

// answer passes an endpoint's datagrams back until the flow was idle for long enough, or the endpoint refuses.
func (r *udpRelay) answer(f *flow) {
	defer r.end(f)
	raw, err := f.conn.SyscallConn()
	if err != nil {
		return
	}
	for {
		f.conn.SetReadDeadline(time.Unix(0, f.last.Load()).Add(f.idle()))
		var failure error
		err := raw.Read(func(fd uintptr) bool {
			buffer := buffers.Get().(*[65535]byte)
			defer buffers.Put(buffer)
			var n int
			if n, failure = unix.Read(int(fd), buffer[:]); failure == unix.EAGAIN {
				return false
			}
			if failure == nil {
				_, failure = r.conn.WriteToUDPAddrPort(buffer[:n], f.client)
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
			f.answered.Store(true)
			f.last.Store(time.Now().UnixNano())
		}
	}
}

func (f *flow) idle() time.Duration {
	if f.stream.Load() {
		return streamIdle
	}
	return questionIdle
}

func (r *udpRelay) end(f *flow) {
	f.conn.Close()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.flows[f.client] == f {
		delete(r.flows, f.client)
	}
}
