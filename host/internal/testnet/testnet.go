// Package testnet makes what tests have on the two sides of a way out. Its tests have to be isolated.
package testnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"gvisor-k3s/host/netns"
	"gvisor-k3s/host/network"
)

const (
	// Inside stands for a sandbox: its kernel is Linux's, which the far end of a tap cannot tell.
	Inside = "gk-inside"
	// Outside is what the host reaches and is not the host.
	Outside = "gk-outside"
	// Host is an address of the host's, by which it reaches the remote one.
	Host   = "203.0.113.1"
	Remote = "203.0.113.2"
	// Node and Pod are addresses in the sandbox, Gateway is that of its way out.
	Node    = "169.254.77.2"
	Pod     = "10.42.0.9"
	Gateway = "169.254.77.1"
)

// Sandbox is the network that stands for a sandbox's.
func Sandbox() network.Network {
	return network.Network{
		Namespace: Inside, Host: netip.MustParsePrefix("10.107.1.1/30"), Node: netip.MustParsePrefix("10.107.1.2/30"),
		Tap: &network.Tap{
			Device: "tap0", Address: netip.MustParsePrefix(Node + "/30"),
			Gateway: netip.MustParsePrefix(Gateway + "/30"), MTU: 65000,
		},
	}
}

// Up makes both sides.
func Up(t *testing.T) {
	t.Helper()
	UpOutside(t)
	UpNetwork(t, Sandbox())
	AddAddress(t, Inside, "tap0", Pod+"/32")
}

// UpOutside makes what is outside only.
func UpOutside(t *testing.T) {
	t.Helper()
	UpNetwork(t, network.Network{
		Namespace: Outside, Host: netip.MustParsePrefix(Host + "/24"), Node: netip.MustParsePrefix(Remote + "/24"),
	})
}

// UpNetwork makes any other.
func UpNetwork(t *testing.T, n network.Network) {
	t.Helper()
	if err := network.Up(n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Down(context.Background(), n.Namespace); err != nil {
			t.Error(err)
		}
	})
	AwaitUp(t, n.Namespace, network.Device)
}

// AwaitUp waits until a device carries packets: the kernel loses those of the first moments after it was switched on.
func AwaitUp(t *testing.T, namespace, device string) {
	t.Helper()
	Eventually(t, device+" is up", func() bool {
		return In(t, namespace, func() (bool, error) {
			link, err := netlink.LinkByName(device)
			return err == nil && link.Attrs().OperState == netlink.OperUp, err
		})
	})
}

// In runs a function on a thread in a namespace.
func In[T any](t *testing.T, namespace string, do func() (T, error)) T {
	t.Helper()
	value, err := netns.In(network.File(namespace), do)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// AddAddress gives a device one more address.
func AddAddress(t *testing.T, namespace, device, text string) {
	t.Helper()
	In(t, namespace, func() (any, error) {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return nil, err
		}
		address, err := netlink.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		return nil, netlink.AddrAdd(link, address)
	})
}

// Dial connects from within the sandbox. Go would look for addresses on other threads, so both are numbers.
func Dial(from, to string) (*net.TCPConn, error) {
	local := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
	conn, err := netns.In(network.File(Inside), func() (net.Conn, error) {
		return (&net.Dialer{Timeout: 30 * time.Second, LocalAddr: local}).Dial("tcp4", to)
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// DialUDP makes a socket within the sandbox, from a port or, for 0, any.
func DialUDP(t *testing.T, from string, port int, to string) *net.UDPConn {
	t.Helper()
	local := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(fmt.Sprintf("%s:%d", from, port)))
	remote := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	return In(t, Inside, func() (*net.UDPConn, error) { return net.DialUDP("udp4", local, remote) })
}

// Listen listens at the remote address, at a port.
func Listen(t *testing.T, port int) *net.TCPListener {
	t.Helper()
	listener := In(t, Outside, func() (net.Listener, error) {
		return net.Listen("tcp4", fmt.Sprintf("%s:%d", Remote, port))
	})
	t.Cleanup(func() { listener.Close() })
	return listener.(*net.TCPListener)
}

// ListenPacket is a socket at the remote address, at a port.
func ListenPacket(t *testing.T, port int) *net.UDPConn {
	t.Helper()
	packets := In(t, Outside, func() (net.PacketConn, error) {
		return net.ListenPacket("udp4", fmt.Sprintf("%s:%d", Remote, port))
	})
	t.Cleanup(func() { packets.Close() })
	return packets.(*net.UDPConn)
}

// Eventually waits until something is so, and fails the test where it does not come to be.
func Eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to be that %s", what)
		}
	}
}
