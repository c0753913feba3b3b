package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"gvisor-k3s/host/internal/isolated"
	"gvisor-k3s/host/internal/testnet"
	"gvisor-k3s/host/netns"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/ports"
	"gvisor-k3s/relay"
)

func TestMain(m *testing.M) { isolated.Main(m) }

const server = testnet.Remote + ":8080"

// start has the way out in this process. What it has given up of its rights is seen by the tests of the program.
func start(t *testing.T, resolvConf string, change ...func(*options)) (*gateway, context.CancelFunc) {
	t.Helper()
	o, err := parse([]string{
		"-netns=" + network.File(testnet.Inside), "-tap=tap0", "-address=" + testnet.Gateway + "/30",
		"-node=" + testnet.Node, "-pods=10.42.0.0/16", "-resolv-conf=" + resolvConf,
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := ports.Ephemeral()
	if err != nil {
		t.Fatal(err)
	}
	o.share = all.UpperHalf()
	for _, apply := range change {
		apply(&o)
	}
	tap, err := openTap(o.namespace, o.tap)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := newGateway(tap, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := gateway.serveDNS(ctx, o); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		cancel()
		gateway.close()
		gateway.Wait()
		unix.Close(tap)
	})
	t.Cleanup(stop)
	testnet.AwaitUp(t, testnet.Inside, "tap0")
	return gateway, stop
}

// dial connects from within the sandbox, or fails the test.
func dial(t *testing.T, from string) *net.TCPConn {
	t.Helper()
	conn, err := testnet.Dial(from, server)
	if err != nil {
		t.Fatalf("from %s: %v", from, err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn
}

// accept returns the other end of a connection.
func accept(t *testing.T, listener *net.TCPListener) *net.TCPConn {
	t.Helper()
	listener.SetDeadline(time.Now().Add(30 * time.Second))
	conn, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn
}

// both are the two ends of a connection.
func both(t *testing.T, listener *net.TCPListener) (inside, outside *net.TCPConn) {
	t.Helper()
	inside = dial(t, testnet.Node)
	return inside, accept(t, listener)
}

// echo answers each datagram with itself.
func echo(packets *net.UDPConn) {
	buffer := make([]byte, 65535)
	for {
		n, from, err := packets.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		packets.WriteToUDPAddrPort(buffer[:n], from)
	}
}

func ask(t *testing.T, conn net.Conn, question string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write([]byte(question)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 65535)
	if n, err := conn.Read(answer); err != nil || string(answer[:n]) != question {
		t.Fatalf("%.20q was answered by %.20q, %v", question, answer[:n], err)
	}
}

func TestConnectionsAndFlows(t *testing.T) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	go echo(testnet.ListenPacket(t, 8080))
	_, stop := start(t, "/nonexistent")
	much := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	for _, from := range []string{testnet.Node, testnet.Pod} {
		conn := dial(t, from)
		served := accept(t, listener)
		go func() { // it answers all that was said, once that is all
			said, _ := io.ReadAll(served)
			served.Write(said)
			served.Close()
		}()
		go func() {
			conn.Write(much)
			conn.CloseWrite()
		}()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, much) {
			t.Errorf("from %s: %d bytes came back of %d, %v", from, len(got), len(much), err)
		}
		packets := testnet.DialUDP(t, from, 0, server)
		defer packets.Close()
		ask(t, packets, "a datagram")
		ask(t, packets, strings.Repeat("x", 60000))
		ask(t, packets, "another one")
	}
	for to, want := range map[string]error{
		testnet.Remote + ":81": syscall.ECONNREFUSED, testnet.Host + ":22": syscall.ECONNREFUSED,
		"169.254.169.254:80": syscall.ECONNREFUSED, testnet.Gateway + ":22": syscall.ECONNREFUSED,
	} {
		if conn, err := testnet.Dial(testnet.Node, to); err == nil {
			conn.Close()
			t.Errorf("%s was reached", to)
		} else if !errors.Is(err, want) {
			t.Errorf("%s: %v", to, err)
		}
	}
	// Another one takes over the tap.
	stop()
	start(t, "/nonexistent")
	conn, served := both(t, listener)
	go io.Copy(served, served)
	ask(t, conn, "again")
}

// Both ends, in either role.
func eachWay(t *testing.T, test func(t *testing.T, one, other *net.TCPConn)) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	start(t, "/nonexistent")
	t.Run("from within", func(t *testing.T) {
		inside, outside := both(t, listener)
		test(t, inside, outside)
	})
	t.Run("from without", func(t *testing.T) {
		inside, outside := both(t, listener)
		test(t, outside, inside)
	})
}

