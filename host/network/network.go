// Package network makes and removes the network of a sandbox: a network namespace, a link between it and the host,
// and a tap for the way out. It needs no `ip` program, which bare machines have not.
package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"

	"gvisor-k3s/host/netns"
)

// Device is the sandbox's end of its link to the host.
const Device = "eth0"

// Network is what a sandbox gets.
type Network struct {
	// Namespace is the name of the network namespace, and that of the host's end of the link.
	Namespace string `json:"namespace"`
	// Host and Node are the addresses at the two ends of the link.
	Host netip.Prefix `json:"host"`
	Node netip.Prefix `json:"node"`
	// Tap is the way out; without one it is by way of the host.
	Tap *Tap `json:"tap"`
	// Mesh is what it shares with the other nodes of its cluster.
	Mesh *Mesh `json:"mesh"`
}

// Tap is a device whose far end a process of the host's holds; see package egress.
type Tap struct {
	Device  string       `json:"device"`
	Address netip.Prefix `json:"address"`
	Gateway netip.Prefix `json:"gateway"`
	MTU     int          `json:"mtu"`
}

// What the kernel takes as the name of a device, less what would lead out of a folder or be read as an option.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)

// Problems are all that is wrong with a description.
func (n Network) Problems() []error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if err := checkName(n.Namespace); err != nil {
		wrong("network.namespace: %w", err)
	}
	for name, address := range map[string]netip.Prefix{"host": n.Host, "node": n.Node} {
		if !address.Addr().Is4() {
			wrong("network.%s is %q: an IPv4 address with a prefix is needed, such as 10.107.1.1/30", name, address)
		}
	}
	if n.Host.IsValid() && n.Node.IsValid() && (n.Host.Masked() != n.Node.Masked() || n.Host == n.Node) {
		wrong("network.host %s and network.node %s: two addresses of one network are needed", n.Host, n.Node)
	}
	if n.Mesh != nil {
		problems = append(problems, n.Mesh.problems()...)
	}
	if n.Tap == nil {
		return problems
	}
	if err := checkName(n.Tap.Device); err != nil {
		wrong("network.tap.device: %w", err)
	}
	for name, address := range map[string]netip.Prefix{"address": n.Tap.Address, "gateway": n.Tap.Gateway} {
		if !address.Addr().Is4() {
			wrong("network.tap.%s is %q: an IPv4 address with a prefix is needed, such as 169.254.77.1/30", name, address)
		}
	}
	if n.Tap.Address.IsValid() && (n.Tap.Address.Masked() != n.Tap.Gateway.Masked() || n.Tap.Address == n.Tap.Gateway) {
		wrong("network.tap.address %s and network.tap.gateway %s: two addresses of one network are needed",
			n.Tap.Address, n.Tap.Gateway)
	}
	if n.Tap.MTU < 576 || n.Tap.MTU > 65521 { // RFC 791's least, and the tun driver's most for Ethernet
		wrong("network.tap.mtu is %d: 576 to 65521 is allowed", n.Tap.MTU)
	}
	return problems
}

func checkName(name string) error {
	if !deviceName.MatchString(name) {
		return fmt.Errorf("%q: 1 to 15 letters, digits, dots, dashes and underscores are allowed", name)
	}
	return nil
}

// File is the file of a network namespace, by its name.
func File(namespace string) string { return filepath.Join(namespaces, namespace) }

// Up makes the network. Nothing of that name may be there; where it fails, [Down] removes what was made.
func Up(n Network) error {
	if err := addNamespace(n.Namespace); err != nil {
		return err
	}
	if err := n.upHere(); err != nil {
		return fmt.Errorf("making the link %s: %w", n.Namespace, err)
	}
	if n.Mesh != nil {
		if err := n.joinMesh(); err != nil {
			return fmt.Errorf("joining the network %s: %w", n.Mesh.Namespace, err)
		}
	}
	_, err := netns.In(File(n.Namespace), func() (any, error) { return nil, n.upInside() })
	if err != nil {
		return fmt.Errorf("making the network in the namespace %s: %w", n.Namespace, err)
	}
	return nil
}

// upHere makes the link, and the host's end of it ready.
func (n Network) upHere() error {
	namespace, err := os.Open(File(n.Namespace))
	if err != nil {
		return err
	}
	defer namespace.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: n.Namespace}, PeerName: Device,
		PeerNamespace: netlink.NsFd(namespace.Fd()),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	// Before the link is up, so that nothing comes over it until then.
	if err := distrust(n.Namespace); err != nil {
		return err
	}
	return ready(n.Namespace, n.Host)
}

// distrust has the host follow nothing that comes over the link but what the node at its other end sends in its own
// name.
func distrust(link string) error {
	for _, setting := range []struct {
		path, value, why string
	}{
		{"ipv6/conf/%s/disable_ipv6", "1", "a router advertisement of the sandbox would give this host routes"},
		{"ipv4/conf/%s/rp_filter", "1", "the sandbox could send packets in others' names, and fill the neighbour table"},
	} {
		path := filepath.Join("/proc/sys/net", fmt.Sprintf(setting.path, link))
		if err := set(path, setting.value); err != nil {
			return fmt.Errorf("%w; without it %s", err, setting.why)
		}
	}
	return nil
}

// set has a setting of the kernel's. One that the kernel does not have needs none.
func set(path, value string) error {
	if current, err := os.ReadFile(path); errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(current)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0)
}

func (n Network) upInside() error {
	if err := ready("lo", netip.Prefix{}); err != nil {
		return err
	}
	if err := ready(Device, n.Node); err != nil {
		return err
	}
	if n.Mesh != nil {
		if err := n.Mesh.ready(n.Node); err != nil {
			return err
		}
	}
	if n.Tap == nil {
		return defaultRoute(n.Host.Addr(), Device)
	}
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: n.Tap.Device}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_TUN_EXCL,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("making the tap %s: %w; does this host have /dev/net/tun (modprobe tun)?", n.Tap.Device, err)
	}
	if err := netlink.LinkSetMTU(tap, n.Tap.MTU); err != nil {
		return fmt.Errorf("%s: MTU %d: %w", n.Tap.Device, n.Tap.MTU, err)
	}
	if err := ready(n.Tap.Device, n.Tap.Address); err != nil {
		return err
	}
	return defaultRoute(n.Tap.Gateway.Addr(), n.Tap.Device)
}

// ready gives a device an address, if any, and switches it on.
func ready(device string, address netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	if address.IsValid() {
		network := &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: network}); err != nil {
			return fmt.Errorf("%s: address %s: %w", device, address, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: switching it on: %w", device, err)
	}
	return nil
}

func defaultRoute(gateway netip.Addr, device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("the default route via %s: %w", gateway, err)
	}
	return nil
}
