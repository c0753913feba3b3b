package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pod tells of a pod's host port, as the CNI plugin does; where to is not given, the pod has gone.
func (c *cluster) pod(name, hostIP string, port int, to *netip.AddrPort, protocol string) {
	c.Helper()
	file := filepath.Join(string(c.hostPorts), name)
	if to == nil {
		if err := os.Remove(file); err != nil {
			c.Fatal(err)
		}
	} else {
		content := fmt.Sprintf(`{"namespace":"default","name":%q,"uid":"uid-%s","address":%q,"ports":[{"hostPort":%d,`+
			`"containerPort":%d,"protocol":%q,"hostIP":%q}]}`, name, name, to.Addr(), port, to.Port(), protocol, hostIP)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			c.Fatal(err)
		}
	}
	c.sync()
}

func TestHostPorts(t *testing.T) {
	c := newCluster(t)
	a, b := tcpServer(t, "a"), udpServer(t, "b")
	c.pod("a", "", 30901, &a, "tcp")
	c.pod("b", "0.0.0.0", 30901, &b, "UDP")
	expect(t, "by TCP", ask(t, dial(t, "tcp4", nodeIP+":30901"), "?"), "a")
	expect(t, "by UDP", ask(t, dial(t, "udp4", nodeIP+":30901"), "?"), "b 1")
	// While a file is written nothing is lost.
	if err := os.WriteFile(filepath.Join(string(c.hostPorts), ".half"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.pod("a", "", 30901, nil, "")
	refused(t, nodeIP+":30901")
	expect(t, "the other stays", ask(t, dial(t, "udp4", nodeIP+":30901"), "?"), "b 1")

	const other = "127.42.0.9"
	c.pod("a", other, 30902, &a, "TCP")
	expect(t, "at an address", ask(t, dial(t, "tcp4", other+":30902"), "?"), "a")
	refused(t, nodeIP+":30902")
}

func TestHostPortThatIsTaken(t *testing.T) {
	c := newCluster(t)
	a, s := tcpServer(t, "a"), tcpServer(t, "s")
	c.service("s", spec(func(s *v1.ServiceSpec) { s.Ports[0].NodePort = 30903 }))
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{s, "ready"})
	c.pod("a", "", 30903, &a, "tcp")
	c.sync()
	expect(t, "the Service's", ask(t, dial(t, "tcp4", nodeIP+":30903"), "?"), "s")
	expect(t, "the event", <-c.events.Events,
		"Warning FailedToListen "+nodeIP+":30903/TCP cannot be listened on: the Service default/s has it")
	c.service("s", nil)
	expect(t, "once it is free", ask(t, dial(t, "tcp4", nodeIP+":30903"), "?"), "a")
	expect(t, "more events", len(c.events.Events), 0)

	listener, err := net.Listen("tcp4", nodeIP+":30904")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c.pod("b", "", 30904, &a, "tcp")
	event := <-c.events.Events
	expect(t, event, strings.Contains(event, "30904/TCP cannot be listened on: listen tcp4 "), true)
}

func TestWatchesFolders(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "made", "later")
	changed := make(chan bool, 100)
	if err := watchFolder(t.Context(), folder, func() { changed <- true }); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "pod"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Error("a new pod is not seen")
	}
}

// A load balancer takes connections from where it is told to; the Service's own address takes everybody's.
func TestLoadBalancer(t *testing.T) {
	c := newCluster(t)
	a := tcpServer(t, "a")
	mode := v1.LoadBalancerIPModeVIP
	balancer := func(sources ...string) *v1.Service {
		s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Spec: *spec()}
		s.Spec.Type, s.Spec.LoadBalancerSourceRanges = v1.ServiceTypeLoadBalancer, sources
		s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: nodeIP, IPMode: &mode}}
		return s
	}
	open := balancer()
	c.serviceChanged(nil, open)
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{a, "ready"})
	expect(t, "everybody", ask(t, dial(t, "tcp4", nodeIP+":8000"), "?"), "a")
	expect(t, "addresses that the node has already", c.book[netip.MustParseAddr(nodeIP)], false)
	limited := balancer("127.0.0.0/24", "127.50.0.0/16")
	c.serviceChanged(open, limited)
	c.sync()
	from := func(source string) (string, error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 10 * time.Second}
		conn, err := dialer.Dial("tcp4", nodeIP+":8000")
		if err != nil {
			return "", err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(conn, "?")
		buffer := make([]byte, 10)
		n, err := conn.Read(buffer)
		return string(buffer[:n]), err
	}
	for source, taken := range map[string]bool{"127.0.0.1": true, "127.50.1.1": true, "127.51.0.1": false} {
		if got, err := from(source); (got == "a" && err == nil) != taken {
			t.Errorf("from %s: %q, %v", source, got, err)
		}
	}
	expect(t, "the Service's own address", ask(t, dial(t, "tcp4", clusterIP+":8000"), "?"), "a")
}
