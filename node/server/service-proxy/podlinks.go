package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// podLink is what the CNI plugin tells of a pod's link, in a file named by the port, from its start to its end: see
// node/cni/gvisor-bridge/podlinks.go.
type podLink struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address"`
	Gateway   netip.Addr `json:"gateway"` // the node's address on their network
	MAC       string     `json:"mac"`

	port string
}

func (l podLink) pod() types.NamespacedName {
	return types.NamespacedName{Namespace: l.Namespace, Name: l.Name}
}

// podLinks is the folder of those files.
type podLinks string

// read returns those that can be read, and what is wrong with the others.
func (p podLinks) read() (map[string]podLink, error) {
	entries, err := os.ReadDir(string(p))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	problems := []error{err}
	all := map[string]podLink{}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue // it is being written
		}
		link := podLink{port: entry.Name()}
		content, err := os.ReadFile(filepath.Join(string(p), entry.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // it has just gone
		}
		if err == nil {
			err = json.Unmarshal(content, &link)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", entry.Name(), err))
			continue
		}
		all[link.port] = link
	}
	return all, errors.Join(problems...)
}

// The pods' ports are in one of two namespaces: in the CNI plugin's switch, on its bridge with the node, or, while
// there are network policies, in that of the filter. There each is on a bridge of its own, with a tap whose other end
// is this program, so that a pod whose frames nobody looks at talks to nobody. Only a move to another namespace takes a
// port from a bridge: gVisor's leaves one that is given another bridge on both (stack.SetNICCoordinator), and knows no
// "nomaster".
const (
	namespaces = "/run/netns"
	mainBridge = "bridge" // see node/cni/gvisor-bridge/switch.go
	filterTap  = "filter" // the filter's own port of that
)

// portNetwork places the pods' ports.
type portNetwork struct {
	// bridge is the option `network.bridge`, by which both namespaces are named.
	bridge string
}

func (n portNetwork) switchPath() string { return filepath.Join(namespaces, n.bridge) }

func (n portNetwork) filterPath() string { return filepath.Join(namespaces, n.bridge+"-filter") }

// bridgeOf and tapOf are the names that a port's own bridge and tap have, of its own name's length: "veth" and eleven
// characters.
func bridgeOf(port string) string { return "br" + strings.TrimPrefix(port, "veth") }

func tapOf(port string) string { return "tap" + strings.TrimPrefix(port, "veth") }

// toBridge puts a port on the bridge with the node; it is there already, or comes from the filter.
func (n portNetwork) toBridge(port string) error {
	sw, err := os.Open(n.switchPath())
	if err != nil {
		return err
	}
	defer sw.Close()
	err = inNamespace(n.filterPath(), func() error {
		link, err := findLink(port)
		if link == nil || err != nil {
			return err
		}
		if err := netlink.LinkSetNsFd(link, int(sw.Fd())); err != nil {
			return fmt.Errorf("moving %s to the bridge: %w", port, err)
		}
		return deleteLink(bridgeOf(port))
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return inNamespace(n.switchPath(), func() error { return plugIn(port, mainBridge) })
}

// toFilter takes a port from the bridge, if it is there, and returns what reads and writes its frames.
func (n portNetwork) toFilter(port string, mtu int) (*os.File, error) {
	if err := n.ensureFilterNamespace(); err != nil {
		return nil, err
	}
	there, err := os.Open(n.filterPath())
	if err != nil {
		return nil, err
	}
	defer there.Close()
	err = inNamespace(n.switchPath(), func() error {
		link, err := findLink(port)
		if link == nil || err != nil {
			return err
		}
		if err := netlink.LinkSetNsFd(link, int(there.Fd())); err != nil {
			return errors.Join(err, netlink.LinkSetDown(link)) // rather than on the bridge without a filter
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("moving %s to the filter: %w", port, err)
	}
	var tap *os.File
	err = inNamespace(n.filterPath(), func() (err error) {
		bridge := bridgeOf(port)
		if err := ensureBridge(bridge, mtu); err != nil {
			return err
		}
		if tap, err = openTap(tapOf(port), mtu); err != nil {
			return err
		}
		return errors.Join(plugIn(tapOf(port), bridge), plugIn(port, bridge))
	})
	if err != nil && tap != nil {
		tap.Close()
		tap = nil
	}
	return tap, err
}

// openFilter makes the filter's own port of the bridge with the node.
func (n portNetwork) openFilter() (tap *os.File, mtu int, err error) {
	err = inNamespace(n.switchPath(), func() error {
		bridge, err := findLink(mainBridge)
		if bridge == nil && err == nil {
			err = errNoLink
		}
		if err != nil {
			return err
		}
		mtu = bridge.Attrs().MTU
		if tap, err = openTap(filterTap, mtu); err != nil {
			return err
		}
		return plugIn(filterTap, mainBridge)
	})
	if err != nil && tap != nil {
		tap.Close()
		tap = nil
	}
	return tap, mtu, err
}

// prune removes the bridges of ports that the CNI plugin has deleted.
func (n portNetwork) prune(links map[string]podLink) error {
	bridges := map[string]bool{}
	for port := range links {
		bridges[bridgeOf(port)] = true
	}
	err := inNamespace(n.filterPath(), func() error {
		all, err := netlink.LinkList()
		for _, link := range all {
			if name := link.Attrs().Name; link.Type() == "bridge" && !bridges[name] {
				err = errors.Join(err, deleteLink(name))
			}
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// ensureFilterNamespace makes the namespace where it is missing.
func (n portNetwork) ensureFilterNamespace() error {
	path := n.filterPath()
	if err := inNamespace(path, func() error { return nil }); err == nil {
		return nil
	}
	return makeNamespace(path)
}

// makeNamespace makes a network namespace, and mounts it: what is in it outlives this program.
func makeNamespace(path string) error {
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this function
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return fmt.Errorf("making the namespace %s: %w", path, err)
	}
	return nil
}

// inNamespace runs work in a network namespace.
func inNamespace(path string, work func() error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this function
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("joining %s: %w", path, err)
			return
		}
		done <- work()
	}()
	return <-done
}

func findLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	return link, err
}

func deleteLink(name string) error {
	link, err := findLink(name)
	if link == nil || err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("deleting %s: %w", name, err)
	}
	return nil
}

func ensureBridge(name string, mtu int) error {
	link, err := findLink(name)
	if err != nil {
		return err
	}
	if link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("making the bridge %s: %w", name, err)
		}
		if link, err = netlink.LinkByName(name); err != nil {
			return err
		}
		// Not at once: Linux would take that of its smallest port later.
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("the MTU of %s: %w", name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// plugIn makes a link a port of a bridge, and brings it up.
func plugIn(port, bridge string) error {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("%s: %w", bridge, err)
	}
	link, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("%s: %w", port, err)
	}
	if err := netlink.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("adding %s to %s: %w", port, bridge, err)
	}
	return netlink.LinkSetUp(link)
}

// openTap makes a tap whose frames have up to mtu bytes and the Ethernet header, which gVisor counts.
func openTap(name string, mtu int) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making the tap %s: %w", name, err)
	}
	tap := os.NewFile(uintptr(fd), name)
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetMTU(link, mtu+14)
	}
	if err != nil {
		tap.Close()
		return nil, fmt.Errorf("the tap %s: %w", name, err)
	}
	return tap, nil
}

// hardware is the address of a pod's interface.
func (l podLink) hardware() (net.HardwareAddr, error) {
	address, err := net.ParseMAC(l.MAC)
	if err == nil && len(address) != 6 {
		err = fmt.Errorf("%q is none", l.MAC)
	}
	return address, err
}
