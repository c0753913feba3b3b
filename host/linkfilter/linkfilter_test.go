package linkfilter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/internal/isolated"
	"gvisor-k3s/host/internal/testnet"
	"gvisor-k3s/host/netns"
	"gvisor-k3s/host/network"
)

func TestMain(m *testing.M) { isolated.Main(m) }

const (
	// The namespace, and the host's end of the link; the kernel in it is Linux's, which the rules cannot tell.
	sandbox = "gk-linkfilter"
	host    = "198.51.100.1"
	node    = "198.51.100.2"
	// How long a connection that is to be refused is waited for. Too short a time makes the test miss something, but never
	// fail.
	patience = time.Second
)

// up makes a namespace and its link to the host, as a sandbox has them.
func up(t *testing.T, namespace, host, node string) {
	t.Helper()
	testnet.UpNetwork(t, network.Network{
		Namespace: namespace, Host: netip.MustParsePrefix(host + "/30"), Node: netip.MustParsePrefix(node + "/30"),
	})
}

func link(t *testing.T) {
	t.Helper()
	up(t, sandbox, host, node)
}

// filter runs the program, with the ports that the sandbox is given.
func filter(t *testing.T, ports ...int) {
	t.Helper()
	filterBut(t, strings.ReplaceAll(strings.Trim(fmt.Sprint(ports), "[]"), " ", ","))
}

func filterBut(t *testing.T, list string) {
	t.Helper()
	err := Main([]string{"-netns=" + network.File(sandbox), "-link=eth0", "-host=" + host, "-ports=" + list})
	if err != nil {
		t.Fatal(err)
	}
}

// in runs a function in the sandbox's network namespace.
func in[T any](t *testing.T, do func() (T, error)) T {
	t.Helper()
	value, err := netns.In(network.File(sandbox), do)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// service is one that answers connections with what they said, and keeps datagrams to be read.
type service struct {
	port    int
	packets net.PacketConn
}

func serve(t *testing.T, listener net.Listener, packets net.PacketConn) service {
	t.Cleanup(func() {
		listener.Close()
		packets.Close()
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				said, _ := io.ReadAll(conn)
				conn.Write(said)
				conn.Close()
			}()
		}
	}()
	packets.SetDeadline(time.Now().Add(30 * time.Second))
	return service{listener.Addr().(*net.TCPAddr).Port, packets}
}

// hostServices listen on every address, at ports that are none of those that the host's own sockets get.
func hostServices(t *testing.T, count int) []service {
	t.Helper()
	var list []service
	for port := 20000; len(list) < count && port < 30000; port++ {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue // it is some other program's
		}
		packets, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			listener.Close()
			continue
		}
		list = append(list, serve(t, listener, packets))
	}
	if len(list) < count {
		t.Fatal("the host has no free ports")
	}
	return list
}

// dial connects from within the sandbox.
func dial(t *testing.T, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	return in(t, func() (net.Conn, error) {
		return (&net.Dialer{Timeout: 10 * time.Second}).Dial(network, to.String())
	})
}

// reaches tells whether the sandbox can connect to a port of the host's, as is wanted or is not.
func reaches(t *testing.T, port int, wanted bool) bool {
	t.Helper()
	timeout := patience
	if wanted {
		timeout = 30 * time.Second
	}
	return in(t, func() (bool, error) {
		conn, err := (&net.Dialer{Timeout: timeout}).Dial("tcp4", onHost(port).String())
		if err == nil {
			conn.Close()
			return true, nil
		}
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			return false, nil
		}
		return false, err
	})
}

// echoed fails the test unless all of what is said comes back: it is more than fits a segment, so that the kernel makes
// large ones of it.
func echoed(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	much := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	go func() {
		conn.Write(much)
		conn.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, much) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(much), err)
	}
}

func receive(t *testing.T, packets net.PacketConn) (string, net.Addr) {
	t.Helper()
	buffer := make([]byte, 65535)
	n, from, err := packets.ReadFrom(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n]), from
}

func onHost(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), uint16(port))
}

