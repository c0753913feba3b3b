package egress

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"gvisor-k3s/host/ports"
)

const (
	nic = 1
	// A locally administered address: the tap has two ends and nobody else.
	linkAddress = tcpip.LinkAddress("\x02gvk3s")
	// On a tap nothing arrives late. Who makes connections and lets them go again would fill the memory with those that
	// are over.
	timeWait = time.Second
	// How long a connection that is over here may take to be over there.
	lingering = 20 * time.Second
	// Answers to a request for a connection: the last one is sent after 7 s.
	handshakeRetries = 3
	// What datagrams may wait here until they are passed on, which they are at once.
	datagramBuffer = 256 << 10
)

// gateway is a network stack that takes every packet for its own, whoever it is for.
type gateway struct {
	*stack.Stack
	address netip.Prefix
	pods    netip.Prefix
	share   ports.Range
	routes  *netlink.Handle
	// siblings begins the names of the host's links to other sandboxes.
	siblings string
	tcp      *quota
	udp      *flows
	notes    *notes
	// lost gets why the tap is of no use any more.
	lost chan error
}

func newGateway(tap int, o options) (*gateway, error) {
	g := &gateway{
		address: o.address, pods: o.pods, share: o.share, siblings: o.siblings, notes: newNotes(), lost: make(chan error, 1),
		tcp: newQuota(o.tcp.total, o.tcp.perSource), udp: newFlows(o.udp.total, o.udp.perSource),
	}
	var err error
	if g.routes, err = openRoutes(); err != nil {
		return nil, err
	}
	endpoint, err := fdbased.New(&fdbased.Options{
		FDs: []int{tap}, MTU: uint32(o.mtu), EthernetHeader: true, Address: linkAddress,
		ClosedFunc: func(err tcpip.Error) { g.lost <- errors.New(err.String()) },
	})
	if err != nil {
		return nil, err
	}
	g.Stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := g.setUp(endpoint, o); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *gateway) setUp(endpoint stack.LinkEndpoint, o options) error {
	own := tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4(o.address.Addr().As4()), PrefixLen: o.address.Bits(),
		},
	}
	mask := tcpip.MaskFromBytes(net.CIDRMask(o.pods.Bits(), 32))
	pods, err := tcpip.NewSubnet(tcpip.AddrFrom4(o.pods.Masked().Addr().As4()), mask)
	if err != nil {
		return err
	}
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: largestBuffer, Max: largestBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: largestBuffer, Max: largestBuffer}
	over, halfOver := tcpip.TCPTimeWaitTimeoutOption(timeWait), tcpip.TCPLingerTimeoutOption(lingering)
	retries := tcpip.TCPSynRetriesOption(handshakeRetries)
	datagrams := tcpip.ReceiveBufferSizeOption{Min: udp.MinBufferSize, Default: datagramBuffer, Max: datagramBuffer}
	for _, failure := range []tcpip.Error{
		g.SetTransportProtocolOption(tcp.ProtocolNumber, &sack),
		g.SetTransportProtocolOption(tcp.ProtocolNumber, &receive),
		g.SetTransportProtocolOption(tcp.ProtocolNumber, &send),
		g.SetTransportProtocolOption(tcp.ProtocolNumber, &over),
		g.SetTransportProtocolOption(tcp.ProtocolNumber, &halfOver),
		g.SetTransportProtocolOption(tcp.ProtocolNumber, &retries),
		g.SetOption(datagrams),
		g.CreateNIC(nic, endpoint),
		g.AddProtocolAddress(nic, own, stack.AddressProperties{}),
		g.SetPromiscuousMode(nic, true), // packets for others
		g.SetSpoofing(nic, true),        // and answers from them
	} {
		if failure != nil {
			return errors.New(failure.String())
		}
	}
	g.SetRouteTable([]tcpip.Route{
		{Destination: own.AddressWithPrefix.Subnet(), NIC: nic},
		{Destination: pods, Gateway: tcpip.AddrFrom4(o.node.As4()), NIC: nic},
	})
	// The quota limits also those that are about to be made.
	forwarder := tcp.NewForwarder(g.Stack, largestBuffer, tcpTotal, g.forwardTCP)
	g.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	g.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(g.Stack, g.forwardUDP).HandlePacket)
	return nil
}

func (g *gateway) close() {
	g.udp.close()
	g.Stack.Close()
	g.routes.Close()
}

// ends are the two ends of a connection or a flow: who asks for it in the sandbox, and whom.
func ends(id stack.TransportEndpointID) (from, to netip.AddrPort) {
	return netip.AddrPortFrom(netip.AddrFrom4(id.RemoteAddress.As4()), id.RemotePort),
		netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}
