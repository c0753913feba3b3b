package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"gvisor-k3s/relay"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// How long an endpoint may take to accept a connection before another one is tried. A pod is on this node, and answers
// in a millisecond.
const dialTimeout = 3 * time.Second

func listen(front frontend, pool *pool) (server, error) {
	if front.protocol == v1.ProtocolUDP {
		return listenUDP(front.address, pool)
	}
	return listenTCP(front.address, pool)
}

// tcpRelay accepts connections for a pool. Once made, a connection is the two ends' own affair: it outlives changes of
// the endpoints and of the Service, and ends by a network policy only.
type tcpRelay struct {
	*net.TCPListener
	pool *pool
}

func listenTCP(address netip.AddrPort, pool *pool) (server, error) {
	listener, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(address))
	if err != nil {
		return nil, err
	}
	r := &tcpRelay{listener, pool}
	go r.serve()
	return r, nil
}

func (r *tcpRelay) endpointsChanged() {}

func (r *tcpRelay) serve() {
	for {
		client, err := r.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as too many open files, which passes
			klog.ErrorS(err, "accepting", "address", r.Addr())
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go r.connect(client)
	}
}

func (r *tcpRelay) connect(client *net.TCPConn) {
	from := client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	for _, endpoint := range r.pool.candidates(from) {
		ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
		backend, err := new(net.Dialer).DialContext(ctx, "tcp4", endpoint.String())
		cancel()
		if err != nil {
			klog.V(2).InfoS("an endpoint does not accept", "service", r.pool.name.port, "endpoint", endpoint, "err", err)
			continue
		}
		r.pool.chosen(from, endpoint)
		r.join(from, endpoint, relay.TCP(client), relay.TCP(backend.(*net.TCPConn)))
		return
	}
	relay.TCP(client).Reset()
}

func (r *tcpRelay) join(from netip.Addr, endpoint netip.AddrPort, client, backend relay.Conn) {
	connection := &relayed{from, endpoint, func() {
		client.Reset()
		backend.Reset()
	}}
	defer r.pool.relaying(connection)()
	if !r.pool.allows(from, endpoint) { // the policies have changed meanwhile
		connection.reset()
	}
	relay.Join(client, backend)
}
