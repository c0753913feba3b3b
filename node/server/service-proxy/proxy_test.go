package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/events"
)

// All of 127.0.0.0/8 is the machine's own, so Services have addresses there, and nothing has to be added.
const clusterIP, nodeIP = "127.43.0.7", "127.42.0.1"

type book map[netip.Addr]bool

func (b book) keep(wanted map[netip.Addr]bool) error {
	clear(b)
	maps.Copy(b, wanted)
	return nil
}

type cluster struct {
	*testing.T
	*proxy
	book     book
	events   *events.FakeRecorder
	services map[string]*v1.Service
	slices   map[string]*discoveryv1.EndpointSlice
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{
		T: t, book: book{}, events: events.NewFakeRecorder(10), services: map[string]*v1.Service{},
		slices: map[string]*discoveryv1.EndpointSlice{},
	}
	c.proxy = newProxy("node", []netip.Addr{netip.MustParseAddr(nodeIP)}, hostPorts(t.TempDir()),
		c.book, c.events)
	t.Cleanup(func() {
		for _, now := range c.served {
			now.server.Close()
		}
	})
	return c
}

// service has a Service as described; nil takes it away.
func (c *cluster) service(name string, spec *v1.ServiceSpec) {
	before := c.services[name]
	var after *v1.Service
	if spec != nil {
		after = &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: *spec}
	}
	c.serviceChanged(before, after)
	c.services[name] = after
	c.sync()
}

// endpoint is a server and what is said of it.
type endpoint struct {
	address netip.AddrPort
	state   string // ready, terminating (and still serving), unready
}

func (c *cluster) endpoints(service, port string, protocol v1.Protocol, all ...endpoint) {
	if old := c.slices[service]; old != nil {
		c.sliceChanged(old, true)
	}
	// Each endpoint has a slice of its own here, because servers on one machine differ in their ports.
	for i, e := range all {
		number, node := int32(e.address.Port()), "node"
		ready, serving, terminating := e.state == "ready", e.state != "unready", e.state == "terminating"
		slice := sliceOf(service, i)
		slice.Ports = []discoveryv1.EndpointPort{{Name: &port, Port: &number, Protocol: &protocol}}
		slice.Endpoints = []discoveryv1.Endpoint{{
			Addresses: []string{e.address.Addr().String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		}}
		c.sliceChanged(slice, false)
	}
	for i := len(all); i < 10; i++ {
		c.sliceChanged(sliceOf(service, i), true)
	}
	c.sync()
}

// sliceOf is the nth of a Service's slices, with nothing in it.
func sliceOf(service string, n int) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprint(service, n),
			Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
}

func spec(change ...func(*v1.ServiceSpec)) *v1.ServiceSpec {
	port := v1.ServicePort{Name: "p", Protocol: v1.ProtocolTCP, Port: 8000, TargetPort: intstr.FromInt32(80)}
	s := &v1.ServiceSpec{ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, Ports: []v1.ServicePort{port}}
	for _, f := range change {
		f(s)
	}
	return s
}

func udp(s *v1.ServiceSpec) { s.Ports[0].Protocol = v1.ProtocolUDP }

// tcpServer answers each line with its name, until the connection ends.
func tcpServer(t *testing.T, name string) netip.AddrPort {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
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
			go func() {
				defer conn.Close()
				buffer := make([]byte, 100)
				for {
					n, err := conn.Read(buffer)
					if err == io.EOF {
						fmt.Fprint(conn, "bye")
						return
					}
					if err != nil {
						return
					}
					if strings.HasPrefix(string(buffer[:n]), "crash") {
						conn.(*net.TCPConn).SetLinger(0)
						return
					}
					fmt.Fprint(conn, name)
				}
			}()
		}
	}()
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

