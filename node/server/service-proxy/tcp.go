package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// How long an endpoint may take to accept a connection before another one is tried. A pod is on this node, and answers in a millisecond.
const dialTimeout = 3 * time.Second

func listen(front frontend, pool *pool) (relay, error) {
	if front.protocol == v1.ProtocolUDP {
		return listenUDP(front.address, pool)
	}
	return listenTCP(front.address, pool)
}

// tcpRelay accepts connections for a pool. Once made, a connection is the two ends' own affair: it outlives changes of the endpoints and of the Service.
type tcpRelay struct {
	*net.TCPListener
	pool *pool
}

func listenTCP(address netip.AddrPort, pool *pool) (relay, error) {
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
		join(client, backend.(*net.TCPConn))
		return
	}
	reset(client)
}

// join copies both ways until both ends have said all. An end that breaks off breaks off the other: no answer is better than half of one.
func join(a, b *net.TCPConn) {
	var copying sync.WaitGroup
	oneWay := func(to, from *net.TCPConn) {
		if _, err := io.Copy(to, from); err != nil {
			reset(a)
			reset(b)
			return
		}
		to.CloseWrite()
	}
	copying.Go(func() { oneWay(a, b) })
	copying.Go(func() { oneWay(b, a) })
	copying.Wait()
	a.Close()
	b.Close()
}

// reset ends a connection so that the other end sees an error, and not the end of the data.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
