package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/internal/isolated"
	"gvisor-k3s/host/netns"
)

func TestMain(m *testing.M) { isolated.Main(m) }

const name = "gk-network"

func withTap() Network {
	return Network{
		Namespace: name, Host: netip.MustParsePrefix("198.51.100.1/30"), Node: netip.MustParsePrefix("198.51.100.2/30"),
		Tap: &Tap{
			Device: "tap0", Address: netip.MustParsePrefix("169.254.77.2/30"),
			Gateway: netip.MustParsePrefix("169.254.77.1/30"), MTU: 65000,
		},
	}
}

func up(t *testing.T, n Network) {
	t.Helper()
	if err := Up(n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { down(t) })
}

func down(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := Down(ctx, name); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName(name); err == nil {
		t.Error("the link is there still")
	}
	if _, err := os.Stat(File(name)); err == nil {
		t.Error("the namespace is there still")
	}
}

// inside runs a function in the sandbox's namespace.
func inside[T any](t *testing.T, do func() (T, error)) T {
	t.Helper()
	value, err := netns.In(File(name), do)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func addresses(t *testing.T, device string) []string {
	t.Helper()
	link, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, address := range list {
		all = append(all, address.IPNet.String())
	}
	return all
}

func setting(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc/sys/net", path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestNetworkWithATap(t *testing.T) {
	up(t, withTap())
	if got := addresses(t, name); !slices.Equal(got, []string{"198.51.100.1/30"}) {
		t.Errorf("the host's end has %q", got) // no address of IPv6 among them
	}
	if got := setting(t, "ipv6/conf/"+name+"/disable_ipv6"); got != "1" {
		t.Errorf("disable_ipv6 is %s", got)
	}
	if got := setting(t, "ipv4/conf/"+name+"/rp_filter"); got != "1" {
		t.Errorf("rp_filter is %s", got)
	}
	got := inside(t, func() ([]string, error) {
		tap, err := netlink.LinkByName("tap0")
		if err != nil {
			return nil, err
		}
		if mtu := tap.Attrs().MTU; mtu != 65000 {
			t.Errorf("the tap's MTU is %d", mtu)
		}
		for _, device := range []string{"lo", "eth0", "tap0"} {
			if link, err := netlink.LinkByName(device); err != nil || link.Attrs().Flags&net.FlagUp == 0 {
				t.Errorf("%s is not up: %v", device, err)
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			return nil, err
		}
		var all []string
		for _, route := range routes {
			if route.Gw != nil {
				all = append(all, route.Gw.String())
			}
		}
		return all, nil
	})
	if !slices.Equal(got, []string{"169.254.77.1"}) {
		t.Errorf("the routes lead to %q", got)
	}
}

// What the host and the sandbox send reaches the other one.
func TestTheLinkConnects(t *testing.T) {
	n := withTap()
	n.Tap = nil
	up(t, n)
	listener := inside(t, func() (net.Listener, error) { return net.Listen("tcp4", "198.51.100.2:80") })
	defer listener.Close()
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	routes := inside(t, func() ([]netlink.Route, error) { return netlink.RouteGet(net.ParseIP("192.0.2.1")) })
	if len(routes) != 1 || !routes[0].Gw.Equal(net.ParseIP("198.51.100.1")) {
		t.Errorf("the way out is by %v", routes)
	}
}

// Two nodes of one cluster reach each other at their addresses, and what they share is gone with the last of them.
func TestMesh(t *testing.T) {
	const mesh = "gk-network.nodes"
	pool := netip.MustParsePrefix("198.51.100.0/24")
	node := func(namespace, host, node string) Network {
		return Network{
			Namespace: namespace, Host: netip.MustParsePrefix(host + "/30"), Node: netip.MustParsePrefix(node + "/30"),
			Mesh: &Mesh{Namespace: mesh, Device: "eth1", MTU: 65000, Networks: []netip.Prefix{pool}},
		}
	}
	nodes := []Network{node("gk-a", "198.51.100.1", "198.51.100.2"), node("gk-b", "198.51.100.5", "198.51.100.6")}
	leave := func(n Network) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(Down(ctx, n.Namespace), LeaveMesh(ctx, mesh, n.Namespace)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			leave(n)
		}
	})
	for range 2 { // as a node that is started again
		var running sync.WaitGroup
		problems := make([]error, len(nodes))
		for i, n := range nodes {
			if problems := n.Problems(); len(problems) > 0 {
				t.Fatal(problems)
			}
			running.Go(func() { problems[i] = Up(n) })
		}
		running.Wait()
		if err := errors.Join(problems...); err != nil {
			t.Fatal(err)
		}
		listener, err := netns.In(File("gk-a"), func() (net.Listener, error) { return net.Listen("tcp4", "198.51.100.2:80") })
		if err != nil {
			t.Fatal(err)
		}
		_, err = netns.In(File("gk-b"), func() (any, error) {
			conn, err := (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp4", listener.Addr().String())
			if err == nil {
				err = conn.Close()
			}
			return nil, err
		})
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
		name, err := netns.In(File("gk-b"), func() (string, error) {
			link, err := netlink.LinkByName("eth1")
			if err != nil {
				return "", err
			}
			return link.Attrs().HardwareAddr.String(), nil
		})
		if want := "02:00:c6:33:64:06"; err != nil || name != want { // by which it was known in its life before
			t.Errorf("its link is called %s (%v), not %s", name, err, want)
		}
		// What a node sends in others' names is kept by nobody.
		known := func() int {
			count, err := netns.In(File(mesh), func() (int, error) {
				list, err := netlink.NeighList(0, unix.AF_BRIDGE)
				return len(list), err
			})
			if err != nil {
				t.Fatal(err)
			}
			return count
		}
		before := known()
		sendInOthersNames(t, "gk-b", "eth1", 100)
		if after := known(); after != before {
			t.Errorf("the bridge knew %d names, and %d after a node has sent in others'", before, after)
		}
		leave(nodes[1])
		if _, err := os.Stat(File(mesh)); err != nil {
			t.Fatalf("one is there still: %v", err)
		}
		leave(nodes[0])
		leave(nodes[0])
		if _, err := os.Stat(File(mesh)); err == nil {
			t.Fatal("the namespace is there still")
		}
	}
}

// sendInOthersNames sends frames to everybody from a device, each from another address.
func sendInOthersNames(t *testing.T, namespace, device string, count int) {
	t.Helper()
	_, err := netns.In(File(namespace), func() (any, error) {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return nil, err
		}
		socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(socket)
		for i := range count {
			frame := make([]byte, 60)
			copy(frame, []byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, byte(i), 0x88, 0xb5})
			if err := unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A process with other mounts does not keep a namespace that was removed.
func TestNamespacesAreShared(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "netns")
	defer unix.Unmount(folder, unix.MNT_DETACH)
	for range 2 {
		if err := makeFolder(folder); err != nil {
			t.Fatal(err)
		}
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(folder))
		if err != nil || len(mounts) != 1 || !strings.HasPrefix(mounts[0].Optional, "shared:") {
			t.Errorf("%s is no shared mount: %+v, %v", folder, mounts, err)
		}
	}
}

func TestWhatIsThereAlreadyIsLeftAlone(t *testing.T) {
	up(t, withTap())
	if err := Up(withTap()); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("got %v", err)
	}
	if got := addresses(t, name); len(got) != 1 {
		t.Errorf("the link has %q", got)
	}
}

