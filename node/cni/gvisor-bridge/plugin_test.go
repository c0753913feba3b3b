package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestAdd(t *testing.T) {
	for _, v := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			n := newNode(t)
			ipam := map[string]any{
				"type": ipamType, "subnet": "10.99.0.0/24", "dataDir": n.dir,
				"routes": []any{map[string]any{"dst": "10.43.0.0/16"}, map[string]any{"dst": "172.31.0.0/16", "gw": "10.99.0.9"}},
			}
			n.conf = n.with("cniVersion", v, "mtu", 1400, "ipam", ipam,
				"dns", map[string]any{"nameservers": []string{"10.43.0.10"}})
			p := n.add("pod-a")

			if p.raw["cniVersion"] != v {
				t.Errorf("result is in version %v", p.raw["cniVersion"])
			}
			if p.ip != "10.99.0.2" || p.result.IPs[0].Gateway.String() != "10.99.0.1" || *p.result.IPs[0].Interface != 2 {
				t.Errorf("IPs: %+v", p.result.IPs)
			}
			if got := p.result.DNS.Nameservers; !slices.Equal(got, []string{"10.43.0.10"}) {
				t.Errorf("nameservers: %v", got)
			}
			var routes []string
			for _, r := range p.result.Routes {
				routes = append(routes, r.Dst.String()+" "+r.GW.String())
			}
			want := []string{"10.43.0.0/16 10.99.0.1", "172.31.0.0/16 10.99.0.9", "0.0.0.0/0 10.99.0.1"}
			if !slices.Equal(routes, want) {
				t.Errorf("routes: %v, want %v", routes, want)
			}

			if got := p.addresses("eth0"); !slices.Equal(got, []string{"10.99.0.2/24"}) {
				t.Errorf("the pod has %v", got)
			}
			if got := n.addresses(n.bridge); !slices.Equal(got, []string{"10.99.0.1/24"}) {
				t.Errorf("the node has %v", got)
			}
			var port netlink.Link
			n.inSwitch(func() (err error) {
				port, err = findLink(portName("pods", "pod-a", "eth0"))
				return errors.Join(err, checkPorts(uplinkName, portName("pods", "pod-a", "eth0")))
			})
			for i, l := range []netlink.Link{n.link(n.bridge), port, p.link("eth0")} {
				attrs, want := l.Attrs(), p.result.Interfaces[i]
				if attrs.MTU != 1400 || attrs.Flags&net.FlagUp == 0 {
					t.Errorf("%s: MTU %d, flags %v", attrs.Name, attrs.MTU, attrs.Flags)
				}
				if want.Name != attrs.Name || want.Mac != attrs.HardwareAddr.String() {
					t.Errorf("the result has %+v for %s %s", want, attrs.Name, attrs.HardwareAddr)
				}
			}
			for i, want := range []string{"", switchPath(n.bridge), p.path} {
				if got := p.result.Interfaces[i].Sandbox; got != want {
					t.Errorf("interface %d is in %q, want %q", i, got, want)
				}
			}
			if err := n.check(p); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if err := n.del(p); err != nil {
				t.Errorf("DEL: %v", err)
			}
			n.wantNothing()
		})
	}
}

func TestTraffic(t *testing.T) {
	n := newNode(t)
	a, b := n.add("pod-a"), n.add("pod-b")
	// An address of the node that is not the bridge's, as a node's own or a Service's is.
	n.in(func() error {
		lo, err := netlinksafe.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		return addAddress(lo, net.IPNet{IP: net.IPv4(172, 30, 0, 1), Mask: net.CIDRMask(32, 32)})
	})
	t.Cleanup(func() {
		n.in(func() error {
			lo, err := netlinksafe.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(172, 30, 0, 1), Mask: net.CIDRMask(32, 32)}})
		})
	})
	for _, c := range []struct {
		name     string
		from, to *netNS
		address  string
	}{
		{"pod to pod", a.netNS, b.netNS, b.ip},
		{"and back", b.netNS, a.netNS, a.ip},
		{"node to pod", n.netNS, a.netNS, a.ip},
		{"pod to the bridge", a.netNS, n.netNS, "10.99.0.1"},
		{"pod to another address of the node", a.netNS, n.netNS, "172.30.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tcp, udp := c.to.serve(c.address)
			if err := c.from.exchange("tcp4", tcp); err != nil {
				t.Errorf("TCP: %v", err)
			}
			if err := c.from.exchange("udp4", udp); err != nil {
				t.Errorf("UDP: %v", err)
			}
		})
	}
}

