package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	nic = 1
	// As long as Linux tries by default, in most programs' view; the caller's own patience is often shorter.
	dialTimeout = 30 * time.Second
	// Connections that are about to be made.
	pending = 1024
	// How long a flow of datagrams is kept without one: Linux's nf_conntrack_udp_timeout_stream.
	udpIdle = 120 * time.Second
)

// gateway is a network stack that takes every packet for its own, whoever it is for.
type gateway struct {
	*stack.Stack
	refused sync.Map // destinations whose refusal was logged
}

func newGateway(tap int, o options) (*gateway, error) {
	// A locally administered address: the tap has two ends and nobody else.
	endpoint, err := fdbased.New(&fdbased.Options{FDs: []int{tap}, MTU: uint32(o.mtu), EthernetHeader: true, Address: tcpip.LinkAddress("\x02gvk3s"), ClosedFunc: func(err tcpip.Error) { log.Printf("the tap: %v", err) }})
	if err != nil {
		return nil, err
	}
	g := &gateway{Stack: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})}
	sack := tcpip.TCPSACKEnabled(true)
	own := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(o.address.Addr().As4()), PrefixLen: o.address.Bits()}}
	pods, err := tcpip.NewSubnet(tcpip.AddrFrom4(o.pods.Masked().Addr().As4()), tcpip.MaskFromBytes(net.CIDRMask(o.pods.Bits(), 32)))
	if err != nil {
		return nil, err
	}
	for _, failure := range []tcpip.Error{
		g.SetTransportProtocolOption(tcp.ProtocolNumber, &sack),
		g.CreateNIC(nic, endpoint),
		g.AddProtocolAddress(nic, own, stack.AddressProperties{}),
		g.SetPromiscuousMode(nic, true), // packets for others
		g.SetSpoofing(nic, true),        // and answers from them
	} {
		if failure != nil {
			return nil, errors.New(failure.String())
		}
	}
	g.SetRouteTable([]tcpip.Route{{Destination: own.AddressWithPrefix.Subnet(), NIC: nic}, {Destination: pods, Gateway: tcpip.AddrFrom4(o.node.As4()), NIC: nic}})
	g.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(g.Stack, 0, pending, g.forwardTCP).HandlePacket)
	g.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(g.Stack, g.forwardUDP).HandlePacket)
	return g, nil
}

// forwardTCP opens the connection to the outside first, so that who is refused there is refused here.
func (g *gateway) forwardTCP(request *tcp.ForwarderRequest) {
	to := destination(request.ID())
	if !g.allowed(to) {
		request.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	outside, err := new(net.Dialer).DialContext(ctx, "tcp4", to.String())
	if err != nil {
		request.Complete(true)
		return
	}
	var queue waiter.Queue
	endpoint, failure := request.CreateEndpoint(&queue)
	request.Complete(false)
	if failure != nil {
		outside.Close()
		return
	}
	join(gonet.NewTCPConn(&queue, endpoint), outside.(*net.TCPConn))
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// join copies both ways until both ends have said all, or one breaks off.
func join(a, b halfCloser) {
	var copying sync.WaitGroup
	oneWay := func(to, from halfCloser) {
		if _, err := io.Copy(to, from); err != nil {
			a.Close()
			b.Close()
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

func (g *gateway) forwardUDP(request *udp.ForwarderRequest) bool {
	to := destination(request.ID())
	if !g.allowed(to) {
		return false // answered with "port unreachable"
	}
	var queue waiter.Queue
	endpoint, failure := request.CreateEndpoint(&queue)
	if failure != nil {
		return false
	}
	inside := gonet.NewUDPConn(&queue, endpoint)
	outside, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		inside.Close()
		return true
	}
	relay := func(to, from net.Conn) {
		defer inside.Close()
		defer outside.Close()
		buffer := make([]byte, 65535)
		for {
			// Either direction keeps the flow.
			inside.SetReadDeadline(time.Now().Add(udpIdle))
			outside.SetReadDeadline(time.Now().Add(udpIdle))
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
	go relay(outside, inside)
	go relay(inside, outside)
	return true
}

func destination(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}

// allowed tells whether the sandbox may reach a destination: anything but the host itself, and what only the host is to reach.
func (g *gateway) allowed(to netip.AddrPort) bool {
	reason := refusal(to.Addr())
	if reason == "" {
		return true
	}
	if _, told := g.refused.LoadOrStore(to, true); !told {
		log.Printf("%s is refused: %s", to, reason)
	}
	return false
}

func refusal(to netip.Addr) string {
	switch {
	case to.IsLoopback() || to.IsUnspecified():
		return "it is the host's loopback"
	case to.IsLinkLocalUnicast():
		return "it is link-local, as clouds' metadata services are"
	case to.IsMulticast() || to == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "it is no single host"
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Sprintf("the host's addresses cannot be listed (%v)", err)
	}
	for _, address := range addresses {
		if own, err := netip.ParsePrefix(address.String()); err == nil && own.Addr().Unmap() == to {
			return "it is the host's"
		}
	}
	return ""
}