func TestDown(t *testing.T) {
	file := func(t *testing.T) {
		t.Helper()
		if err := makeFolder(namespaces); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(File(name), nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	for name, prepare := range map[string]func(t *testing.T){
		"nothing": func(*testing.T) {},
		"all": func(t *testing.T) {
			if err := Up(withTap()); err != nil {
				t.Fatal(err)
			}
		},
		"a namespace that is a file only": file,
		"a namespace alone": func(t *testing.T) {
			if err := addNamespace(name); err != nil {
				t.Fatal(err)
			}
		},
		"a namespace that is mounted twice": func(t *testing.T) {
			if err := addNamespace(name); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("/proc/self/ns/net", File(name), "none", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
		},
		"a link alone": func(t *testing.T) {
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer"}
			if err := netlink.LinkAdd(veth); err != nil {
				t.Fatal(err)
			}
		},
		// The kernel takes the link down by and by.
		"a link whose namespace is gone": func(t *testing.T) {
			if err := Up(withTap()); err != nil {
				t.Fatal(err)
			}
			if err := removeNamespace(name); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			prepare(t)
			down(t)
			down(t)
			// Its names can be had again at once.
			if err := Up(withTap()); err != nil {
				t.Fatal(err)
			}
			down(t)
		})
	}
}

func TestOthersLinksAreLeftAlone(t *testing.T) {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(bridge)
	if err := Down(t.Context(), name); err == nil || !strings.Contains(err.Error(), "of the type bridge") {
		t.Errorf("got %v", err)
	}
	if _, err := netlink.LinkByName(name); err != nil {
		t.Error(err)
	}
}

func TestProblems(t *testing.T) {
	if problems := withTap().Problems(); len(problems) > 0 {
		t.Errorf("nothing is wrong, but %v", problems)
	}
	all := func(n Network) string {
		var texts []string
		for _, problem := range n.Problems() {
			texts = append(texts, problem.Error())
		}
		return strings.Join(texts, "\n")
	}
	got := all(Network{Namespace: "../x", Tap: &Tap{Device: "a device with a long name"}})
	for _, want := range []string{
		`network.namespace: "../x"`, "network.host", "network.node", `network.tap.device: "a device`,
		"network.tap.address", "network.tap.gateway", "network.tap.mtu is 0",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	n := withTap()
	n.Node = netip.MustParsePrefix("198.51.100.5/30")
	n.Tap.Gateway = n.Tap.Address
	got = all(n)
	for _, want := range []string{"198.51.100.5/30: two addresses of one network", "169.254.77.2/30: two addresses"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, name := range []string{"", "-x", ".", "a/b", "0123456789abcdef"} {
		if err := Down(t.Context(), name); err == nil {
			t.Errorf("%q is taken as a name", name)
		}
	}
}
