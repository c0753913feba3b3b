package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"gvisor-k3s/node/server/service-proxy/filter"
	"gvisor-k3s/node/server/service-proxy/policy"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestPortNetwork moves real links: two pods that talk over the bridge, then over the filter, then over the bridge.
func TestPortNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
	n := portNetwork{fmt.Sprintf("np%d", os.Getpid())}
	namespace := func(path string) {
		if err := makeNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, path := range []string{n.switchPath(), n.filterPath(), podPath(n, "a"), podPath(n, "b")} {
			unix.Unmount(path, unix.MNT_DETACH)
			os.Remove(path)
		}
	})
	if err := os.MkdirAll(namespaces, 0o755); err != nil {
		t.Fatal(err)
	}
	namespace(n.switchPath())
	if err := inNamespace(n.switchPath(), func() error { return ensureBridge(mainBridge, 9000) }); err != nil {
		t.Fatal(err)
	}
	addresses := map[string]string{"vetha0123456789": "10.42.0.2", "vethb0123456789": "10.42.0.3"}
	hardware := map[string]net.HardwareAddr{}
	for port, address := range addresses {
		path := podPath(n, port[4:5])
		namespace(path)
		mac, err := pluggedOut(n, port, path, address)
		if err != nil {
			t.Fatal(err)
		}
		hardware[port] = mac
		if err := n.toBridge(port); err != nil {
			t.Fatal(err)
		}
	}
	talk := func(what string, want bool) {
		t.Helper()
		if err := talks(podPath(n, "a"), podPath(n, "b"), "10.42.0.3:8080", want); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	talk("over the bridge", true)

	for round := range 2 {
		var closed atomic.Bool
		closed.Store(true)
		tap, mtu, err := n.openFilter()
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "the bridge's MTU", mtu, 9000)
		f := filter.New(tap, func(policy.Flow) bool { return !closed.Load() },
			func(netip.Addr) bool { return true })
		var taps []*os.File
		for port, address := range addresses {
			link, err := n.toFilter(port, mtu)
			if err != nil {
				t.Fatal(err)
			}
			taps = append(taps, link)
			f.Add(&filter.Pod{Address: netip.MustParseAddr(address), MAC: hardware[port], Link: link})
		}
		talk("over a filter that is closed", false)
		closed.Store(false)
		talk("over one that is open", true)
		for _, one := range append(taps, tap) {
			one.Close()
		}
		talk("over one that is gone", false)
		if round == 0 {
			continue // the process after this one takes them up
		}
		for port := range addresses {
			if err := n.toBridge(port); err != nil {
				t.Fatal(err)
			}
		}
	}
	talk("over the bridge again", true)

	if _, err := n.toFilter("vetha0123456789", 9000); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.prune(nil), inNamespace(n.filterPath(), func() error {
		link, err := findLink(bridgeOf("vetha0123456789"))
		expect(t, "a bridge of a port that is gone", link, nil)
		return err
	})); err != nil {
		t.Error(err)
	}
}

func podPath(n portNetwork, pod string) string {
	return filepath.Join(namespaces, n.bridge+"-pod-"+pod)
}

// pluggedOut makes a pod's link as the CNI plugin does, whose port is up and on no bridge.
func pluggedOut(n portNetwork, port, pod, address string) (mac net.HardwareAddr, err error) {
	there, err := os.Open(pod)
	if err != nil {
		return nil, err
	}
	defer there.Close()
	err = inNamespace(n.switchPath(), func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = port, 9000
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(there.Fd())),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	err = inNamespace(pod, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		mac = link.Attrs().HardwareAddr
		parsed, err := netlink.ParseAddr(address + "/24")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, parsed), netlink.LinkSetMTU(link, 9000), netlink.LinkSetUp(link))
	})
	return mac, err
}

// talks tries a connection with more than a packet in it; one that is not wanted is given up after a moment.
func talks(from, to, address string, want bool) error {
	var listener net.Listener
	err := inNamespace(to, func() (err error) {
		listener, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.Write(make([]byte, 100_000))
	}()
	patience := 500 * time.Millisecond
	if want {
		patience = 20 * time.Second
	}
	var conn net.Conn
	err = inNamespace(from, func() (err error) {
		conn, err = net.DialTimeout("tcp4", address, patience)
		return err
	})
	if !want {
		if err == nil {
			conn.Close()
			return errors.New("it connects")
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if read, err := io.Copy(io.Discard, conn); read != 100_000 {
		return fmt.Errorf("read %d bytes: %w", read, err)
	}
	return nil
}
