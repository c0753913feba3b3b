package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A port is the bridge's end of a pod's veth pair. Port names are "veth", 3
// characters for the network and 8 for the attachment: 15, the kernel's limit.
// They are computed, not stored, so that DEL and GC find them when the pod's
// namespace is gone.
const (
	portPrefix   = "veth"
	networkChars = 3
	podChars     = 8
)

// networkPrefix starts the names of all ports of one network.
func networkPrefix(network string) string {
	return portPrefix + hash(networkChars, network)
}

// portName names the port of one attachment.
func portName(network, containerID, ifName string) string {
	return networkPrefix(network) + hash(podChars, containerID, ifName)
}

func hash(chars int, parts ...string) string {
	// Neither a container ID nor an interface name can hold a slash.
	sum := sha256.Sum256([]byte(strings.Join(parts, "/")))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:chars]
}

// findLink returns nil when there is no such link.
func findLink(name string) (netlink.Link, error) {
	link, err := netlinksafe.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking up link %q: %w", name, err)
	}
	return link, nil
}

// bringUp sets a link's MTU and state.
func bringUp(link netlink.Link, mtu int) error {
	if err := setMTU(link, mtu); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing %q up: %w", link.Attrs().Name, err)
	}
	return nil
}

// setMTU makes mtu the largest IP packet that fits. gVisor counts the Ethernet
// header as part of a link's MTU and reports what is left for IP, so the value
// to set is found by asking what came of it.
func setMTU(link netlink.Link, mtu int) error {
	name := link.Attrs().Name
	for _, headroom := range []int{0, 14} {
		if err := netlink.LinkSetMTU(link, mtu+headroom); err != nil {
			return fmt.Errorf("setting the MTU of %q to %d: %w", name, mtu+headroom, err)
		}
		now, err := netlinksafe.LinkByName(name)
		if err != nil {
			return fmt.Errorf("looking up link %q: %w", name, err)
		}
		if now.Attrs().MTU == mtu {
			return nil
		}
	}
	return fmt.Errorf("setting the MTU of %q to %d had no effect", name, mtu)
}

// deleteLink removes a link; one that is gone already is no error. Removing one
// end of a veth pair removes the other.
func deleteLink(name string) error {
	link, err := findLink(name)
	if link == nil || err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting link %q: %w", name, err)
	}
	return nil
}

// addVeth makes a pair with one end here and the other in the namespace there.
func addVeth(name, peer string, there ns.NetNS) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: netlink.NsFd(int(there.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("creating veth pair %q and %q: %w", name, peer, err)
	}
	return nil
}

// addAddress is content when the address is there already.
func addAddress(link netlink.Link, address net.IPNet) error {
	err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &address})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding address %s to %q: %w", address.String(), link.Attrs().Name, err)
	}
	return nil
}

// configurePod sets the pod's end up: MTU, addresses, routes. Called in the pod's namespace.
func configurePod(ifName string, mtu int, addresses []net.IPNet, routes []*types.Route) (netlink.Link, error) {
	link, err := netlinksafe.LinkByName(ifName)
	if err != nil {
		return nil, fmt.Errorf("looking up link %q: %w", ifName, err)
	}
	for _, address := range addresses {
		if err := addAddress(link, address); err != nil {
			return nil, err
		}
	}
	// Linux has an MTU for each end of a pair, gVisor one for both.
	if err := bringUp(link, mtu); err != nil {
		return nil, err
	}
	for _, r := range routes {
		// Nothing but destination, gateway and link: gVisor refuses a route with a Src.
		err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &r.Dst, Gw: r.GW})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("adding route %s via %s: %w", r.Dst.String(), r.GW, err)
		}
	}
	return link, nil
}

const forwardingFile = "/proc/sys/net/ipv4/ip_forward"

// ensureForwarding writes 1 to file unless it says so already. It lets pods reach
// more of the node than its address on the bridge: unlike Linux, gVisor drops a
// packet for an address of another link unless it forwards.
func ensureForwarding(file string) error {
	now, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading whether the node forwards: %w", err)
	}
	if string(bytes.TrimSpace(now)) == "1" {
		return nil
	}
	// A write through an overlay ends in its upper layer, and yet it succeeds.
	var fs unix.Statfs_t
	if err := unix.Statfs(file, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", file, err)
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("%s is 0 and another filesystem covers it: write 1 to it before mounting over /proc/sys", file)
	}
	if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("switching forwarding on: %w", err)
	}
	return nil
}
