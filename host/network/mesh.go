package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/netns"
)

// Mesh is where the nodes of one cluster meet: a bridge in a network namespace of its own, to which each has a link.
// The host has no address there and forwards nothing, so that none of it reaches the host, or another cluster. The
// first node makes it, and it goes with the last.
//
// A node has its own address on that link too: for the others it is where it is for the host. The bridge learns nothing
// of what nodes send, which may be frames in millions of names: it knows the one name of each, and keeps no more.
type Mesh struct {
	// Namespace is the name of the bridge's network namespace.
	Namespace string `json:"namespace"`
	// Device is the sandbox's end of its link.
	Device string `json:"device"`
	MTU    int    `json:"mtu"`
	// Networks are where the other nodes have their addresses.
	Networks []netip.Prefix `json:"networks"`
}

// meshBridge is the bridge within the namespace.
const meshBridge = "nodes"

// A name that no link has, as it has a dot and may be longer.
var meshName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,30}\.nodes$`)

func (m Mesh) problems() (problems []error) {
	if !meshName.MatchString(m.Namespace) {
		problems = append(problems, fmt.Errorf("network.mesh.namespace %q: NAME.nodes is allowed", m.Namespace))
	}
	if err := checkName(m.Device); err != nil {
		problems = append(problems, fmt.Errorf("network.mesh.device: %w", err))
	}
	if m.MTU < 576 || m.MTU > 65535 {
		problems = append(problems, fmt.Errorf("network.mesh.mtu is %d: 576 to 65535 is allowed", m.MTU))
	}
	for _, network := range m.Networks {
		if !network.Addr().Is4() || network.Masked() != network {
			problems = append(problems, fmt.Errorf("network.mesh.networks: %q is no IPv4 network", network))
		}
	}
	return problems
}

// joinMesh gives the sandbox a link to the bridge, which is made where it is missing. The link's end there is called as
// the sandbox's namespace is.
func (n Network) joinMesh() error {
	unlock, err := lockMeshes()
	if err != nil {
		return err
	}
	defer unlock()
	mesh := File(n.Mesh.Namespace)
	if !isNamespace(mesh) {
		if err := removeNamespace(n.Mesh.Namespace); err != nil { // what a killed process has left of one
			return err
		}
		if err := addNamespace(n.Mesh.Namespace); err != nil {
			return err
		}
	}
	sandbox, err := os.Open(File(n.Namespace))
	if err != nil {
		return err
	}
	defer sandbox.Close()
	_, err = netns.In(mesh, func() (any, error) {
		bridge, err := ensureBridge(n.Mesh.MTU)
		if err != nil {
			return nil, err
		}
		own := hardware(n.Node.Addr())
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: n.Namespace, MTU: n.Mesh.MTU}, PeerName: n.Mesh.Device,
			PeerNamespace: netlink.NsFd(sandbox.Fd()), PeerMTU: uint32(n.Mesh.MTU),
			PeerHardwareAddr: own,
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return nil, err
		}
		if err := distrust(n.Namespace); err != nil {
			return nil, err
		}
		port, err := netlink.LinkByName(n.Namespace)
		if err != nil {
			return nil, err
		}
		name := &netlink.Neigh{
			LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP,
			HardwareAddr: own,
		}
		err = errors.Join(netlink.LinkSetMaster(port, bridge), netlink.LinkSetLearning(port, false),
			netlink.LinkSetFlood(port, false), netlink.NeighAdd(name))
		if err != nil {
			return nil, err // rather than up, on a bridge that learns from it
		}
		return nil, netlink.LinkSetUp(port)
	})
	return err
}

// hardware is what a node's link is called on the bridge, the same in each of the sandbox's lives: the others need not
// find out anew where the node is.
func hardware(address netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{2, 0}, address.AsSlice()...) // 2: it is nobody's that was assigned
}

// isNamespace tells whether a namespace is mounted there.
func isNamespace(file string) bool {
	var at unix.Statfs_t
	return unix.Statfs(file, &at) == nil && at.Type == unix.NSFS_MAGIC
}

// ensureBridge is called in the bridge's namespace.
func ensureBridge(mtu int) (netlink.Link, error) {
	bridge, err := netlink.LinkByName(meshBridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		snooping := false // it would keep what nodes say of the groups that they are in
		made := &netlink.Bridge{
			LinkAttrs: netlink.LinkAttrs{Name: meshBridge, MTU: mtu}, MulticastSnooping: &snooping,
		}
		if err := netlink.LinkAdd(made); err != nil {
			return nil, err
		}
		if err := distrust(meshBridge); err != nil {
			return nil, err
		}
		bridge, err = netlink.LinkByName(meshBridge)
	}
	if err != nil {
		return nil, err
	}
	return bridge, netlink.LinkSetUp(bridge)
}

// ready is called in the sandbox's namespace.
func (m Mesh) ready(node netip.Prefix) error {
	if err := ready(m.Device, netip.PrefixFrom(node.Addr(), node.Addr().BitLen())); err != nil {
		return err
	}
	link, err := netlink.LinkByName(m.Device)
	if err != nil {
		return err
	}
	for _, network := range m.Networks {
		if network == node.Masked() {
			continue // the host is there
		}
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

// LeaveMesh takes a sandbox's link off, and removes a bridge that has no other. What is gone already is no error.
func LeaveMesh(ctx context.Context, namespace, link string) error {
	if !meshName.MatchString(namespace) {
		return fmt.Errorf("%q is no network of nodes: NAME.nodes is allowed", namespace)
	}
	if err := checkName(link); err != nil {
		return err
	}
	if _, err := os.Lstat(File(namespace)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lockMeshes()
	if err != nil {
		return err
	}
	defer unlock()
	if isNamespace(File(namespace)) {
		others, err := netns.In(File(namespace), func() (int, error) {
			if err := removeLink(ctx, link); err != nil {
				return 0, err
			}
			return countPorts()
		})
		if err != nil || others > 0 {
			return err
		}
	}
	return removeNamespace(namespace)
}

// countPorts is called in the bridge's namespace.
func countPorts() (count int, err error) {
	links, err := netlink.LinkList()
	for _, link := range links {
		if link.Type() == "veth" {
			count++
		}
	}
	return count, err
}

// lockMeshes has who makes a bridge and who removes it take turns: nodes of one cluster come and go at once.
func lockMeshes() (unlock func(), err error) {
	if err := makeFolder(namespaces); err != nil {
		return nil, err
	}
	// Not the folder of the namespaces itself, by whose lock addNamespace takes turns.
	return lockFolder(filepath.Dir(namespaces))
}