// Other addresses of the node are on its link to the bridge too, and CHECK misses one that is gone.
func TestNodeAddresses(t *testing.T) {
	n := newNode(t)
	p := n.addTo(newNetNS(t), "pod-a", n.with("nodeAddresses", []string{"172.30.0.2"}))
	if got := n.addresses(n.bridge); !slices.Contains(got, "172.30.0.2/32") {
		t.Errorf("the node's link has %v", got)
	}
	conf := n.with("nodeAddresses", []string{"172.30.0.2", "172.30.0.3"}, "prevResult", p.raw)
	_, err := n.cni("CHECK", p.id, "eth0", p.path, conf)
	if err == nil || !strings.Contains(err.Error(), "172.30.0.3") {
		t.Errorf("CHECK with an address that is not there: %v", err)
	}
}

// The node forwards, and yet a datagram between two pods arrives once.
func TestNoDuplicates(t *testing.T) {
	n := newNode(t)
	a, b := n.add("pod-a"), n.add("pod-b")
	var server net.PacketConn
	b.in(func() (err error) {
		server, err = net.ListenPacket("udp4", net.JoinHostPort(b.ip, "0"))
		return err
	})
	t.Cleanup(func() { server.Close() })
	a.in(func() error {
		c, err := net.Dial("udp4", server.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		for i := range byte(50) {
			if _, err := c.Write([]byte{i}); err != nil {
				return err
			}
			// A copy would come before the next one.
			got := make([]byte, 1)
			server.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, _, err := server.ReadFrom(got); err != nil {
				return err
			}
			if got[0] != i {
				return fmt.Errorf("got datagram %d for the second time", got[0])
			}
		}
		return nil
	})
}

func TestAddAgainReplaces(t *testing.T) {
	n := newNode(t)
	p := n.add("pod-a")
	p = n.addTo(p.netNS, "pod-a", n.conf)
	if err := n.check(p); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if got := n.leases(); !slices.Equal(got, []string{p.ip}) {
		t.Errorf("leases are %v, the pod has %s", got, p.ip)
	}
	if got := p.addresses("eth0"); !slices.Equal(got, []string{p.ip + "/24"}) {
		t.Errorf("the pod has %v", got)
	}
	if got := n.ports(); len(got) != 1 {
		t.Errorf("ports: %v, want one", got)
	}
	tcp, _ := p.serve(p.ip)
	if err := n.exchange("tcp4", tcp); err != nil {
		t.Error(err)
	}
}

// An ADD that was killed between lease and links leaves a lease that would block the next.
func TestAddAfterKilledAdd(t *testing.T) {
	n := newNode(t)
	p := n.add("pod-a")
	n.unplug(p.id)
	p = n.addTo(p.netNS, "pod-a", n.conf)
	if err := n.check(p); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if got := n.leases(); !slices.Equal(got, []string{p.ip}) {
		t.Errorf("leases are %v, the pod has %s", got, p.ip)
	}
}

// What is left of a bridge is completed: after the node's link is gone, and after a restart
// that kept the file of the namespace but not the mount.
func TestAddRepairs(t *testing.T) {
	n := newNode(t)
	first := n.add("pod-a")
	n.in(func() error { return deleteLink(n.bridge) })
	second := n.add("pod-b")
	for _, p := range []*pod{first, second} {
		if err := n.check(p); err != nil {
			t.Error(err)
		}
		tcp, _ := p.serve(p.ip)
		if err := n.exchange("tcp4", tcp); err != nil {
			t.Error(err)
		}
	}
	if err := unix.Unmount(switchPath(n.bridge), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	n.in(func() error { return deleteLink(n.bridge) })
	if err := n.check(n.add("pod-c")); err != nil {
		t.Error(err)
	}
}

func TestAddAtOnce(t *testing.T) {
	const pods = 8
	n := newNode(t)
	errs := make([]error, pods)
	var wg sync.WaitGroup
	for i := range pods {
		netns := newNetNS(t)
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, errs[i] = n.cni("ADD", fmt.Sprint("pod-", i), "eth0", netns.path, n.conf)
		}()
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
	}
	if got := n.ports(); len(got) != pods {
		t.Errorf("ports: %v", got)
	}
	if got := n.addresses(n.bridge); len(got) != 1 {
		t.Errorf("the node has %v", got)
	}
	if got := n.leases(); len(got) != pods {
		t.Errorf("leases: %v", got)
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	t.Run("interface name taken", func(t *testing.T) {
		n, netns := newNode(t), newNetNS(t)
		netns.in(func() error {
			return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}})
		})
		_, err := n.cni("ADD", "pod-a", "eth0", netns.path, n.conf)
		wantError(t, err, types.ErrInternal, `already has an interface "eth0"`)
		n.wantNothing()
		if netns.link("eth0") == nil {
			t.Error("the other's interface was removed")
		}
	})
	t.Run("no addresses left", func(t *testing.T) {
		n, netns := newNode(t), newNetNS(t)
		small := map[string]any{
			"type": ipamType, "subnet": "10.99.0.0/24", "dataDir": n.dir,
			"rangeStart": "10.99.0.2", "rangeEnd": "10.99.0.2",
		}
		conf := n.with("ipam", small)
		first := n.addTo(newNetNS(t), "pod-a", conf)
		_, err := n.cni("ADD", "pod-b", "eth0", netns.path, conf)
		wantError(t, err, types.ErrInternal, "no IP addresses available")
		if netns.link("eth0") != nil {
			t.Error("the pod has an interface")
		}
		if got := n.leases(); !slices.Equal(got, []string{first.ip}) {
			t.Errorf("leases: %v", got)
		}
		if err := n.del(first); err != nil {
			t.Error(err)
		}
		n.wantNothing()
	})
	t.Run("lease without addresses", func(t *testing.T) {
		n, netns := newNode(t), newNetNS(t)
		calls := n.fakeIPAM(`{"cniVersion": "1.1.0", "ips": []}`)
		_, err := n.cni("ADD", "pod-a", "eth0", netns.path, n.conf)
		wantError(t, err, types.ErrInternal, "host-local gave no address")
		if got, err := os.ReadFile(calls); err != nil || string(got) != "ADD\nDEL\n" {
			t.Errorf("host-local was called with %q, %v", got, err)
		}
		n.wantNothing()
		if netns.link("eth0") != nil {
			t.Error("the pod has an interface")
		}
	})
	t.Run("failure in the pod", func(t *testing.T) {
		n, netns := newNode(t), newNetNS(t)
		calls := n.fakeIPAM(`{"cniVersion": "1.1.0", "ips": [{"address": "10.99.0.2/24", "gateway": "10.99.0.1"}], ` +
			`"routes": [{"dst": "10.43.0.0/16", "gw": "fd00::1"}]}`)
		_, err := n.cni("ADD", "pod-a", "eth0", netns.path, n.conf)
		wantError(t, err, types.ErrInternal, "adding route 10.43.0.0/16 via fd00::1")
		if got, err := os.ReadFile(calls); err != nil || string(got) != "ADD\nDEL\n" {
			t.Errorf("host-local was called with %q, %v", got, err)
		}
		n.wantNothing()
		if netns.link("eth0") != nil {
			t.Error("the pod has an interface")
		}
	})
	t.Run("bridge name taken", func(t *testing.T) {
		n, netns := newNode(t), newNetNS(t)
		n.in(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: n.bridge, TxQLen: -1}, PeerName: "peer0"})
		})
		want := fmt.Sprintf("link %q (veth) that is not of this network", n.bridge)
		_, err := n.cni("ADD", "pod-a", "eth0", netns.path, n.conf)
		wantError(t, err, types.ErrInternal, want)
		_, err = n.cni("STATUS", "", "", "", n.conf)
		wantError(t, err, types.ErrPluginNotAvailable, want)
		n.wantNothing()
	})
	t.Run("no such namespace", func(t *testing.T) {
		n := newNode(t)
		_, err := n.cni("ADD", "pod-a", "eth0", "/nonexistent/netns", n.conf)
		wantError(t, err, types.ErrInvalidNetNS, "/nonexistent/netns")
		n.wantNothing()
	})
}

