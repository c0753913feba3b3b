package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// serviceProxy answers as the service proxy does, which has the port on the bridge by then, or says what is wrong.
func serviceProxy(t *testing.T, socket string, place func(port string) error) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			port, _ := bufio.NewReader(conn).ReadString('\n')
			answer := ""
			if err := place(strings.TrimSpace(port)); err != nil {
				answer = err.Error()
			}
			fmt.Fprintln(conn, answer)
			conn.Close()
		}
	}()
}

func linksTold(folder string) (ports []string) {
	entries, _ := os.ReadDir(filepath.Join(folder, "links"))
	for _, entry := range entries {
		ports = append(ports, entry.Name())
	}
	return ports
}

// A pod's port is nowhere until the service proxy has put it in its place, and what is told of it ends with it.
func TestPodLinks(t *testing.T) {
	n := newNode(t)
	folder := t.TempDir()
	n.conf = n.with("policies", folder)
	var before []string
	serviceProxy(t, filepath.Join(folder, "socket"), func(port string) error {
		content, err := os.ReadFile(filepath.Join(folder, "links", port))
		if err != nil {
			return err
		}
		before = append(before, string(content))
		return inSwitch(n.bridge, func() error {
			link, err := findLink(port)
			if err == nil && link.Attrs().MasterIndex != 0 {
				err = fmt.Errorf("it is on the bridge already")
			}
			if err != nil {
				return err
			}
			return plugIn(port, defaultMTU)
		})
	})
	pod, other := n.add("pod"), n.add("other")
	mac := pod.result.Interfaces[2].Mac
	gateway := pod.result.IPs[0].Gateway
	want := fmt.Sprintf(`{"namespace":"","name":"","address":%q,"gateway":%q,"mac":%q}`, pod.ip, gateway, mac)
	if before[0] != want {
		t.Errorf("told is %s, not %s", before[0], want)
	}
	_, udp := other.serve(other.ip)
	if err := pod.exchange("udp", udp); err != nil {
		t.Error(err)
	}
	if err := n.check(pod); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	n.gc(pod)
	if got, want := linksTold(folder), []string{portName("pods", "pod", "eth0")}; !slices.Equal(got, want) {
		t.Errorf("after a GC told of are %v, not %v", got, want)
	}
	for range 2 {
		if err := n.del(pod); err != nil {
			t.Fatal(err)
		}
	}
	if got := linksTold(folder); len(got) > 0 {
		t.Errorf("in the end told of are %v", got)
	}
}

// A pod that the service proxy does not take does not start.
func TestPodLinkThatIsRefused(t *testing.T) {
	n := newNode(t)
	folder := t.TempDir()
	n.conf = n.with("policies", folder)
	serviceProxy(t, filepath.Join(folder, "socket"), func(string) error { return fmt.Errorf("no room") })
	_, err := n.cni("ADD", "pod", "eth0", newNetNS(t).path, n.conf)
	wantError(t, err, 999, "the service proxy, which enforces network policies, does not take the pod: no room")
	n.wantNothing()
	if got := linksTold(folder); len(got) > 0 {
		t.Errorf("told of are %v", got)
	}
}

// While there are network policies ports are in another namespace.
func TestPortsOnTheFilter(t *testing.T) {
	n := newNode(t)
	filtered, err := newSwitch(filterName(n.bridge))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		filtered.Close()
		unix.Unmount(switchPath(filterName(n.bridge)), unix.MNT_DETACH)
		os.Remove(switchPath(filterName(n.bridge)))
	})
	move := func(port string) {
		n.inSwitch(func() error {
			link, err := netlinksafe.LinkByName(port)
			if err != nil {
				return err
			}
			return netlink.LinkSetNsFd(link, int(filtered.Fd()))
		})
	}
	pod, stale := n.add("pod"), n.add("stale")
	for _, id := range []string{"pod", "stale"} {
		move(portName("pods", id, "eth0"))
	}
	wantError(t, n.check(pod), 999, "is gone")
	inFilter := func(f func() error) {
		t.Helper()
		if err := filtered.Do(func(ns.NetNS) error { return f() }); err != nil {
			t.Fatal(err)
		}
	}
	inFilter(func() error {
		if err := ensureBridge(defaultMTU); err != nil {
			return err
		}
		return plugIn(portName("pods", "pod", "eth0"), defaultMTU)
	})
	if err := n.check(pod); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	n.gc(pod)
	is := func(id string) (there bool) {
		inFilter(func() error {
			link, err := findLink(portName("pods", id, "eth0"))
			there = link != nil
			return err
		})
		return there
	}
	if !is("pod") || is("stale") {
		t.Errorf("after a GC there are pod: %v, stale: %v", is("pod"), is("stale"))
	}
	if err := n.del(pod); err != nil || is("pod") {
		t.Errorf("after a DEL the port is there: %v, %v", is("pod"), err)
	}
	if err := n.del(stale); err != nil {
		t.Error(err)
	}
}
