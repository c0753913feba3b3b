package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pluginDirEnv names the folder with gvisor-bridge and host-local. It is set
// where these tests run inside a sandbox, which has no Go toolchain.
const pluginDirEnv = "GVISOR_BRIDGE_TEST_PLUGINS"

var pluginDir = os.Getenv(pluginDirEnv)

// inSandbox: the cases run in gVisor.
var inSandbox = pluginDir != ""

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces: run them as root")
		os.Exit(1)
	}
	if inSandbox {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "gvisor-bridge-test")
	if err == nil {
		pluginDir = dir
		err = errors.Join(
			goRun("build", "-o", filepath.Join(dir, pluginType), "."),
			goRun("build", "-o", filepath.Join(dir, ipamType), "github.com/containernetworking/plugins/plugins/ipam/host-local"),
		)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// goRun runs the go command; what it builds is static, for sandboxes with another root.
func goRun(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// netNS is a network namespace that lives as long as the test.
type netNS struct {
	ns.NetNS
	path string
	t    *testing.T
}

func newNetNS(t *testing.T) *netNS {
	t.Helper()
	n, err := ns.TempNetNS()
	if err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { n.Close() })
	return &netNS{NetNS: n, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Fd()), t: t}
}

// in runs f in the namespace and fails the test on its error.
func (n *netNS) in(f func() error) {
	n.t.Helper()
	if err := n.Do(func(ns.NetNS) error { return f() }); err != nil {
		n.t.Fatal(err)
	}
}

// link returns nil when there is none of this name.
func (n *netNS) link(name string) (link netlink.Link) {
	n.t.Helper()
	n.in(func() (err error) {
		link, err = findLink(name)
		return err
	})
	return link
}

// addresses lists a link's IPv4 addresses, such as 10.42.0.2/24.
func (n *netNS) addresses(name string) (all []string) {
	n.t.Helper()
	n.in(func() error {
		link, err := netlinksafe.LinkByName(name)
		if err != nil {
			return err
		}
		have, err := netlinksafe.AddrList(link, netlink.FAMILY_V4)
		for _, a := range have {
			all = append(all, a.IPNet.String())
		}
		return err
	})
	return all
}

// links lists the names of all links but the loopback.
func (n *netNS) links() (all []string) {
	n.t.Helper()
	n.in(func() error {
		links, err := netlinksafe.LinkList()
		for _, l := range links {
			if l.Attrs().Name != "lo" {
				all = append(all, l.Attrs().Name)
			}
		}
		return err
	})
	return all
}

// serve answers TCP and UDP with what it got, on one port of address, until the test ends.
func (n *netNS) serve(address string) (tcp, udp string) {
	n.t.Helper()
	n.in(func() error {
		l, err := net.Listen("tcp4", net.JoinHostPort(address, "0"))
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					io.Copy(c, c)
					c.Close()
				}()
			}
		}()
		p, err := net.ListenPacket("udp4", net.JoinHostPort(address, "0"))
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { p.Close() })
		go func() {
			buf := make([]byte, 1500)
			for {
				size, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				p.WriteTo(buf[:size], from)
			}
		}()
		tcp, udp = l.Addr().String(), p.LocalAddr().String()
		return nil
	})
	return tcp, udp
}

// exchange sends a message and wants it back. The deadline only ends a broken run.
func (n *netNS) exchange(network, address string) error {
	return n.Do(func(ns.NetNS) error {
		c, err := net.DialTimeout(network, address, 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		sent := []byte("hello " + address)
		if _, err := c.Write(sent); err != nil {
			return err
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !bytes.Equal(got, sent) {
			return fmt.Errorf("sent %q, got %q", sent, got)
		}
		return nil
	})
}

// node is where the plugin runs: a namespace that has a bridge to be made for it, and a folder for leases.
type node struct {
	*netNS
	bridge  string
	conf    map[string]any
	dir     string
	plugins string // CNI_PATH
}

var bridges atomic.Int32

// newNode gives the network "pods" with addresses 10.99.0.2 to 10.99.0.254.
func newNode(t *testing.T) *node {
	t.Helper()
	var n *netNS
	if inSandbox {
		// In gVisor ip_forward is always that of the first namespace.
		self, err := ns.GetCurrentNS()
		if err != nil {
			t.Fatal(err)
		}
		n = &netNS{NetNS: self, t: t}
		t.Cleanup(func() {
			for _, name := range n.links() {
				n.in(func() error { return deleteLink(name) })
			}
			self.Close()
		})
	} else {
		n = newNetNS(t)
	}
	// Switches are found by name, whatever namespace the node is in.
	bridge := fmt.Sprintf("gbt%d-%d", os.Getpid()%1e5, bridges.Add(1))
	t.Cleanup(func() {
		unix.Unmount(switchPath(bridge), unix.MNT_DETACH)
		os.Remove(switchPath(bridge))
		os.Remove(filepath.Join("/run", pluginType+"-"+bridge+".lock"))
	})
	dir := t.TempDir()
	return &node{netNS: n, bridge: bridge, dir: dir, plugins: pluginDir, conf: map[string]any{
		"cniVersion": "1.1.0",
		"name":       "pods",
		"type":       pluginType,
		"bridge":     bridge,
		"ipam":       map[string]any{"type": ipamType, "subnet": "10.99.0.0/24", "dataDir": dir},
	}}
}

// ports lists the pods' ports.
func (n *node) ports() (all []string) {
	n.t.Helper()
	n.inSwitch(func() error {
		links, err := netlinksafe.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, portPrefix) {
				all = append(all, l.Attrs().Name)
			}
		}
		return err
	})
	return all
}