func TestDel(t *testing.T) {
	n := newNode(t)
	stays := n.add("pod-stays")
	for _, c := range []struct {
		name string
		del  func(p *pod) error
	}{
		{"with the namespace", n.del},
		{"twice", func(p *pod) error {
			if err := n.del(p); err != nil {
				return err
			}
			return n.del(p)
		}},
		{"no namespace given", func(p *pod) error {
			_, err := n.cni("DEL", p.id, "eth0", "", n.conf)
			return err
		}},
		{"namespace gone", func(p *pod) error {
			p.Close()
			// Its descriptor's number may be another file's by now.
			p.path = filepath.Join(t.TempDir(), "gone")
			return n.del(p)
		}},
		{"path is no namespace", func(p *pod) error {
			file := filepath.Join(t.TempDir(), "netns")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				return err
			}
			_, err := n.cni("DEL", p.id, "eth0", file, n.conf)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := n.add("pod-a")
			if err := c.del(p); err != nil {
				t.Fatal(err)
			}
			if got := n.leases(); !slices.Equal(got, []string{stays.ip}) {
				t.Errorf("leases: %v", got)
			}
			if got := n.ports(); len(got) != 1 {
				t.Errorf("ports: %v, want the other pod's", got)
			}
		})
	}
	t.Run("never added", func(t *testing.T) {
		if _, err := n.cni("DEL", "pod-unknown", "eth0", "", n.conf); err != nil {
			t.Error(err)
		}
	})
	if err := n.check(stays); err != nil {
		t.Errorf("the other pod: %v", err)
	}
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(n *node, p *pod)
		want []string
	}{
		{"address and route", func(n *node, p *pod) {
			p.raw["ips"].([]any)[0].(map[string]any)["address"] = "10.99.0.77/24"
			p.in(func() error {
				l, err := netlinksafe.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.RouteDel(&netlink.Route{
					LinkIndex: l.Attrs().Index, Gw: net.IPv4(10, 99, 0, 1),
					Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
				})
			})
		}, []string{`"eth0" has no address 10.99.0.77/24`, `"eth0" has no route 0.0.0.0/0 via 10.99.0.1`}},
		{"links", func(n *node, p *pod) { n.unplug(p.id) }, []string{
			fmt.Sprintf("port %q is gone", portName("pods", "pod-a", "eth0")), `the pod's interface "eth0" is gone`,
		}},
		{"bridge", func(n *node, p *pod) {
			n.inSwitch(func() error { return deleteLink(bridgeName) })
		}, []string{"the bridge is gone"}},
		{"membership", func(n *node, p *pod) {
			n.inSwitch(func() error { return errors.Join(deleteLink(bridgeName), ensureBridge(defaultMTU)) })
		}, []string{
			`port "uplink" is not on the bridge`,
			fmt.Sprintf("port %q is not on the bridge", portName("pods", "pod-a", "eth0")),
		}},
		{"the node's link", func(n *node, p *pod) {
			n.in(func() error { return deleteLink(n.bridge) })
		}, []string{"the node's link", `port "uplink" is gone`}},
		{"switch", func(n *node, p *pod) {
			if err := unix.Unmount(switchPath(n.bridge), unix.MNT_DETACH); err != nil {
				n.t.Fatal(err)
			}
		}, []string{"the namespace of bridge"}},
		{"MTU", func(n *node, p *pod) {
			p.in(func() error {
				l, err := netlinksafe.LinkByName("eth0")
				if err != nil {
					return err
				}
				return setMTU(l, 1300)
			})
		}, []string{"has MTU 1300, not 1500"}},
		{"lease", func(n *node, p *pod) {
			if err := os.Remove(filepath.Join(n.dir, "pods", p.ip)); err != nil {
				n.t.Fatal(err)
			}
		}, []string{"host-local"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			p := n.add("pod-a")
			c.harm(n, p)
			err := n.check(p)
			wantError(t, err, types.ErrInternal, c.want...)
		})
	}
	t.Run("no prevResult", func(t *testing.T) {
		n := newNode(t)
		p := n.add("pod-a")
		_, err := n.cni("CHECK", p.id, "eth0", p.path, n.conf)
		wantError(t, err, types.ErrInvalidNetworkConfig, "prevResult: missing")
	})
}