func udpServer(t *testing.T, name string) netip.AddrPort {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 65535)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			conn.WriteTo([]byte(name+" "+fmt.Sprint(n)), from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func dial(t *testing.T, network, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

func ask(t *testing.T, conn net.Conn, question string) string {
	t.Helper()
	if _, err := fmt.Fprint(conn, question); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}

// askers tells who answers new connections, of so many that chance leaves nobody out.
func askers(t *testing.T, network, address string) string {
	t.Helper()
	names := map[string]bool{}
	for range 40 {
		conn := dial(t, network, address)
		names[ask(t, conn, "?")] = true
		conn.Close()
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), ",")
}

func expect[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func refused(t *testing.T, address string) {
	t.Helper()
	if conn, err := net.Dial("tcp4", address); err == nil {
		conn.Close()
		t.Errorf("%s accepts a connection", address)
	} else if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s: %v", address, err)
	}
}

func TestEndpointsByTheirState(t *testing.T) {
	c := newCluster(t)
	a, b, d := tcpServer(t, "a"), tcpServer(t, "b"), tcpServer(t, "d")
	c.service("s", spec())
	expect(t, "the node has the address of a Service without endpoints", c.book[netip.MustParseAddr(clusterIP)], true)
	refused(t, clusterIP+":8000")
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{a, "ready"}, endpoint{b, "ready"}, endpoint{d, "unready"})
	expect(t, "ready ones", askers(t, "tcp4", clusterIP+":8000"), "a,b")
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{a, "terminating"}, endpoint{b, "ready"})
	expect(t, "a ready one beside one that ends", askers(t, "tcp4", clusterIP+":8000"), "b")
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{a, "terminating"}, endpoint{d, "unready"})
	expect(t, "one that ends and still serves, where there is no other", askers(t, "tcp4", clusterIP+":8000"), "a")
	c.endpoints("s", "p", v1.ProtocolTCP)
	refused(t, clusterIP+":8000")
	c.service("s", nil)
	expect(t, "addresses of no Service", len(c.book), 0)
}

func TestAConnectionOutlivesChanges(t *testing.T) {
	c := newCluster(t)
	a, b := tcpServer(t, "a"), tcpServer(t, "b")
	c.service("s", spec())
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{a, "ready"})
	conn := dial(t, "tcp4", clusterIP+":8000")
	expect(t, "before", ask(t, conn, "?"), "a")
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{a, "terminating"}, endpoint{b, "ready"})
	expect(t, "beside another", ask(t, conn, "?"), "a")
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{b, "ready"})
	expect(t, "no endpoint any more", ask(t, conn, "?"), "a")
	expect(t, "a new one", askers(t, "tcp4", clusterIP+":8000"), "b")
}

func TestEndsArePassedOn(t *testing.T) {
	c := newCluster(t)
	c.service("s", spec())
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{tcpServer(t, "a"), "ready"})
	conn := dial(t, "tcp4", clusterIP+":8000")
	expect(t, "an answer", ask(t, conn, "?"), "a")
	conn.(*net.TCPConn).CloseWrite()
	rest, err := io.ReadAll(conn)
	expect(t, "after the client has said all", string(rest), "bye")
	if err != nil {
		t.Error(err)
	}
	conn = dial(t, "tcp4", clusterIP+":8000")
	fmt.Fprint(conn, "crash")
	if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection that broke off ended with %v", err)
	}
}

func TestAnEndpointThatDoesNotAccept(t *testing.T) {
	c := newCluster(t)
	listener, _ := net.Listen("tcp4", "127.0.0.1:0")
	dead := listener.Addr().(*net.TCPAddr).AddrPort()
	listener.Close()
	c.service("s", spec())
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{dead, "ready"}, endpoint{tcpServer(t, "a"), "ready"})
	expect(t, "the other one", askers(t, "tcp4", clusterIP+":8000"), "a")
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{dead, "ready"})
	// The reset can be there before the dialer has looked whether it is connected.
	conn, err := net.Dial("tcp4", clusterIP+":8000")
	if err == nil {
		_, err = io.ReadAll(conn)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection for which nobody is there ended with %v", err)
	}
}

func TestSessionAffinity(t *testing.T) {
	c := newCluster(t)
	all := []endpoint{{tcpServer(t, "a"), "ready"}, {tcpServer(t, "b"), "ready"}, {tcpServer(t, "c"), "ready"}}
	seconds := int32(3600)
	c.service("s", spec(func(s *v1.ServiceSpec) {
		s.SessionAffinity = v1.ServiceAffinityClientIP
		s.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: &seconds}}
		s.Type, s.Ports[0].NodePort = v1.ServiceTypeNodePort, 30807
	}))
	c.endpoints("s", "p", v1.ProtocolTCP, all...)
	first := askers(t, "tcp4", clusterIP+":8000")
	expect(t, "one only", len(first), 1)
	expect(t, "the node port's is the same", askers(t, "tcp4", nodeIP+":30807"), first)
	rest := slices.DeleteFunc(all, func(e endpoint) bool { return e == all[first[0]-'a'] })
	c.endpoints("s", "p", v1.ProtocolTCP, rest...)
	if second := askers(t, "tcp4", clusterIP+":8000"); len(second) != 1 || second == first {
		t.Errorf("after %s is gone, %s answer", first, second)
	}
	c.service("s", spec())
	expect(t, "without affinity", len(askers(t, "tcp4", clusterIP+":8000")), len("a,b"))
}