func (n *node) inSwitch(f func() error) {
	n.t.Helper()
	if err := inSwitch(n.bridge, f); err != nil {
		n.t.Fatal(err)
	}
}

// unplug removes a pod's port, and with it the pod's interface.
func (n *node) unplug(id string) {
	n.t.Helper()
	if err := deletePort(n.bridge, portName("pods", id, "eth0")); err != nil {
		n.t.Fatal(err)
	}
}

// leases lists the leased addresses.
func (n *node) leases() []string {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.dir, "pods", "10.*"))
	if err != nil {
		n.t.Fatal(err)
	}
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	return files
}

// with returns the configuration with some keys changed.
func (n *node) with(pairs ...any) map[string]any {
	conf := map[string]any{}
	for k, v := range n.conf {
		conf[k] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		conf[pairs[i].(string)] = pairs[i+1]
	}
	return conf
}

// fakeIPAM puts a host-local in place that answers every ADD with result, and
// returns the file where it notes the commands it got.
func (n *node) fakeIPAM(result string) (calls string) {
	n.t.Helper()
	n.plugins = n.t.TempDir()
	calls = filepath.Join(n.plugins, "calls")
	script := fmt.Sprintf("#!/bin/sh\necho $CNI_COMMAND >>%s\n[ $CNI_COMMAND != ADD ] || echo '%s'\n", calls, result)
	if err := os.WriteFile(filepath.Join(n.plugins, ipamType), []byte(script), 0o700); err != nil {
		n.t.Fatal(err)
	}
	return calls
}

// cni runs the plugin as a runtime does. The error is a *types.Error, as printed.
func (n *node) cni(command, containerID, ifName, netns string, conf any) ([]byte, error) {
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(pluginDir, pluginType))
	cmd.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + containerID, "CNI_IFNAME=" + ifName,
		"CNI_NETNS=" + netns, "CNI_PATH=" + n.plugins,
	}
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// The child inherits the namespace of the thread that starts it.
	err = n.Do(func(ns.NetNS) error { return cmd.Run() })
	if err == nil {
		return stdout.Bytes(), nil
	}
	var printed types.Error
	if json.Unmarshal(stdout.Bytes(), &printed) != nil || printed.Msg == "" {
		return nil, fmt.Errorf("%s: %w: no CNI error on stdout: %q, stderr %q",
			command, err, stdout.String(), stderr.String())
	}
	return nil, &printed
}

// pod is an attached namespace.
type pod struct {
	*netNS
	id     string
	raw    map[string]any // the result as printed
	result *current.Result
	ip     string
}

// add attaches a new namespace as eth0.
func (n *node) add(id string) *pod {
	n.t.Helper()
	return n.addTo(newNetNS(n.t), id, n.conf)
}

func (n *node) addTo(netns *netNS, id string, conf map[string]any) *pod {
	n.t.Helper()
	out, err := n.cni("ADD", id, "eth0", netns.path, conf)
	if err != nil {
		n.t.Fatalf("ADD: %v", err)
	}
	p := &pod{netNS: netns, id: id}
	if err := json.Unmarshal(out, &p.raw); err != nil {
		n.t.Fatalf("ADD printed %q: %v", out, err)
	}
	parsed, err := create.CreateFromBytes(out)
	if err == nil {
		p.result, err = current.NewResultFromResult(parsed)
	}
	if err != nil {
		n.t.Fatalf("ADD printed %q: %v", out, err)
	}
	p.ip = p.result.IPs[0].Address.IP.String()
	return p
}

func (n *node) del(p *pod) error {
	_, err := n.cni("DEL", p.id, "eth0", p.path, n.with("prevResult", p.raw))
	return err
}

// gc has the plugin remove what is not of a pod.
func (n *node) gc(of *pod) {
	n.t.Helper()
	attachments := []any{map[string]any{"containerID": of.id, "ifname": "eth0"}}
	conf := n.with("cni.dev/valid-attachments", attachments, "cni.dev/attachments", attachments)
	if _, err := n.cni("GC", "", "", "", conf); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) check(p *pod) error {
	_, err := n.cni("CHECK", p.id, "eth0", p.path, n.with("prevResult", p.raw))
	return err
}

// wantNothing fails unless neither ports nor leases are left.
func (n *node) wantNothing() {
	n.t.Helper()
	if left := n.ports(); len(left) > 0 {
		n.t.Errorf("ports are left: %v", left)
	}
	if left := n.leases(); len(left) > 0 {
		n.t.Errorf("leases are left: %v", left)
	}
}

// wantError fails unless err is a CNI error with this code whose text has all parts.
func wantError(t *testing.T, err error, code uint, parts ...string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a CNI error", err)
	}
	if e.Code != code {
		t.Errorf("code is %d, want %d: %v", e.Code, code, e)
	}
	for _, part := range parts {
		if !strings.Contains(e.Error(), part) {
			t.Errorf("error lacks %q: %v", part, e)
		}
	}
}