func TestConnections(t *testing.T) {
	link(t)
	services := hostServices(t, 2)
	first, second := services[0].port, services[1].port
	inside := in(t, func() (net.Listener, error) { return net.Listen("tcp4", node+":6443") })
	serve(t, inside, in(t, func() (net.PacketConn, error) { return net.ListenPacket("udp4", node+":6443") }))
	for _, port := range []int{first, second} {
		if !reaches(t, port, true) {
			t.Fatal("without the filter a service of the host's is not reached, so that the test proves nothing")
		}
	}
	for _, given := range [][]int{{}, {first}, {second}, {first, second}, {}} {
		filter(t, given...)
		for _, port := range []int{first, second} {
			if want := slices.Contains(given, port); reaches(t, port, want) != want {
				t.Errorf("given %v, port %d: want reached = %t", given, port, want)
			} else if want {
				echoed(t, dial(t, "tcp4", onHost(port)))
			}
		}
		conn, err := net.Dial("tcp4", inside.Addr().String())
		if err != nil {
			t.Fatalf("given %v, from the host: %v", given, err)
		}
		echoed(t, conn)
	}
	for range 2 { // with rules, and without any
		filterBut(t, "all")
		for _, port := range []int{first, second} {
			if !reaches(t, port, true) {
				t.Errorf("given all, port %d is not reached", port)
			}
		}
	}
}

