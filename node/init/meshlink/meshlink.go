// Package meshlink is the link of a node that is on another machine than its cluster's server: a device here whose
// frames a process beside the server's sandbox carries to the bridge of the cluster's nodes, and back, over a
// connection of its own.
package meshlink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	"gvisor-k3s/node/init/files"
	"gvisor-k3s/wire"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link describes it.
type Link struct {
	Device string `json:"device"`
	MTU    int    `json:"mtu"`
	// Address is the node's, which the machine has already.
	Address netip.Addr `json:"address"`
	// Networks are where the other nodes have their addresses.
	Networks []netip.Prefix `json:"networks"`
	// Socket is where who carries the frames is heard: one at a time, the last one who came.
	Socket string `json:"socket"`
}

func (l Link) problems() (problems []error) {
	if len(l.Device) == 0 || len(l.Device) >= unix.IFNAMSIZ {
		problems = append(problems, fmt.Errorf("device %q: the name of a link is needed", l.Device))
	}
	if l.MTU < 576 || l.MTU > 65535-32 {
		problems = append(problems, fmt.Errorf("mtu %d: 576 to %d is allowed", l.MTU, 65535-32))
	}
	if !l.Address.Is4() {
		problems = append(problems, fmt.Errorf("address %q: an IPv4 address is needed", l.Address))
	}
	for _, network := range l.Networks {
		if !network.Addr().Is4() || network.Masked() != network {
			problems = append(problems, fmt.Errorf("networks: %q is no IPv4 network", network))
		}
	}
	return append(problems, files.CheckPath(l.Socket))
}

// Serve has the device be there until the context ends.
func (l Link) Serve(ctx context.Context) error {
	if err := errors.Join(l.problems()...); err != nil {
		return err
	}
	device, err := l.up()
	if err != nil {
		return fmt.Errorf("the link %s: %w", l.Device, err)
	}
	defer device.Close()
	if err := os.Remove(l.Socket); err != nil && !files.IsAbsent(err) {
		return err
	}
	listener, err := net.Listen("unix", l.Socket)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	if err := os.Chmod(l.Socket, 0o600); err != nil {
		return err
	}
	return l.carry(ctx, device, listener)
}

// carry has the device's frames carried by whoever came last.
func (l Link) carry(ctx context.Context, device wire.Device, listener net.Listener) error {
	var carried sync.WaitGroup
	defer carried.Wait()
	var last net.Conn
	for {
		connection, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if last != nil {
			last.Close()
			carried.Wait()
		}
		last = connection
		carried.Go(func() {
			err := wire.Carry(ctx, device, wire.Stream{In: connection, Out: connection}, func() {})
			fmt.Fprintln(os.Stderr, "sandbox-init: the link to the other nodes is carried no more:", err)
		})
	}
}

// up makes the device, which goes with the descriptor.
func (l Link) up() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(l.Device)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making a tap: %w", err)
	}
	// Not before it is a tap: until then Linux tells of an error to whoever waits for it, and Go never waits again.
	device := os.NewFile(uintptr(fd), l.Device)
	if err := l.ready(); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// ready has the device be the node's.
func (l Link) ready() error {
	link, err := netlink.LinkByName(l.Device)
	if err != nil {
		return err
	}
	own := append(net.HardwareAddr{2, 0}, l.Address.AsSlice()...) // as host/network calls it on the bridge
	host := &netlink.Addr{IPNet: &net.IPNet{IP: l.Address.AsSlice(), Mask: net.CIDRMask(32, 32)}}
	steps := []struct {
		what string
		do   func() error
	}{
		{"its hardware address", func() error { return netlink.LinkSetHardwareAddr(link, own) }},
		{"its MTU", func() error { return netlink.LinkSetMTU(link, l.MTU) }},
		{"its address", func() error { return netlink.AddrAdd(link, host) }},
		{"switching it on", func() error { return netlink.LinkSetUp(link) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	for _, network := range l.Networks {
		route := &netlink.Route{
			LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: network.Addr().AsSlice(), Mask: net.CIDRMask(network.Bits(), 32)},
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("the route to %s: %w", network, err)
		}
	}
	return nil
}

// Attach has who calls it carry the frames, by its standard input and output, until either ends.
func Attach(socket string, input io.Reader, output io.Writer) error {
	connection, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- copied(connection, input) }()
	go func() { ended <- copied(output, connection) }()
	return <-ended
}

func copied(to io.Writer, from io.Reader) error {
	_, err := io.Copy(to, from)
	return err
}