func expect(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

func TestHalfOfAConnectionGoesOn(t *testing.T) {
	eachWay(t, func(t *testing.T, one, other *net.TCPConn) {
		one.Write([]byte("all"))
		one.CloseWrite()
		if got, err := io.ReadAll(other); err != nil || string(got) != "all" {
			t.Fatalf("got %q, %v", got, err)
		}
		other.Write([]byte("an answer"))
		expect(t, one, "an answer")
		other.Write([]byte("more"))
		expect(t, one, "more")
		other.Close()
		if rest, err := io.ReadAll(one); err != nil || len(rest) > 0 {
			t.Errorf("got %q, %v", rest, err)
		}
	})
}

func TestAResetArrivesAsOne(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, one, other *net.TCPConn){
		"at once": func(*testing.T, *net.TCPConn, *net.TCPConn) {},
		"in the midst": func(t *testing.T, one, other *net.TCPConn) {
			one.Write([]byte("half"))
			expect(t, other, "half")
		},
		"of who was told all": func(t *testing.T, one, other *net.TCPConn) {
			other.CloseWrite()
			if _, err := io.ReadAll(one); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, func(t *testing.T, one, other *net.TCPConn) {
				prepare(t, one, other)
				one.SetLinger(0)
				one.Close()
				if got, err := io.ReadAll(other); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("got %q, %v, want a reset", got, err)
				}
			})
		})
	}
}

// Who has said all and then breaks off is not read from any more, and it is noticed all the same.
func TestAResetOfWhoHasSaidAll(t *testing.T) {
	eachWay(t, func(t *testing.T, one, other *net.TCPConn) {
		one.CloseWrite()
		if _, err := io.ReadAll(other); err != nil {
			t.Fatal(err)
		}
		one.SetLinger(0)
		one.Close()
		told := make(chan struct{})
		go func() {
			relay.TCP(other).Broken()
			close(told)
		}()
		select {
		case <-told:
		case <-time.After(30 * time.Second):
			t.Error("it is not noticed")
		}
	})
}

// The relay reads and writes at once, and is told of an error once.
func TestWhatBreaksOffNeverLooksWhole(t *testing.T) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	start(t, "/nonexistent")
	for i := range 200 {
		one, other := both(t, listener)
		if i%2 == 0 {
			one, other = other, one
		}
		writing := make(chan struct{})
		go func() {
			defer close(writing)
			for {
				if _, err := other.Write([]byte("the other one talks meanwhile")); err != nil {
					return
				}
			}
		}()
		one.Write([]byte("half of a download"))
		one.SetLinger(0)
		one.Close()
		// Read as the relay reads, for the test is in the same plight.
		reader := relay.TCP(other)
		for {
			buffer, _, err := reader.Receive()
			if err == io.EOF {
				t.Fatalf("%d: it looks whole", i)
			}
			if err != nil {
				break
			}
			relay.Give(buffer)
		}
		other.Close()
		<-writing
	}
}

// The stack tells an error once, to whoever comes first.
func TestAnErrorThatAnotherWasTold(t *testing.T) {
	testnet.Up(t)
	g, _ := start(t, "/nonexistent")
	queue := new(waiter.Queue)
	listener, failure := g.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, queue)
	if failure != nil {
		t.Fatal(failure)
	}
	own := tcpip.AddrFrom4(g.address.Addr().As4())
	for _, failure := range []tcpip.Error{
		listener.Bind(tcpip.FullAddress{NIC: nic, Addr: own, Port: 8080}), listener.Listen(1),
	} {
		if failure != nil {
			t.Fatal(failure)
		}
	}
	end, err := testnet.Dial(testnet.Node, testnet.Gateway+":8080")
	if err != nil {
		t.Fatal(err)
	}
	end.SetDeadline(time.Now().Add(30 * time.Second))
	var conn *insideConn
	testnet.Eventually(t, "a connection is accepted", func() bool {
		endpoint, queue, failure := listener.Accept(nil)
		if failure != nil {
			return false
		}
		conn = newInsideConn(endpoint, queue, largestBuffer)
		return true
	})
	if _, err := conn.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	expect(t, end, "?")
	end.SetLinger(0)
	end.Close()
	testnet.Eventually(t, "it is broken off", func() bool { return conn.broken() })
	if _, err := conn.Write([]byte("?")); err == nil {
		t.Error("writing succeeds")
	}
	for range 2 {
		if _, _, err := conn.Receive(); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reading: %v", err)
		}
	}
	conn.Broken()
}

