// Package publish has ports of a sandbox answered at addresses of the host: it accepts connections there and passes
// them on. It reads nothing of what passes, and keeps no more of it than the relay's buffers.
package publish

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor-k3s/relay"
)

const (
	// most is how many connections there are at once, of all ports: each takes two files and two goroutines.
	most = 1024
	// How long a sandbox may take to accept a connection.
	dialTimeout = 5 * time.Second
)

// Port is one that is published.
type Port struct {
	Listen netip.AddrPort `json:"listen"`
	To     netip.AddrPort `json:"to"`
}

// Problems are what is wrong with a port.
func (p Port) Problems() error {
	if !p.Listen.Addr().Is4() || p.Listen.Port() == 0 || !p.To.Addr().Is4() || p.To.Port() == 0 {
		return fmt.Errorf("publish: from %q to %q: two IPv4 addresses with ports are needed", p.Listen, p.To)
	}
	return nil
}

// Publisher has ports published. Its zero value publishes none.
type Publisher struct {
	listeners map[Port]net.Listener
	once      sync.Once
	room      chan struct{}
}

// Set publishes these ports and no others. Connections that are open live on. What is published already stays so, also
// where another port cannot be.
func (p *Publisher) Set(ports []Port) error {
	p.once.Do(func() {
		p.listeners, p.room = map[Port]net.Listener{}, make(chan struct{}, most)
	})
	wanted := map[Port]bool{}
	for _, port := range ports {
		wanted[port] = true
	}
	for port, listener := range p.listeners {
		if !wanted[port] {
			listener.Close()
			delete(p.listeners, port)
		}
	}
	var problems []error
	for _, port := range ports {
		if p.listeners[port] != nil {
			continue
		}
		listener, err := net.Listen("tcp4", port.Listen.String())
		if err != nil {
			problems = append(problems, fmt.Errorf(
				"ports: %s cannot be listened on: %w; end the program that has it, or choose another port", port.Listen, err))
			continue
		}
		p.listeners[port] = listener
		go p.serve(listener, port)
	}
	return errors.Join(problems...)
}

func (p *Publisher) serve(listener net.Listener, port Port) {
	for {
		client, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // such as too many open files, which passes
			log.Printf("accepting at %s: %v", port.Listen, err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		select {
		case p.room <- struct{}{}:
			go func() {
				defer func() { <-p.room }()
				pass(client.(*net.TCPConn), port.To)
			}()
		default:
			relay.TCP(client.(*net.TCPConn)).Reset()
		}
	}
}

func pass(client *net.TCPConn, to netip.AddrPort) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	server, err := new(net.Dialer).DialContext(ctx, "tcp4", to.String())
	cancel()
	if err != nil {
		relay.TCP(client).Reset()
		return
	}
	relay.Join(relay.TCP(client), relay.TCP(server.(*net.TCPConn)))
}