func TestGC(t *testing.T) {
	n := newNode(t)
	other := n.with("name", "other", "ipam", map[string]any{"type": ipamType, "subnet": "10.98.0.0/24", "dataDir": n.dir})
	keep, stale, elsewhere := n.add("pod-keep"), n.add("pod-stale"), n.addTo(newNetNS(t), "pod-other", other)
	leaseOnly := n.add("pod-lease-only")
	n.unplug(leaseOnly.id)

	n.gc(keep)
	if err := n.check(keep); err != nil {
		t.Errorf("the valid attachment: %v", err)
	}
	if stale.link("eth0") != nil {
		t.Error("the stale pod still has its interface")
	}
	if got := n.leases(); !slices.Equal(got, []string{keep.ip}) {
		t.Errorf("leases: %v", got)
	}
	if elsewhere.link("eth0") == nil {
		t.Error("another network's pod on the same bridge lost its interface")
	}
	if _, err := os.Stat(filepath.Join(n.dir, "other", elsewhere.ip)); err != nil {
		t.Errorf("another network's lease: %v", err)
	}
}

func TestStatusAndVersion(t *testing.T) {
	n := newNode(t)
	if _, err := n.cni("STATUS", "", "", "", n.conf); err != nil {
		t.Error(err)
	}
	if got := n.links(); len(got) > 0 {
		t.Errorf("STATUS made %v", got)
	}
	out, err := n.cni("VERSION", "", "", "", map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), `"supportedVersions":["0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("VERSION printed %s", out)
	}
	_, err = n.cni("ADD", "pod-a", "eth0", newNetNS(t).path, n.with("cniVersion", "0.3.1"))
	wantError(t, err, types.ErrIncompatibleCNIVersion)
}

func TestInvalidConfig(t *testing.T) {
	n := newNode(t)
	ipam := func(pairs ...any) map[string]any {
		conf := map[string]any{"type": ipamType, "subnet": "10.99.0.0/24", "dataDir": n.dir}
		for i := 0; i < len(pairs); i += 2 {
			conf[pairs[i].(string)] = pairs[i+1]
		}
		return conf
	}
	for _, c := range []struct {
		name string
		conf map[string]any
		want []string
	}{
		{"all problems at once", n.with(
			"bridge", "a name that is far too long", "mtu", 12, "hairpinMode", true, "bogus", 1,
			"ipam", ipam("type", "dhcp", "bogus", 1),
		), []string{
			"bogus: unknown key, allowed are cniVersion, name, type, bridge, mtu, nodeAddresses, hostPorts, policies, ipam, dns",
			"hairpinMode: gVisor's bridge has no hairpin mode: leave it out",
			`bridge: "a name that is far too long" is not an interface name`,
			"mtu: 12 is not within 576 to 65521 bytes",
			"ipam.bogus: unknown key, allowed are type, subnet",
			`ipam.type: "dhcp" is not supported, allowed is "host-local"`,
		}},
		{"kinds", n.with("bridge", 7, "mtu", "big", "ipam", "10.42.0.0/24"), []string{
			"bridge: 7 is not a string", `mtu: "big" is not a whole number`, `ipam: "10.42.0.0/24" is not an object`,
		}},
		{
			"missing", map[string]any{"cniVersion": "1.1.0", "name": "pods", "type": pluginType},
			[]string{"bridge: missing", "ipam: missing"},
		},
		{"subnet", n.with("ipam", ipam("subnet", "10.99.0.0/32")), []string{"ipam: invalid range set 0"}},
		{
			"IPv6", n.with("ipam", ipam("subnet", "fd00::/64", "routes", []any{map[string]any{"dst": "::/0"}})),
			[]string{"ipam: fd00::/64 is not IPv4", "ipam.routes: ::/0 is not IPv4"},
		},
		{
			"route gateway", n.with("ipam", ipam("routes", []any{map[string]any{"dst": "10.43.0.0/16", "gw": "fd00::1"}})),
			[]string{"10.43.0.0/16: gw fd00::1 is not IPv4"},
		},
		{
			"route options", n.with("ipam", ipam("routes", []any{map[string]any{"dst": "10.43.0.0/16", "priority": 5}})),
			[]string{"10.43.0.0/16: only dst and gw are supported"},
		},
		{"node addresses", n.with("nodeAddresses", []string{"fd00::1"}), []string{"nodeAddresses: fd00::1 is not IPv4"}},
		{
			"capability", n.with("capabilities", map[string]any{"portMappings": true, "ipRanges": true}),
			[]string{"capabilities.portMappings: it takes hostPorts"},
		},
		{"not first in the list", n.with("prevResult", map[string]any{"cniVersion": "1.1.0"}), []string{"must come first"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := n.cni("ADD", "pod-a", "eth0", newNetNS(t).path, c.conf)
			wantError(t, err, types.ErrInvalidNetworkConfig, c.want...)
			if got := n.links(); len(got) > 0 {
				t.Errorf("links: %v", got)
			}
		})
	}
}

// Capabilities that host-local serves arrive in runtimeConfig.
func TestRuntimeConfig(t *testing.T) {
	n := newNode(t)
	ranges := []any{[]any{map[string]any{"subnet": "10.77.0.0/24"}}}
	n.conf = n.with("capabilities", map[string]any{"ipRanges": true},
		"runtimeConfig", map[string]any{"ipRanges": ranges},
		"ipam", map[string]any{"type": ipamType, "dataDir": n.dir})
	if p := n.add("pod-a"); p.ip != "10.77.0.2" {
		t.Errorf("the pod has %s", p.ip)
	}
}

func TestForwardingIsNotSetThroughAnOverlay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ip_forward")
	for content, want := range map[string]string{"1\n": "", "0\n": "write 1 to it before mounting over /proc/sys"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ensureForwarding(file); want == "" && err != nil ||
			want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("with %q: %v", content, err)
		}
		if got, _ := os.ReadFile(file); string(got) != content {
			t.Errorf("%q became %q", content, got)
		}
	}
}