func TestNothingIsLeftOfWhatIsOver(t *testing.T) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	packets := testnet.ListenPacket(t, 8080)
	go echo(packets)
	g, _ := start(t, "/nonexistent")
	for _, end := range []func(inside, outside *net.TCPConn){
		func(inside, outside *net.TCPConn) {
			inside.Close()
			outside.Close()
		},
		func(inside, outside *net.TCPConn) {
			outside.Close()
			inside.Close()
		},
		func(inside, outside *net.TCPConn) {
			inside.SetLinger(0)
			inside.Close()
		},
		func(inside, outside *net.TCPConn) {
			outside.SetLinger(0)
			outside.Close()
		},
	} {
		inside, outside := both(t, listener)
		end(inside, outside)
	}
	asking := testnet.DialUDP(t, testnet.Node, 0, server)
	defer asking.Close()
	ask(t, asking, "question")
	packets.Close()
	asking.Write([]byte("to nobody")) // which is told to the flow's socket
	testnet.Eventually(t, "no connection counts", func() bool {
		g.tcp.mutex.Lock()
		defer g.tcp.mutex.Unlock()
		return g.tcp.open == 0 && len(g.tcp.of) == 0
	})
	testnet.Eventually(t, "no flow counts", func() bool {
		g.udp.mutex.Lock()
		defer g.udp.mutex.Unlock()
		return g.udp.open == 0 && len(g.udp.of) == 0 && g.udp.idle.Len() == 0
	})
}

// A connection counts for as long as anything of it is kept, also where its end in the sandbox never takes note of the
// end.
func TestAConnectionCountsToItsEnd(t *testing.T) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	g, _ := start(t, "/nonexistent")
	inside, outside := both(t, listener)
	inside.CloseWrite()
	if _, err := io.ReadAll(outside); err != nil {
		t.Fatal(err)
	}
	testnet.In(t, testnet.Inside, func() (any, error) { // which hears nothing more from now on
		tap, err := netlink.LinkByName("tap0")
		if err != nil {
			return nil, err
		}
		return nil, netlink.LinkSetDown(tap)
	})
	outside.Close()
	remote := fmt.Sprintf(" %02X%02X%02X%02X:%04X ", 2, 113, 0, 203, 8080)
	testnet.Eventually(t, "the host's socket is closed", func() bool {
		text, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); strings.Contains(line, remote) && fields[3] != "06" { // TIME-WAIT
				return false
			}
		}
		return true
	})
	g.tcp.mutex.Lock()
	defer g.tcp.mutex.Unlock()
	if g.tcp.open != 1 {
		t.Errorf("%d connections count", g.tcp.open)
	}
}