func TestNodePortThatIsTaken(t *testing.T) {
	c := newCluster(t)
	thief, err := net.Listen("tcp4", nodeIP+":30808")
	if err != nil {
		t.Fatal(err)
	}
	c.service("s", spec(func(s *v1.ServiceSpec) { s.Type, s.Ports[0].NodePort = v1.ServiceTypeNodePort, 30808 }))
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{tcpServer(t, "a"), "ready"})
	expect(t, "the Service's own address all the same", askers(t, "tcp4", clusterIP+":8000"), "a")
	expect(t, "it is tried again", c.sync(), retry)
	expect(t, "the event, once", <-c.events.Events, "Warning FailedToListen "+nodeIP+":30808/TCP cannot be listened on: "+
		"listen tcp4 "+nodeIP+":30808: bind: address already in use; end the program that has it, or choose another port")
	expect(t, "events", len(c.events.Events), 0)
	thief.Close()
	expect(t, "nothing to try again", c.sync(), 0)
	expect(t, "the node port", askers(t, "tcp4", nodeIP+":30808"), "a")
}

func TestPortsGoFromOneServiceToAnother(t *testing.T) {
	c := newCluster(t)
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{tcpServer(t, "a"), "ready"})
	c.endpoints("t", "p", v1.ProtocolTCP, endpoint{tcpServer(t, "b"), "ready"})
	c.service("s", spec())
	c.serviceChanged(c.services["s"], nil)
	c.service("t", spec())
	expect(t, "the new owner", askers(t, "tcp4", clusterIP+":8000"), "b")
	c.service("t", spec(func(s *v1.ServiceSpec) { s.Ports[0].Port = 8001 }))
	refused(t, clusterIP+":8000")
	expect(t, "the new port", askers(t, "tcp4", clusterIP+":8001"), "b")
}

func TestUDP(t *testing.T) {
	c := newCluster(t)
	a, b := udpServer(t, "a"), udpServer(t, "b")
	c.service("s", spec(udp))
	c.endpoints("s", "p", v1.ProtocolUDP, endpoint{a, "ready"}, endpoint{b, "ready"})
	expect(t, "who answers", askers(t, "udp4", clusterIP+":8000"), "a 1,b 1")
	conn := dial(t, "udp4", clusterIP+":8000") // connected: an answer from another address would not be taken
	first := ask(t, conn, "?")
	for range 20 {
		expect(t, "a flow stays", ask(t, conn, "?"), first)
	}
	expect(t, "the largest datagram", ask(t, conn, strings.Repeat("x", 65507)), first[:2]+"65507")
	other := map[byte]endpoint{'a': {b, "ready"}, 'b': {a, "ready"}}[first[0]]
	c.endpoints("s", "p", v1.ProtocolUDP, other)
	if second := ask(t, conn, "?"); second == first {
		t.Errorf("%s answers, which is gone", second)
	}
	c.endpoints("s", "p", v1.ProtocolUDP)
	fmt.Fprint(conn, "?")
	if _, err := conn.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without endpoints: %v", err)
	}
}

func TestLocalTrafficPolicy(t *testing.T) {
	c := newCluster(t)
	local := v1.ServiceInternalTrafficPolicyLocal
	a := tcpServer(t, "a")
	c.service("s", spec(func(s *v1.ServiceSpec) { s.InternalTrafficPolicy = &local }))
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{a, "ready"})
	expect(t, "an endpoint on this node", askers(t, "tcp4", clusterIP+":8000"), "a")
}

// A client gets only what network policies let it have; what is open already ends with the permission.
func TestPolicies(t *testing.T) {
	c := newCluster(t)
	a, b := tcpServer(t, "a"), tcpServer(t, "b")
	var denied atomic.Pointer[netip.AddrPort]
	denied.Store(&a)
	c.allows = func(_ v1.Protocol, client netip.Addr, endpoint netip.AddrPort) bool {
		return client != netip.MustParseAddr("127.0.0.1") || endpoint != *denied.Load()
	}
	c.service("s", spec())
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{a, "ready"}, endpoint{b, "ready"})
	var conns []net.Conn
	for range 20 {
		conn := dial(t, "tcp4", clusterIP+":8000")
		expect(t, "the endpoint that is allowed", ask(t, conn, "?"), "b")
		conns = append(conns, conn)
	}
	denied.Store(&b)
	c.sync()
	for _, conn := range conns {
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a connection that is allowed no longer: %v", err)
		}
	}
	expect(t, "the other endpoint", ask(t, dial(t, "tcp4", clusterIP+":8000"), "?"), "a")
}
