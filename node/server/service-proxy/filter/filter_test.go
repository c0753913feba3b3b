package filter

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gvisor-k3s/node/server/service-proxy/policy"

	v1 "k8s.io/api/core/v1"
)

// link is one of the filter's, in memory: what is put into it the filter reads, what it writes is kept.
type link struct {
	in  chan []byte
	out [][]byte
}

func (l *link) Read(buffer []byte) (int, error) {
	frame, ok := <-l.in
	if !ok {
		return 0, io.EOF
	}
	return copy(buffer, frame), nil
}

func (l *link) Write(frame []byte) (int, error) {
	l.out = append(l.out, append([]byte(nil), frame...))
	return len(frame), nil
}

// bench has a filter with two pods and the node, all of which is in a bubble of its own: what a test waits for is that
// nothing moves any more.
type bench struct {
	*testing.T
	filter *Filter
	// denied are the flows that the rules do not allow; all others they do.
	denied atomic.Pointer[map[policy.Flow]bool]
	links  map[string]*link
}

var stations = map[string]struct {
	mac     mac
	address netip.Addr
}{
	"a":    {mac{2, 0, 0, 0, 0, 0xa}, netip.MustParseAddr("10.42.0.10")},
	"b":    {mac{2, 0, 0, 0, 0, 0xb}, netip.MustParseAddr("10.42.0.11")},
	"node": {mac{2, 0, 0, 0, 0, 1}, netip.MustParseAddr("10.42.0.1")},
}

func inside(address netip.Addr) bool { return netip.MustParsePrefix("10.42.0.0/24").Contains(address) }

var everybody = mac{255, 255, 255, 255, 255, 255}

func run(t *testing.T, test func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{T: t, links: map[string]*link{}}
		for name := range stations {
			b.links[name] = &link{in: make(chan []byte)}
		}
		b.deny()
		b.filter = New(b.links["node"], func(flow policy.Flow) bool { return !(*b.denied.Load())[flow] }, inside)
		for _, name := range []string{"a", "b"} {
			s := stations[name]
			b.filter.Add(&Pod{Address: s.address, MAC: net.HardwareAddr(s.mac[:]), Link: b.links[name]})
		}
		test(b)
		for _, link := range b.links {
			close(link.in)
		}
	})
}

// deny has just these flows not allowed.
func (b *bench) deny(flows ...policy.Flow) {
	all := map[policy.Flow]bool{}
	for _, flow := range flows {
		all[flow] = true
	}
	b.denied.Store(&all)
	if b.filter != nil {
		b.filter.RulesChanged()
	}
}

// expect sends a frame from a station, and compares whom it reaches.
func (b *bench) expect(what, from string, frame []byte, reaches ...string) {
	b.Helper()
	b.links[from].in <- frame
	synctest.Wait()
	want := map[string]bool{}
	for _, name := range reaches {
		want[name] = true
	}
	for name, link := range b.links {
		if got := len(link.out) > 0; got != want[name] {
			b.Errorf("%s: %s got it: %v, not %v", what, name, got, want[name])
		}
		link.out = nil
	}
}

func flowTo(from, to string, protocol string, port uint16) policy.Flow {
	return policy.Flow{
		Source: stations[from].address, Destination: stations[to].address, Protocol: v1.Protocol(protocol), Port: port,
	}
}

// ipv4 is a packet between two stations in a frame.
func ipv4(from, to string, protocol uint8, payload []byte) []byte {
	return framed(stations[to].mac, stations[from].mac, typeIPv4,
		datagram(stations[from].address, stations[to].address, protocol, 0, payload))
}

func framed(to, from mac, kind uint16, payload []byte) []byte {
	frame := append(append([]byte(nil), to[:]...), from[:]...)
	return append(binary.BigEndian.AppendUint16(frame, kind), payload...)
}