// Datagrams on one way arrive in their order, so that the last one to be sent shows which others were lost.
func TestDatagrams(t *testing.T) {
	link(t)
	service := hostServices(t, 1)[0]
	toService := dial(t, "udp4", onHost(service.port))
	defer toService.Close()
	toService.Write([]byte("without the filter"))
	if said, _ := receive(t, service.packets); said != "without the filter" {
		t.Fatalf("got %q", said)
	}

	filter(t)
	toService.Write([]byte("to a port that was not given"))
	nodePort := in(t, func() (net.PacketConn, error) { return net.ListenPacket("udp4", node+":30053") })
	other := in(t, func() (net.PacketConn, error) { return net.ListenPacket("udp4", node+":53") })
	defer nodePort.Close()
	defer other.Close()
	nodePort.WriteTo([]byte("from a NodePort to a port that was not given"), net.UDPAddrFromAddrPort(onHost(service.port)))
	filter(t, service.port)
	toService.Write([]byte("to a port that was given"))
	if said, _ := receive(t, service.packets); said != "to a port that was given" {
		t.Errorf("got %q", said)
	}

	// The host asks, from a port that it gets from the kernel; the answer of the NodePort is one of many fragments.
	asking, err := net.ListenPacket("udp4", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	asking.SetDeadline(time.Now().Add(30 * time.Second))
	other.WriteTo([]byte("from another port"), asking.LocalAddr())
	large := strings.Repeat("answer", 10000)
	nodePort.WriteTo([]byte("from a port that was not asked"), asking.LocalAddr())
	asking.WriteTo([]byte("question"), nodePort.LocalAddr())
	if said, from := receive(t, nodePort); said != "question" {
		t.Errorf("got %q", said)
	} else if _, err := nodePort.WriteTo([]byte(large), from); err != nil {
		t.Error(err)
	}
	if said, from := receive(t, asking); said != large || from.String() != nodePort.LocalAddr().String() {
		t.Errorf("got %d bytes from %s", len(said), from)
	}
}

// addAddress gives a device an address that it can use at once.
func addAddress(t *testing.T, device, text string) {
	t.Helper()
	address, err := netlink.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	address.Flags = unix.IFA_F_NODAD
	link, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.AddrAdd(link, address)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestIPv6(t *testing.T) {
	link(t)
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip("the host has no IPv6")
	}
	// The host's end has none, and the filter is not to depend on that.
	switchedOff := "/proc/sys/net/ipv6/conf/" + sandbox + "/disable_ipv6"
	if err := os.WriteFile(switchedOff, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	// Besides those of the kernel's own making, which it is slow to use: it first looks whether any other has them.
	addAddress(t, sandbox, "fe80::1/64")
	in(t, func() (any, error) {
		addAddress(t, "eth0", "fe80::2/64")
		return nil, nil
	})
	service := hostServices(t, 1)[0]
	inside := in(t, func() (*net.Interface, error) { return net.InterfaceByName("eth0") })
	to := netip.MustParseAddrPort(fmt.Sprintf("[fe80::1%%%d]:%d", inside.Index, service.port))
	overIPv6 := dial(t, "udp6", to)
	defer overIPv6.Close()
	overIPv6.Write([]byte("without the filter"))
	if said, _ := receive(t, service.packets); said != "without the filter" {
		t.Fatalf("got %q", said)
	}
	filter(t, service.port)
	overIPv6.Write([]byte("over IPv6"))
	overIPv4 := dial(t, "udp4", onHost(service.port))
	defer overIPv4.Close()
	overIPv4.Write([]byte("over IPv4"))
	if said, _ := receive(t, service.packets); said != "over IPv4" {
		t.Errorf("got %q", said)
	}
}

// A sandbox that has runsc's packet socket writes what it likes.
func TestFrames(t *testing.T) {
	link(t)
	port := hostServices(t, 1)[0].port
	wire := openWire(t)
	whole := func() []byte { return wire.packet(unix.IPPROTO_TCP, 0, wire.syn(port)) }
	fragments := func() [][]byte {
		first, rest := wire.syn(port)[:8], wire.syn(port)[8:]
		return [][]byte{wire.packet(unix.IPPROTO_TCP, 0x2000, first), wire.packet(unix.IPPROTO_TCP, 1, rest)}
	}
	attempts := map[string]func(){
		"a SYN":                func() { wire.send(unix.ETH_P_IP, whole()) },
		"a SYN in fragments":   func() { wire.send(unix.ETH_P_IP, fragments()...) },
		"a SYN as if of ARP":   func() { wire.send(unix.ETH_P_ARP, whole()) },
		"a SYN as if of IPv6":  func() { wire.send(unix.ETH_P_IPV6, whole()) },
		"a SYN as if of a LAN": func() { wire.send(unix.ETH_P_8021Q, whole()) },
	}
	for name, attempt := range attempts {
		t.Run(name, func(t *testing.T) {
			wire.t = t
			flush(t)
			wire.source++
			attempt()
			wire.await(func(protocol byte, body []byte) bool { return wire.isSynAck(protocol, body, port) })
			filter(t)
			wire.source++ // the host may answer once more what it was asked before
			attempt()
			// The host's kernel answers both, and in their order.
			wire.send(unix.ETH_P_IP, wire.packet(unix.IPPROTO_ICMP, 0, ping()))
			wire.await(func(protocol byte, body []byte) bool {
				if wire.isSynAck(protocol, body, port) {
					t.Error("the host answered")
				}
				return protocol == unix.IPPROTO_ICMP && body[0] == 0 // an echo reply
			})
		})
	}
	wire.t = t
	filter(t, port)
	wire.send(unix.ETH_P_IP, whole())
	wire.await(func(protocol byte, body []byte) bool { return wire.isSynAck(protocol, body, port) })
}

// flush takes the rules away.
func flush(t *testing.T) {
	t.Helper()
	in(t, func() (any, error) {
		conn, err := nftables.New()
		if err == nil {
			conn.FlushRuleset()
			err = conn.Flush()
		}
		return nil, err
	})
}

// wire is a packet socket at the sandbox's end of the link.
type wire struct {
	t      *testing.T
	socket int
	index  int
	header []byte // Ethernet's
	source int    // the port that connections are asked for from
}

func openWire(t *testing.T) *wire {
	t.Helper()
	inside := in(t, func() (*net.Interface, error) { return net.InterfaceByName("eth0") })
	outside, err := net.InterfaceByName(sandbox)
	if err != nil {
		t.Fatal(err)
	}
	socket := in(t, func() (int, error) {
		kind := unix.SOCK_RAW | unix.SOCK_CLOEXEC
		socket, err := unix.Socket(unix.AF_PACKET, kind, int(bigEndianNumber(unix.ETH_P_IP)))
		if err != nil {
			return 0, err
		}
		return socket, unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	})
	t.Cleanup(func() { unix.Close(socket) })
	header := slices.Concat(outside.HardwareAddr, inside.HardwareAddr, bigEndian(unix.ETH_P_IP))
	return &wire{t, socket, inside.Index, header, 40000}
}

// send sends frames of IPv4 that are called frames of some other protocol. It fails the test where the sender learns of
// a refusal.
func (w *wire) send(called uint16, frames ...[]byte) {
	w.t.Helper()
	for _, frame := range frames {
		to := &unix.SockaddrLinklayer{Protocol: bigEndianNumber(called), Ifindex: w.index}
		if err := unix.Sendto(w.socket, frame, 0, to); err != nil {
			w.t.Fatalf("sending: %v", err)
		}
	}
}

// await reads packets from the host until one is wanted.
func (w *wire) await(wanted func(protocol byte, body []byte) bool) {
	w.t.Helper()
	buffer := make([]byte, 65535)
	for {
		n, from, err := unix.Recvfrom(w.socket, buffer, 0)
		if err != nil {
			w.t.Fatalf("receiving: %v", err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING || n < 34 {
			continue
		}
		if wanted(buffer[23], buffer[34:n]) {
			return
		}
	}
}

// packet makes a frame with an IPv4 packet to the host.
func (w *wire) packet(protocol byte, fragment uint16, body []byte) []byte {
	return w.packetTo(host, protocol, fragment, body)
}

// packetTo makes a frame with an IPv4 packet (RFC 791, 3.1), which the host gets, to some address.
func (w *wire) packetTo(address string, protocol byte, fragment uint16, body []byte) []byte {
	header := []byte{0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0}
	binary.BigEndian.PutUint16(header[2:], uint16(20+len(body)))
	binary.BigEndian.PutUint16(header[6:], fragment)
	header = slices.Concat(header, netip.MustParseAddr(node).AsSlice(), netip.MustParseAddr(address).AsSlice())
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return slices.Concat(w.header, header, body)
}

// syn makes a TCP segment that asks the host for a connection.
func (w *wire) syn(port int) []byte { return w.synTo(host, port) }

// synTo makes a TCP segment (RFC 9293, 3.1) that asks for a connection.
func (w *wire) synTo(address string, port int) []byte {
	segment := slices.Concat(bigEndian(uint16(w.source)), bigEndian(uint16(port)), make([]byte, 8),
		[]byte{5 << 4, tcpSyn, 0xff, 0xff, 0, 0, 0, 0})
	pseudo := slices.Concat(netip.MustParseAddr(node).AsSlice(), netip.MustParseAddr(address).AsSlice(),
		[]byte{0, unix.IPPROTO_TCP}, bigEndian(uint16(len(segment))))
	binary.BigEndian.PutUint16(segment[16:], checksum(slices.Concat(pseudo, segment)))
	return segment
}

// isSynAck tells whether a packet is the answer to syn.
func (w *wire) isSynAck(protocol byte, body []byte, port int) bool {
	if protocol != unix.IPPROTO_TCP {
		return false
	}
	from, to := int(binary.BigEndian.Uint16(body)), int(binary.BigEndian.Uint16(body[2:]))
	return from == port && to == w.source && body[13] == tcpSyn|tcpAck
}

// ping makes an echo request (RFC 792).
func ping() []byte {
	request := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	binary.BigEndian.PutUint16(request[2:], checksum(request))
	return request
}

func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// bigEndianNumber is a number that is big-endian in memory, as packet sockets want protocols.
func bigEndianNumber(number uint16) uint16 { return binary.NativeEndian.Uint16(bigEndian(number)) }

func TestMistakesAreTold(t *testing.T) {
	link(t)
	file := network.File(sandbox)
	for _, c := range []struct {
		args string
		want []string
	}{
		{"", []string{"-netns is missing", "-link is missing", "-host is missing"}},
		{"-netns=a -link=b -host=fe80::1", []string{"-host is missing: the host's IPv4 address"}},
		{"-netns=a -link=b -host=c", []string{"unable to parse IP"}},
		{"-netns=a -link=b -ports=80,0", []string{`"0" is no port`}},
		{"-netns=a -link=b -ports=65536", []string{`"65536" is no port`}},
		{"-netns=a -link=b -host=1.2.3.4 c", []string{`what is "c"?`}},
		{"-netns=/nonexistent -link=eth0 -host=1.2.3.4", []string{"/nonexistent: no such file"}},
		{"-netns=" + file + " -link=eth9 -host=1.2.3.4", []string{"eth9 in " + file, "no such network interface"}},
	} {
		err := Main(strings.Fields(c.args))
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got %v, want %q", c.args, err, want)
			}
		}
	}
}

// An old kernel says so of the chain, and that it has no such chain of each rule.
func TestAKernelWithoutTheHook(t *testing.T) {
	err := explain(fmt.Errorf("conn.Receive: %w", errors.Join(unix.EOPNOTSUPP, unix.ENOENT, unix.ENOENT)))
	want := "the kernel has no nftables netdev egress hook (Linux 5.16 or newer with CONFIG_NETFILTER_EGRESS): " +
		"operation not supported"
	if err.Error() != want {
		t.Errorf("got %q", err)
	}
	err = explain(errors.Join(unix.EPERM, unix.ENOENT))
	if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "not permitted") {
		t.Errorf("got %q", err)
	}
}

// The host of this test forwards packets, as one with containers does.
func TestOtherMachines(t *testing.T) {
	const other, otherMachine = "gk-other", "203.0.113.2"
	link(t)
	up(t, other, "203.0.113.1", otherMachine)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	inOther := func(do func() (any, error)) any {
		t.Helper()
		value, err := netns.In(network.File(other), do)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	listener := inOther(func() (any, error) { return net.Listen("tcp4", otherMachine+":5000") }).(net.Listener)
	packets := inOther(func() (any, error) { return net.ListenPacket("udp4", otherMachine+":5000") }).(net.PacketConn)
	serve(t, listener, packets)
	ephemeral := inOther(func() (any, error) { return net.ListenPacket("udp4", otherMachine+":40000") }).(net.PacketConn)
	t.Cleanup(func() { ephemeral.Close() })
	ephemeral.SetDeadline(time.Now().Add(30 * time.Second))
	nodePort := in(t, func() (net.PacketConn, error) { return net.ListenPacket("udp4", node+":30053") })
	t.Cleanup(func() { nodePort.Close() })
	nodePort.SetDeadline(time.Now().Add(30 * time.Second))
	wire := openWire(t)
	ping := wire.packetTo(otherMachine, unix.IPPROTO_ICMP, 0, ping())
	hello := func() []byte {
		wire.source++
		return wire.packetTo(otherMachine, unix.IPPROTO_TCP, 0, wire.synTo(otherMachine, 5000))
	}

	// say sends all that could come through, and in the end a datagram that shows what came before it.
	say := func(last string) {
		t.Helper()
		for _, port := range []int{5000, 40000} {
			to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(fmt.Sprintf("%s:%d", otherMachine, port)))
			if _, err := nodePort.WriteTo([]byte(last), to); err != nil {
				t.Fatal(err)
			}
		}
		wire.send(unix.ETH_P_IP, hello(), ping)
	}
	say("without the filter")
	for _, socket := range []net.PacketConn{packets, ephemeral} {
		if said, _ := receive(t, socket); said != "without the filter" {
			t.Fatalf("got %q", said)
		}
	}
	wire.await(func(protocol byte, body []byte) bool { return wire.isSynAck(protocol, body, 5000) })
	wire.await(func(protocol byte, body []byte) bool { return protocol == unix.IPPROTO_ICMP && body[0] == 0 })

	filter(t, 5000)
	say("with the filter")
	filterBut(t, "all")
	nodePort.WriteTo([]byte("without it again"), packets.LocalAddr())
	nodePort.WriteTo([]byte("without it again"), ephemeral.LocalAddr())
	for _, socket := range []net.PacketConn{packets, ephemeral} {
		if said, _ := receive(t, socket); said != "without it again" {
			t.Errorf("%s got %q", socket.LocalAddr(), said)
		}
	}
	// The other machine answers in the order in which it is asked.
	second := slices.Clone(ping)
	second[len(second)-1]++ // its sequence number
	binary.BigEndian.PutUint16(second[len(second)-6:], 0)
	binary.BigEndian.PutUint16(second[len(second)-6:], checksum(second[len(second)-8:]))
	wire.send(unix.ETH_P_IP, second)
	wire.await(func(protocol byte, body []byte) bool {
		if wire.isSynAck(protocol, body, 5000) {
			t.Error("the other machine's TCP answered")
		}
		if protocol == unix.IPPROTO_ICMP && body[7] == 1 {
			t.Error("the other machine's ICMP answered")
		}
		return protocol == unix.IPPROTO_ICMP && body[0] == 0 && body[7] == 2
	})
}
