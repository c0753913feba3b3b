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
	sandbox, err := os.Open(File(n.Namespace))
	if err != nil {
		return err
	}
	defer sandbox.Close()
	_, err = inMesh(n.Mesh.Namespace, n.Mesh.MTU, func(bridge netlink.Link) (any, error) {
		own := hardware(n.Node.Addr())
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: n.Namespace, MTU: n.Mesh.MTU}, PeerName: n.Mesh.Device,
			PeerNamespace: netlink.NsFd(sandbox.Fd()), PeerMTU: uint32(n.Mesh.MTU),
			PeerHardwareAddr: own,
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return nil, err
		}
		return nil, plug(bridge, n.Namespace, own)
	})
	return err
}

// JoinByTap gives a node that is on another machine a link to the bridge: a tap of this name, by which whoever has it
// says and hears what the node does. The link goes with it.
func JoinByTap(namespace, link string, node netip.Addr, mtu int) (*os.File, error) {
	problems := Mesh{Namespace: namespace, Device: link, MTU: mtu}.problems()
	if !node.Is4() {
		problems = append(problems, fmt.Errorf("%q is no IPv4 address of a node", node))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return inMesh(namespace, mtu, func(bridge netlink.Link) (*os.File, error) {
		tap, err := OpenTap(link, unix.IFF_TUN_EXCL)
		if err != nil {
			return nil, err
		}
		file := os.NewFile(uintptr(tap), link)
		if err := plugTap(bridge, link, node, mtu); err != nil {
			file.Close()
			return nil, err
		}
		return file, nil
	})
}

func plugTap(bridge netlink.Link, name string, node netip.Addr, mtu int) error {
	tap, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(tap, mtu); err != nil {
		return err
	}
	return plug(bridge, name, hardware(node))
}

// inMesh does something in the bridge's namespace, both of which are made where they are missing.
func inMesh[T any](namespace string, mtu int, do func(bridge netlink.Link) (T, error)) (done T, err error) {
	unlock, err := lockMeshes()
	if err != nil {
		return done, err
	}
	defer unlock()
	if !isNamespace(File(namespace)) {
		if err := removeNamespace(namespace); err != nil { // what a killed process has left of one
			return done, err
		}
		if err := addNamespace(namespace); err != nil {
			return done, err
		}
	}
	return netns.In(File(namespace), func() (T, error) {
		bridge, err := ensureBridge(mtu)
		if err != nil {
			return done, err
		}
		return do(bridge)
	})
}

// plug makes a link a port of the bridge, which knows the one name of the node behind it and learns no other.
func plug(bridge netlink.Link, name string, own net.HardwareAddr) error {
	if err := distrust(name); err != nil {
		return err
	}
	port, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	known := &netlink.Neigh{
		LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP,
		HardwareAddr: own,
	}
	err = errors.Join(netlink.LinkSetMaster(port, bridge), netlink.LinkSetLearning(port, false),
		netlink.LinkSetFlood(port, false), netlink.NeighAdd(known))
	if err != nil {
		return err // rather than up, on a bridge that learns from it
	}
	return netlink.LinkSetUp(port)
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
			if err := removeLink(ctx, link, "tuntap"); err != nil {
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
		if link.Attrs().MasterIndex != 0 {
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