// datagram is an IPv4 packet; fragment is what its header says of that.
func datagram(from, to netip.Addr, protocol uint8, fragment uint16, payload []byte) []byte {
	header := make([]byte, 20)
	header[0], header[8], header[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(header[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(header[4:], 77)
	binary.BigEndian.PutUint16(header[6:], fragment)
	copy(header[12:], from.AsSlice())
	copy(header[16:], to.AsSlice())
	return append(header, payload...)
}

func tcp(from, to string, sourcePort, port uint16, flags uint8) []byte {
	segment := make([]byte, 20)
	binary.BigEndian.PutUint16(segment, sourcePort)
	binary.BigEndian.PutUint16(segment[2:], port)
	segment[12], segment[13] = 5<<4, flags
	return ipv4(from, to, protocolTCP, segment)
}

func udpDatagram(sourcePort, port uint16) []byte {
	payload := make([]byte, 12)
	binary.BigEndian.PutUint16(payload, sourcePort)
	binary.BigEndian.PutUint16(payload[2:], port)
	return payload
}

func udp(from, to string, sourcePort, port uint16) []byte {
	return ipv4(from, to, protocolUDP, udpDatagram(sourcePort, port))
}

func arpFrame(to mac, sender mac, source, target netip.Addr) []byte {
	data := make([]byte, arpLength)
	binary.BigEndian.PutUint32(data, 1<<16|typeIPv4)
	data[4], data[5], data[7] = 6, 4, 1
	copy(data[8:], sender[:])
	copy(data[14:], source.AsSlice())
	copy(data[24:], target.AsSlice())
	return framed(to, sender, typeARP, data)
}

func TestConnections(t *testing.T) {
	run(t, func(b *bench) {
		b.deny(flowTo("a", "b", "TCP", 80), flowTo("b", "a", "TCP", 40000))
		b.expect("one that is denied", "a", tcp("a", "b", 40000, 80, tcpSYN))
		b.expect("one that is allowed", "a", tcp("a", "b", 40000, 81, tcpSYN), "b")
		b.expect("its answer", "b", tcp("b", "a", 81, 40000, tcpSYN|tcpACK), "a")
		b.expect("one from the node", "node", tcp("node", "b", 40000, 80, tcpSYN), "b")
		b.expect("one to the node", "b", tcp("b", "node", 40000, 443, tcpSYN), "node")
		// A SYN opens a connection of its own, also between the ports of another.
		b.deny(flowTo("b", "a", "TCP", 40000))
		b.expect("the other way", "b", tcp("b", "a", 81, 40000, tcpSYN))
		b.expect("the first one goes on", "a", tcp("a", "b", 40000, 81, tcpACK), "b")
	})
}

func TestRulesChangeUnderOpenConnections(t *testing.T) {
	run(t, func(b *bench) {
		b.expect("open", "a", tcp("a", "b", 40000, 80, tcpSYN), "b")
		b.deny(flowTo("a", "b", "TCP", 80))
		b.expect("denied now", "a", tcp("a", "b", 40000, 80, tcpACK))
		b.expect("so is its answer", "b", tcp("b", "a", 80, 40000, tcpACK))
		b.deny()
		b.expect("allowed again", "b", tcp("b", "a", 80, 40000, tcpACK), "a")

		b.expect("a question", "a", udp("a", "b", 40000, 53), "b")
		b.deny(flowTo("a", "b", "UDP", 53))
		b.expect("an answer that nobody may have asked for", "b", udp("b", "a", 53, 40000))
	})
}

// A connection that was there before the filter goes on if it would be allowed, whoever sends first.
func TestPicksUpConnections(t *testing.T) {
	run(t, func(b *bench) {
		b.deny(flowTo("a", "b", "TCP", 80), flowTo("b", "a", "TCP", 40000))
		b.expect("of a server at port 80", "b", tcp("b", "a", 80, 40000, tcpACK))
		b.expect("the same from its client", "a", tcp("a", "b", 40000, 80, tcpACK))
		b.expect("another, whose client may not be asked", "a", tcp("a", "b", 40000, 81, tcpACK), "b")
		b.expect("and its server", "b", tcp("b", "a", 81, 40000, tcpACK), "a")
		b.deny(flowTo("a", "b", "TCP", 30080))
		b.expect("which end serves is not to be told", "a", tcp("a", "b", 40000, 30080, tcpACK), "b")
		b.deny(flowTo("a", "b", "TCP", 30080), flowTo("b", "a", "TCP", 40001))
		b.expect("neither end may be asked", "a", tcp("a", "b", 40001, 30080, tcpACK))
	})
}

func TestDatagrams(t *testing.T) {
	run(t, func(b *bench) {
		b.deny(flowTo("b", "a", "UDP", 40000))
		b.expect("an answer to nothing", "b", udp("b", "a", 53, 40000))
		b.expect("a question", "a", udp("a", "b", 40000, 53), "b")
		b.expect("its answer", "b", udp("b", "a", 53, 40000), "a")
		time.Sleep(otherIdle + sweepEvery + time.Second) // of the bubble: the answer comes too late
		b.expect("later", "b", udp("b", "a", 53, 40000))
		if len(b.filter.flows.known) != 0 || len(b.filter.flows.begun) != 0 {
			b.Error("a flow is kept for ever")
		}
	})
}

func TestErrorsComeBack(t *testing.T) {
	run(t, func(b *bench) {
		question := udp("a", "b", 40000, 9)
		refusal := ipv4("b", "a", protocolICMP, append([]byte{icmpUnreachable, 3, 0, 0, 0, 0, 0, 0}, question[14:14+28]...))
		b.deny(flowTo("b", "a", "", 0))
		b.expect("to a question that was not asked", "b", refusal)
		b.expect("the question", "a", question, "b")
		b.expect("its error", "b", refusal, "a")
		redirection := append([]byte{5, 0, 0, 0, 0, 0, 0, 0}, question[14:42]...)
		b.expect("a redirection", "b", ipv4("b", "a", protocolICMP, redirection))
		echo := func(kind uint8) []byte { return []byte{kind, 0, 0, 0, 0, 7, 0, 1} }
		b.expect("an echo that is denied", "b", ipv4("b", "a", protocolICMP, echo(icmpEcho)))
		b.expect("an echo", "a", ipv4("a", "b", protocolICMP, echo(icmpEcho)), "b")
		b.expect("its reply", "b", ipv4("b", "a", protocolICMP, echo(icmpEchoReply)), "a")
	})
}

func TestFragments(t *testing.T) {
	run(t, func(b *bench) {
		piece := func(fragment uint16, payload []byte) []byte {
			return framed(stations["b"].mac, stations["a"].mac, typeIPv4,
				datagram(stations["a"].address, stations["b"].address, protocolUDP, fragment, payload))
		}
		const more = 0x2000
		rest := make([]byte, 64)
		b.deny(flowTo("a", "b", "UDP", 9))
		b.expect("the rest of nothing", "a", piece(8, rest))
		b.expect("a first one that is denied", "a", piece(more, udpDatagram(40000, 9)))
		b.expect("and its rest", "a", piece(8, rest))
		b.expect("one without the ports", "a", piece(more, rest[:4]))
		b.expect("a first one", "a", piece(more, udpDatagram(40000, 53)), "b")
		b.expect("one that overwrites the ports", "a", piece(1, rest))
		b.expect("its rest", "a", piece(8, rest), "b")
	})
}

// A pod is who it is: not another address, hardware or network, nor another pod's.
func TestOnlyItsOwnFrames(t *testing.T) {
	run(t, func(b *bench) {
		a, other, node := stations["a"], stations["b"], stations["node"]
		payload := udpDatagram(1, 2)
		b.expect("another's hardware", "a", udp("b", "node", 1, 2))
		b.expect("another's address", "a",
			framed(node.mac, a.mac, typeIPv4, datagram(other.address, node.address, protocolUDP, 0, payload)))
		b.expect("an address that the other does not have", "a",
			framed(other.mac, a.mac, typeIPv4, datagram(a.address, node.address, protocolUDP, 0, payload)))
		b.expect("IPv6", "a", framed(other.mac, a.mac, 0x86dd, make([]byte, 60)))
		b.expect("a VLAN", "a", framed(other.mac, a.mac, 0x8100, append([]byte{0, 1, 8, 0}, payload...)))
		b.expect("who has b?", "a", arpFrame(everybody, a.mac, a.address, other.address), "b")
		b.expect("who has the node?", "a", arpFrame(everybody, a.mac, a.address, node.address), "node")
		b.expect("an answer", "a", arpFrame(other.mac, a.mac, a.address, other.address), "b")
		b.expect("b is here", "a", arpFrame(everybody, a.mac, other.address, node.address))
		b.expect("b's hardware is here", "a", arpFrame(everybody, other.mac, a.address, node.address))
		b.expect("the node asks for a", "node", arpFrame(everybody, node.mac, node.address, a.address), "a")
		b.expect("for somebody else", "node", udp("node", "node", 1, 2))
		for _, broken := range [][]byte{nil, make([]byte, 13), udp("a", "b", 1, 2)[:33], udp("a", "b", 1, 2)[:40]} {
			b.expect("a broken one", "a", broken)
		}
	})
}

func TestBroadcasts(t *testing.T) {
	run(t, func(b *bench) {
		all := netip.MustParseAddr("255.255.255.255")
		call := framed(everybody, stations["a"].mac, typeIPv4,
			datagram(stations["a"].address, all, protocolUDP, 0, udpDatagram(1, 9)))
		b.expect("to everybody", "a", call, "b", "node")
		b.deny(flowTo("a", "b", "UDP", 9))
		b.expect("to everybody else", "a", call, "node")
	})
}

// One pod cannot take all the memory, nor the others' turn.
func TestFlood(t *testing.T) {
	run(t, func(b *bench) {
		for i := range maxFlows {
			b.links["a"].in <- udp("a", "b", uint16(i), uint16(i/60000+9))
		}
		synctest.Wait()
		b.links["b"].out = nil
		b.expect("one more", "a", udp("a", "b", 1, 7000))
		b.expect("another pod's", "b", udp("b", "a", 1, 7000), "a")
		b.expect("one that it has", "a", udp("a", "b", 3, 9), "b")
	})
}

func TestPodsThatLeave(t *testing.T) {
	run(t, func(b *bench) {
		b.filter.Remove(b.filter.addresses[stations["b"].address])
		b.expect("to who has gone: the node's bridge may know", "a", tcp("a", "b", 1, 80, tcpSYN), "node")
		b.expect("from the node", "node", tcp("node", "b", 1, 80, tcpSYN))
	})
}

// Who makes packets of its own gets no further than who connects.
func TestForgedPackets(t *testing.T) {
	run(t, func(b *bench) {
		b.deny(flowTo("a", "b", "TCP", 80))
		for _, flags := range []uint8{tcpSYN, tcpSYN | tcpFIN, tcpSYN | tcpRST, 0, tcpFIN} {
			b.expect("one that opens", "a", tcp("a", "b", 1000, 80, flags))
		}
		b.expect("one of before", "a", tcp("a", "b", 80, 40000, tcpACK), "b")
		time.Sleep(pickUpFor + time.Second)
		b.expect("one that says so later", "b", tcp("b", "a", 80, 40001, tcpACK), "a")
		b.deny(flowTo("a", "b", "TCP", 80), flowTo("a", "b", "TCP", 40002))
		b.expect("whose end may not ask", "a", tcp("a", "b", 80, 40002, tcpACK))

		b.expect("a question", "a", udp("a", "node", 40000, 53), "node")
		quoting := append([]byte{icmpUnreachable, 3, 0, 0, 0, 0, 0, 0}, udp("a", "node", 40000, 53)[14:42]...)
		b.deny(flowTo("a", "b", "", 0))
		b.expect("an error about it to somebody else", "a", ipv4("a", "b", protocolICMP, quoting))
		b.expect("one of somebody else", "b", ipv4("b", "a", protocolICMP, quoting))
		b.expect("the node's", "node", ipv4("node", "a", protocolICMP, quoting), "a")
	})
}

// Connections are charged to who has sent their first packet, until it leaves; the node's are not counted.
func TestWhoIsCharged(t *testing.T) {
	run(t, func(b *bench) {
		for i := range maxFlows {
			b.links["a"].in <- tcp("a", "node", 80, uint16(16000+i), tcpACK)
		}
		synctest.Wait()
		b.links["node"].out = nil
		b.expect("the pod's next", "a", tcp("a", "node", 1, 80, tcpSYN))
		b.expect("the node's own", "node", tcp("node", "a", 40000, 8080, tcpSYN), "a")
		b.filter.Remove(b.filter.addresses[stations["a"].address])
		if len(b.filter.flows.begun) != 1 || len(b.filter.flows.known) != 1 {
			t.Errorf("kept are %v", b.filter.flows.begun)
		}
		for i := range maxFlows + 1 {
			b.links["node"].in <- tcp("node", "b", uint16(i), 80, tcpSYN)
		}
		synctest.Wait()
		if got := len(b.links["b"].out); got != maxFlows+1 {
			t.Errorf("of the node's connections %d came", got)
		}
	})
}

// What has ended is soon forgotten.
func TestConnectionsThatEnd(t *testing.T) {
	run(t, func(b *bench) {
		known := func() int { return len(b.filter.flows.known) }
		b.expect("open", "a", tcp("a", "b", 40000, 80, tcpSYN), "b")
		b.expect("said all", "a", tcp("a", "b", 40000, 80, tcpFIN|tcpACK), "b")
		time.Sleep(closedIdle + sweepEvery + time.Second)
		b.expect("the other end goes on", "b", tcp("b", "a", 80, 40000, tcpACK), "a")
		if known() != 1 {
			t.Error("a connection that is half open is forgotten")
		}
		b.expect("said all too", "b", tcp("b", "a", 80, 40000, tcpFIN|tcpACK), "a")
		time.Sleep(closedIdle + sweepEvery + time.Second)
		b.expect("something else", "a", udp("a", "b", 1, 2), "b")
		if known() != 1 {
			t.Errorf("%d are known", known())
		}
	})
}

// One sender's datagrams in pieces leave the others theirs.
func TestFloodOfFragments(t *testing.T) {
	run(t, func(b *bench) {
		piece := func(from string, id uint16) []byte {
			s := stations[from]
			frame := framed(stations["node"].mac, s.mac, typeIPv4,
				datagram(s.address, stations["node"].address, protocolUDP, 0x2000, udpDatagram(1, 2)))
			binary.BigEndian.PutUint16(frame[ethernetHeader+4:], id)
			return frame
		}
		for id := range uint16(maxPieces) {
			b.links["a"].in <- piece("a", id)
		}
		synctest.Wait()
		b.links["node"].out = nil
		b.expect("one more", "a", piece("a", maxPieces))
		b.expect("another pod's", "b", piece("b", 1), "node")
	})
}
