package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The bridge lives in a namespace of its own, the switch, and the node is on it
// by a veth pair like any pod. gVisor's bridge, measured on the 2026-09-05 build,
// is why:
//   - its own interface hands every frame between two pods to the node's IP layer
//     too, which forwards a second copy when the node forwards: TCP between pods
//     comes to a halt. Namespaces other than the first never forward;
//   - what the node sends through that interface goes out of every port: with 32
//     pods at a tenth of the speed. Frames that come from a port go to one port.
const (
	switchDir = "/run/netns" // where ip-netns looks: ip netns exec cni0 ip link
	// bridgeName and uplinkName are the names inside the switch.
	bridgeName = "bridge"
	uplinkName = "uplink"
)

func switchPath(name string) string { return filepath.Join(switchDir, name) }

// filterName names the namespace that the service proxy takes ports to while there are network policies; see
// node/server/service-proxy/podlinks.go.
func filterName(bridge string) string { return bridge + "-filter" }

// amongPorts runs f wherever ports can be.
func amongPorts(bridge string, f func() error) error {
	return join(inSwitch(bridge, f), inSwitch(filterName(bridge), f))
}

// openSwitch returns nil when there is none.
func openSwitch(name string) (ns.NetNS, error) {
	sw, err := ns.GetNS(switchPath(name))
	if errors.As(err, new(ns.NSPathNotExistErr)) || errors.As(err, new(ns.NSPathNotNSErr)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the namespace of bridge %q: %w", name, err)
	}
	return sw, nil
}

// inSwitch runs f in the switch, and does nothing when there is none.
func inSwitch(name string, f func() error) error {
	sw, err := openSwitch(name)
	if sw == nil || err != nil {
		return err
	}
	defer sw.Close()
	return sw.Do(func(ns.NetNS) error { return f() })
}

// ensureSwitch makes what is missing of the switch, its bridge and the node's
// link to it, and returns the switch and the node's end. ADDs that come at once
// take turns.
func ensureSwitch(conf *pluginConf) (ns.NetNS, netlink.Link, error) {
	unlock, err := lock(conf.Bridge)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()

	sw, err := openSwitch(conf.Bridge)
	if err == nil && sw == nil {
		sw, err = newSwitch(conf.Bridge)
	}
	if err != nil {
		return nil, nil, err
	}
	link, err := ensureUplink(sw, conf)
	if err != nil {
		sw.Close()
		return nil, nil, err
	}
	return sw, link, nil
}

// lock holds until unlock is called or the process ends.
func lock(bridge string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join("/run", pluginType+"-"+bridge+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("locking %s: %w", file.Name(), err)
	}
	return func() { file.Close() }, nil
}

// newSwitch makes the namespace and mounts it where openSwitch finds it.
func newSwitch(name string) (ns.NetNS, error) {
	path := switchPath(name)
	if err := os.MkdirAll(switchDir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return nil, err
	}
	sw, err := ns.TempNetNS()
	if err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", sw.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		sw.Close()
		return nil, fmt.Errorf("mounting a network namespace at %s: %w", path, err)
	}
	return sw, nil
}

// ensureUplink makes the bridge and the pair that the node is on it by, and returns the node's end.
func ensureUplink(sw ns.NetNS, conf *pluginConf) (netlink.Link, error) {
	var uplink netlink.Link
	err := sw.Do(func(ns.NetNS) (err error) {
		if err := ensureBridge(conf.MTU); err != nil {
			return err
		}
		uplink, err = findLink(uplinkName)
		return err
	})
	if err != nil {
		return nil, err
	}
	node, err := findLink(conf.Bridge)
	if err != nil {
		return nil, err
	}
	switch {
	case node != nil && uplink == nil:
		return nil, notOurs(node)
	case node == nil:
		// An uplink without the node's end leads to a namespace that was the node's once.
		if err := sw.Do(func(ns.NetNS) error { return deleteLink(uplinkName) }); err != nil {
			return nil, err
		}
		if err := addVeth(conf.Bridge, uplinkName, sw); err != nil {
			return nil, err
		}
		if node, err = netlinksafe.LinkByName(conf.Bridge); err != nil {
			return nil, fmt.Errorf("looking up link %q: %w", conf.Bridge, err)
		}
	}
	if err := sw.Do(func(ns.NetNS) error { return plugIn(uplinkName, conf.MTU) }); err != nil {
		return nil, err
	}
	return node, bringUp(node, conf.MTU)
}

func notOurs(link netlink.Link) error {
	return fmt.Errorf("the node has a link %q (%s) that is not of this network: remove it, "+
		"or set \"bridge\" to another name", link.Attrs().Name, link.Type())
}

// ensureBridge makes the bridge where it is missing. Called in the switch.
func ensureBridge(mtu int) error {
	bridge, err := findLink(bridgeName)
	if err != nil {
		return err
	}
	if bridge == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("creating a bridge: %w", err)
		}
		if bridge, err = netlinksafe.LinkByName(bridgeName); err != nil {
			return fmt.Errorf("looking up link %q: %w", bridgeName, err)
		}
	}
	return bringUp(bridge, mtu)
}

// plugIn makes a link a port of the bridge. Called in the switch.
func plugIn(port string, mtu int) error {
	bridge, err := netlinksafe.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("looking up link %q: %w", bridgeName, err)
	}
	link, err := netlinksafe.LinkByName(port)
	if err != nil {
		return fmt.Errorf("looking up link %q: %w", port, err)
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("adding %q to the bridge: %w", port, err)
	}
	return bringUp(link, mtu)
}