func TestTooManyConnections(t *testing.T) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	start(t, "/nonexistent", func(o *options) { o.tcp = limit{3, 2} })
	refused := func(from string) {
		t.Helper()
		if conn, err := testnet.Dial(from, server); err == nil {
			conn.Close()
			t.Errorf("one more of %s was let out", from)
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("from %s: %v", from, err)
		}
	}
	first := dial(t, testnet.Node)
	accept(t, listener)
	dial(t, testnet.Node)
	refused(testnet.Node)
	dial(t, testnet.Pod)
	refused(testnet.Pod)
	first.SetLinger(0)
	first.Close()
	testnet.Eventually(t, "there is room", func() bool {
		conn, err := testnet.Dial(testnet.Pod, server)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func TestTheLongestIdleFlowMakesWay(t *testing.T) {
	testnet.Up(t)
	packets := testnet.ListenPacket(t, 8080)
	g, _ := start(t, "/nonexistent", func(o *options) { o.udp = limit{3, 2} })
	buffer := make([]byte, 10)
	// port is that which the host has for a flow.
	port := func(conn *net.UDPConn) uint16 {
		t.Helper()
		packets.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		_, from, err := packets.ReadFromUDPAddrPort(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return from.Port()
	}
	flow := func(from string) *net.UDPConn {
		conn := testnet.DialUDP(t, from, 0, server)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	a, b, c := flow(testnet.Node), flow(testnet.Node), flow(testnet.Node)
	portA, portB := port(a), port(b)
	if got := port(a); got != portA {
		t.Errorf("a flow went from port %d to %d", portA, got)
	}
	port(c) // has b make way, which has been idle for longest
	if got := port(a); got != portA {
		t.Errorf("a flow went from port %d to %d", portA, got)
	}
	if got := port(b); got == portB {
		t.Errorf("a third flow of one source has none make way")
	}
	d, e := flow(testnet.Pod), flow(testnet.Pod)
	portD := port(d)
	port(e) // has one of the node's make way: there are two of the pod's
	if got := port(d); got != portD {
		t.Errorf("a flow went from port %d to %d", portD, got)
	}
	testnet.Eventually(t, "three flows are open", func() bool {
		g.udp.mutex.Lock()
		defer g.udp.mutex.Unlock()
		return g.udp.open == 3
	})
}

func TestTheLongestIdleFlowOfAllMakesWay(t *testing.T) {
	s := newFlows(3, 3)
	var all []*flow
	for i := range 3 {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		f := &flow{source: netip.AddrFrom4([4]byte{10, 42, 0, byte(i)}), outside: conn}
		all = append(all, f)
		s.add(f)
	}
	s.used(all[0])
	s.add(&flow{source: netip.MustParseAddr(testnet.Pod), outside: all[2].outside})
	for i, want := range []bool{true, false, true} {
		if got := all[i].among != nil; got != want {
			t.Errorf("%d: it is kept: %t", i, got)
		}
	}
}

func TestFlowsByTheirAge(t *testing.T) {
	f := &flow{}
	if f.idle() != questionIdle {
		t.Errorf("a question is kept for %s", f.idle())
	}
	f.stream.Store(true)
	if f.idle() != streamIdle {
		t.Errorf("a stream is kept for %s", f.idle())
	}
	// It is one when the client has sent again after an answer.
	testnet.Up(t)
	go echo(testnet.ListenPacket(t, 8080))
	g, _ := start(t, "/nonexistent")
	conn := testnet.DialUDP(t, testnet.Node, 0, server)
	defer conn.Close()
	only := func() *flow {
		g.udp.mutex.Lock()
		defer g.udp.mutex.Unlock()
		return g.udp.idle.Front().Value.(*flow)
	}
	conn.Write([]byte("one"))
	conn.Write([]byte("two"))
	ask(t, conn, "one") // the first answer
	if f := only(); !f.answered.Load() {
		t.Error("no answer was noted")
	}
	conn.Write([]byte("three"))
	testnet.Eventually(t, "it is a stream", func() bool { return only().stream.Load() })
}

// What is flooded with is kept for as long as its sockets need to be closed, and no longer.
func TestRoomForFlows(t *testing.T) {
	s := newFlows(2, 2)
	socket := func() *net.UDPConn {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	var all []*flow
	add := func() bool {
		f := &flow{source: netip.MustParseAddr(testnet.Pod), outside: socket()}
		all = append(all, f)
		return s.add(f)
	}
	for range 2 + udpEnding {
		if !add() {
			t.Fatal("there is no room")
		}
	}
	if add() {
		t.Error("there is room, though the sockets of those that made way are open")
	}
	s.remove(all[0])
	if !add() {
		t.Error("there is no room, though a socket was closed")
	}
	s.close()
	s.remove(all[1])
	if add() {
		t.Error("one was added to what is closed")
	}
}

func TestPortsAreOfTheUpperHalf(t *testing.T) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	packets := testnet.ListenPacket(t, 8080)
	const setting = "/proc/sys/net/ipv4/ip_local_port_range"
	if err := os.WriteFile(setting, []byte("40001 40010"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(setting, []byte("32768 60999"), 0) })
	g, _ := start(t, "/nonexistent")
	if g.share != (ports.Range{First: 40006, Last: 40010}) {
		t.Fatalf("the share is %v", g.share)
	}
	buffer := make([]byte, 10)
	packets.SetDeadline(time.Now().Add(30 * time.Second))
	for range 5 {
		_, outside := both(t, listener)
		conn := testnet.DialUDP(t, testnet.Node, 0, server)
		defer conn.Close()
		conn.Write([]byte("?"))
		_, from, err := packets.ReadFromUDPAddrPort(buffer)
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range []int{outside.RemoteAddr().(*net.TCPAddr).Port, int(from.Port())} {
			if port < 40006 || port > 40010 {
				t.Errorf("a socket has the port %d", port)
			}
		}
	}
	// All of the share is taken, and the host has what is its own.
	if conn, err := testnet.Dial(testnet.Node, server); err == nil {
		conn.Close()
		t.Error("the sandbox got one more port")
	}
	conn, err := net.Dial("udp4", server)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// sibling makes a link of the host's as that to another sandbox.
func sibling(t *testing.T, name, address string) {
	t.Helper()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(link) })
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{name, "peer"} {
		found, err := netlink.LinkByName(end)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(found); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRefusal(t *testing.T) {
	testnet.UpOutside(t)
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	// A network that is the host's though no interface has an address of it.
	_, whole, _ := net.ParseCIDR("192.0.2.0/25")
	local := &netlink.Route{
		LinkIndex: loopback.Attrs().Index, Dst: whole, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		Scope: netlink.SCOPE_HOST,
	}
	if err := netlink.RouteAdd(local); err != nil {
		t.Fatal(err)
	}
	routes, err := openRoutes()
	if err != nil {
		t.Fatal(err)
	}
	defer routes.Close()
	sibling(t, "box-other", "10.107.0.1/30")
	g := &gateway{routes: routes, siblings: "box-"}
	for address, want := range map[string]string{
		"10.107.0.2": "another sandbox's",
		"127.0.0.1":  "loopback", "127.9.9.9": "loopback", "0.0.0.0": "loopback", "169.254.169.254": "link-local",
		"100.100.100.200": "metadata", "168.63.129.16": "metadata", "192.0.0.192": "metadata",
		"224.0.0.1": "no single host", "255.255.255.255": "no single host", testnet.Host: "it is the host's",
		"203.0.113.255": "no single host", "192.0.2.7": "it is the host's", "192.0.2.200": "no way there", testnet.Remote: "",
	} {
		got := g.refusal(netip.MustParseAddr(address))
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	testnet.Up(t)
	testnet.Listen(t, 8080)
	start(t, "/nonexistent")
	testnet.AddAddress(t, testnet.Inside, "tap0", "198.51.100.9/32")
	inside := func() error {
		_, err := netns.In(network.File(testnet.Inside), func() (any, error) {
			local := &net.TCPAddr{IP: net.ParseIP("198.51.100.9")}
			conn, err := (&net.Dialer{Timeout: time.Second, LocalAddr: local}).Dial("tcp4", server)
			if err == nil {
				conn.Close()
			}
			return nil, err
		})
		return err
	}
	if inside() == nil {
		t.Error("one who is none of the sandbox's was let out")
	}
	g := &gateway{pods: netip.MustParsePrefix("10.42.0.0/16"), address: netip.MustParsePrefix(testnet.Gateway + "/30")}
	for address, want := range map[string]bool{
		testnet.Node: false, testnet.Pod: false, testnet.Gateway: true, "10.43.0.1": true, "127.0.0.1": true,
	} {
		if got := g.stranger(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: got %t", address, got)
		}
	}
}

func TestQuota(t *testing.T) {
	q := newQuota(3, 2)
	a, b := netip.MustParseAddr("10.42.0.1"), netip.MustParseAddr("10.42.0.2")
	for i, c := range []struct {
		source netip.Addr
		want   int
	}{{a, 1}, {a, 2}, {a, 0}, {b, 3}, {b, 0}} {
		if got := q.take(c.source); got != c.want {
			t.Errorf("%d: got %d, want %d", i, got, c.want)
		}
	}
	q.give(a)
	if got := q.take(b); got != 3 {
		t.Errorf("got %d", got)
	}
	q.give(a)
	q.give(b)
	q.give(b)
	if q.open != 0 || len(q.of) != 0 {
		t.Errorf("%d are open, of %v", q.open, q.of)
	}
}

// What all connections may have buffered in this process is what the limits are made for.
func TestBudget(t *testing.T) {
	var all int64
	for open := 1; open <= tcpTotal; open++ {
		all += 2 * int64(budget(open))
	}
	if all > dataGoal {
		t.Errorf("%d bytes, and the garbage collector's goal is %d", all, int64(dataGoal))
	}
}

func TestNotesDoNotFillTheLog(t *testing.T) {
	var written bytes.Buffer
	log.SetOutput(&written)
	defer log.SetOutput(os.Stderr)
	n := newNotes()
	for i := range 10000 {
		n.add("192.0.2.1:%d is refused", i)
	}
	if lines := strings.Count(written.String(), "\n"); lines < 20 || lines > 100 {
		t.Errorf("%d lines", lines)
	}
	left := n.left
	written.Reset()
	n.limiter.SetLimit(1e9)
	testnet.Eventually(t, "a line is written", func() bool {
		n.add("the next one")
		return written.Len() > 0
	})
	if got := written.String(); !strings.Contains(got, " lines were left out") || left < 9900 {
		t.Errorf("%d were left out, and it says %q", left, got)
	}
}

func nameServer(t *testing.T, at string, answers func(w dns.ResponseWriter, question *dns.Msg)) {
	t.Helper()
	packets, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []*dns.Server{{PacketConn: packets}, {Listener: listener}} {
		server.Handler = dns.HandlerFunc(answers)
		go server.ActivateAndServe()
		t.Cleanup(func() { server.Shutdown() })
	}
}

func answerBy(w dns.ResponseWriter, question *dns.Msg) {
	answer := new(dns.Msg)
	answer.SetReply(question)
	text := fmt.Sprintf("%s 60 IN TXT \"an answer by %s\"", question.Question[0].Name, w.LocalAddr().Network())
	record, _ := dns.NewRR(text)
	answer.Answer = append(answer.Answer, record)
	w.WriteMsg(answer)
}

func TestNames(t *testing.T) {
	testnet.Up(t)
	nameServer(t, "127.0.0.153:53", answerBy)
	resolvConf := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(server string) {
		if err := os.WriteFile(resolvConf, []byte("nameserver "+server+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start(t, resolvConf)
	ask := func(by string, change func(*dns.Msg)) *dns.Msg {
		t.Helper()
		return testnet.In(t, testnet.Inside, func() (*dns.Msg, error) {
			question := new(dns.Msg)
			question.SetQuestion("name.example.", dns.TypeTXT)
			change(question)
			client := &dns.Client{Net: by, Timeout: 30 * time.Second}
			answer, _, err := client.Exchange(question, testnet.Gateway+":53")
			return answer, err
		})
	}
	plain := func(*dns.Msg) {}
	if answer := ask("udp", plain); answer.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a name server: %v", answer)
	}
	// A server on the host's loopback, which the sandbox could not ask; the file is read for each question.
	write("127.0.0.153")
	for _, by := range []string{"udp", "tcp"} {
		if answer := ask(by, plain); !strings.Contains(fmt.Sprint(answer.Answer), "an answer by "+by) {
			t.Errorf("by %s: got %v", by, answer)
		}
	}
	for what, change := range map[string]func(*dns.Msg){
		"a whole zone":          func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR },
		"a whole zone, by IXFR": func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR },
		"a notice":              func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
	} {
		if answer := ask("tcp", change); answer.Rcode != dns.RcodeRefused || len(answer.Answer) > 0 {
			t.Errorf("%s: got %v", what, answer)
		}
	}
	if answer := ask("udp", func(m *dns.Msg) { m.SetUpdate("example.") }); answer.Rcode == dns.RcodeSuccess {
		t.Errorf("an update: got %v", answer)
	}
}

// asked is who has asked a question.
type asked struct {
	dns.ResponseWriter
	answer *dns.Msg
}

func (a *asked) WriteMsg(answer *dns.Msg) error {
	a.answer = answer
	return nil
}

func TestTooManyQuestions(t *testing.T) {
	g := &gateway{notes: newNotes()}
	waiting := make(chan struct{}, 1)
	waiting <- struct{}{}
	question := new(dns.Msg)
	question.SetQuestion("name.example.", dns.TypeTXT)
	var a asked
	g.resolver("udp", "/nonexistent", waiting)(&a, question)
	if a.answer == nil || a.answer.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", a.answer)
	}
	if g.notes.limiter.Tokens() > 19.5 {
		t.Error("nothing was noted")
	}
}

// A tap that is gone ends the way out, and whoever started it makes another.
func TestTheTapIsGone(t *testing.T) {
	testnet.Up(t)
	g, _ := start(t, "/nonexistent")
	testnet.In(t, testnet.Inside, func() (any, error) {
		tap, err := netlink.LinkByName("tap0")
		if err != nil {
			return nil, err
		}
		return nil, netlink.LinkDel(tap)
	})
	select {
	case <-g.lost:
	case <-time.After(60 * time.Second):
		t.Error("it is not noticed")
	}
}

func TestMistakesAreTold(t *testing.T) {
	_, err := parse(nil)
	for _, want := range []string{
		"-netns is missing", "-tap is missing", "-address is missing", "-node is missing", "-pods is missing",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	testnet.UpOutside(t)
	if _, err := openTap(network.File(testnet.Outside), "tap0"); err == nil ||
		!strings.Contains(err.Error(), "no such network interface") {
		t.Errorf("without a tap: %v", err)
	}
}
