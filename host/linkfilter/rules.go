package linkfilter

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "gvisor-k3s"

// How long after a datagram of the host's its answers are let in, and how many of the host's questions are remembered:
// as long as Linux's nf_conntrack_udp_timeout_stream, and every port that a host has.
const (
	answered = 2 * time.Minute
	asked    = 65536
)

// replaceRules sets the rules in the network namespace of the calling thread. The kernel takes all of it or nothing, in
// one step.
//
// As nft(8) would list them, for the port 5000 and the host's address 10.107.1.1:
//
//	table netdev gvisor-k3s {
//		set asked {
//			typeof udp sport . udp dport
//			size 65536; flags dynamic,timeout; timeout 2m
//		}
//		chain from-host {
//			type filter hook ingress device "eth0" priority filter; policy accept;
//			meta l4proto udp update @asked { udp sport . udp dport }
//		}
//		chain to-host {
//			type filter hook egress device "eth0" priority filter; policy drop;
//			ether type arp accept
//			ether type ip6 ether daddr set 00:00:00:00:00:00 accept
//			ether type != ip drop
//			@ll,240,32 != 10.107.1.1 ether daddr set 00:00:00:00:00:00 accept
//			meta l4proto icmp accept
//			tcp flags & (syn | ack) != syn accept
//			tcp dport 5000 accept
//			udp dport 5000 accept
//			meta l4proto udp udp dport . udp sport @asked accept
//			meta l4proto udp ip frag-off & 0x1fff != 0 accept
//			ether daddr set 00:00:00:00:00:00 accept
//		}
//	}
//
// What is refused gets no answer: the kernel rejects at netdev's ingress only (nft_reject_netdev_validate).
func replaceRules(o Options) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	drop := nftables.ChainPolicyDrop
	table := removeTable(conn)
	conn.AddTable(table)
	questions := &nftables.Set{
		Table: table, Name: "asked", Dynamic: true, HasTimeout: true, Timeout: answered, Size: asked, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetService, nftables.TypeInetService),
	}
	if err := conn.AddSet(questions, nil); err != nil {
		return err
	}
	fromHost := conn.AddChain(&nftables.Chain{
		Name: "from-host", Table: table, Device: o.Link,
		Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: fromHost, Exprs: remember(questions)})
	toHost := conn.AddChain(&nftables.Chain{
		Name: "to-host", Table: table, Device: o.Link, Policy: &drop,
		Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookEgress, Priority: nftables.ChainPriorityFilter,
	})
	for _, rule := range rules(o, questions) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: toHost, Exprs: rule})
	}
	return conn.Flush()
}

// removeRules takes the rules away. A kernel that cannot have any has none.
func removeRules() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	removeTable(conn)
	err = conn.Flush()
	if refusal := unix.Errno(0); errors.As(err, &refusal) && lacksHook(refusal) {
		return nil
	}
	return err
}

func removeTable(conn *nftables.Conn) *nftables.Table {
	table := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: tableName}
	conn.AddTable(table) // there has to be one to delete
	conn.DelTable(table)
	return table
}

// A test is a part of a rule: the rule ends where a test fails, or cannot be made because the packet has no such field.
type test []expr.Any

// rules hold also against one who writes frames as they like, as someone with runsc's packet socket would: the type and
// the address are looked up in the frame itself, which is what the host goes by, while the kernel makes out an IP
// header only where the sender has called the frame IP. Where the two differ no later test can be made. Frames with
// VLAN tags are of another type.
func rules(o Options, questions *nftables.Set) [][]expr.Any {
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	list := [][]expr.Any{
		rule(etherType(expr.CmpOpEq, unix.ETH_P_ARP), accept),
		rule(etherType(expr.CmpOpEq, unix.ETH_P_IPV6), lose), // at each link Linux has an address of its own making
		rule(etherType(expr.CmpOpNeq, unix.ETH_P_IP), drop),
		rule(isNotFor(o.Host), lose), // the host would forward it, or hand it to all
		rule(protocol(unix.IPPROTO_ICMP), accept),
		// All but the start of a connection, so the answers in one that the host has started. The later fragments of a
		// segment have no flags and are dropped, so none can bring them in belatedly; TCP itself makes no fragments.
		rule(protocol(unix.IPPROTO_TCP), startsNoConnection, accept),
	}
	for _, port := range o.Ports {
		for _, number := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			list = append(list, rule(protocol(number), toPort(port), accept))
		}
	}
	return append(list,
		rule(protocol(unix.IPPROTO_UDP), answers(questions), accept),
		// A large answer comes in fragments. What is not the first one has no ports, and is nothing without the first,
		// which was judged by them; nor can it replace them, being at least the 8 bytes of UDP's header further on.
		rule(protocol(unix.IPPROTO_UDP), laterFragment, accept),
		rule(lose),
	)
}

func rule(parts ...test) []expr.Any {
	var all []expr.Any
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

const register = 1 // where a test loads what it compares

// lose refuses a packet as "drop" would, but tells the sender nothing. A drop at egress fails the sender's system call,
// and where that sent many packets the others are lost with it: runsc does so (sendBatch in gVisor's
// pkg/tcpip/link/fdbased), and a pod that asks for what it does not get would stall the connections of the whole node.
// So the frame passes, to an address that no Ethernet device can have (is_valid_ether_addr), and the host's IP takes
// none that is for another (ip_rcv_core, ip6_rcv_core: PACKET_OTHERHOST). Where the frame cannot be written the rule
// ends, and the chain's policy drops it.
var lose = test{
	&expr.Immediate{Register: register, Data: make([]byte, 6)},
	&expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: register, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6,
	},
	&expr.Verdict{Kind: expr.VerdictAccept},
}

var (
	startsNoConnection = test{
		load(expr.PayloadBaseTransportHeader, 13, 1),
		masked([]byte{tcpSyn | tcpAck}),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: []byte{tcpSyn}},
	}
	laterFragment = test{
		load(expr.PayloadBaseNetworkHeader, 6, 2),
		masked(bigEndian(0x1fff)),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: bigEndian(0)},
	}
)

// Bits of a TCP header's flags (RFC 9293, 3.1).
const (
	tcpSyn = 0x02
	tcpAck = 0x10
)

func etherType(op expr.CmpOp, number uint16) test {
	return test{load(expr.PayloadBaseLLHeader, 12, 2), &expr.Cmp{Op: op, Register: register, Data: bigEndian(number)}}
}

// The destination's place in a frame: behind Ethernet's header, and in IP's always the same (RFC 791, 3.1).
const ipDestination = 14 + 16

func isNotFor(address netip.Addr) test {
	return test{
		load(expr.PayloadBaseLLHeader, ipDestination, 4),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: address.AsSlice()},
	}
}

func protocol(number byte) test {
	return test{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{number}},
	}
}

// Where the ports are, in TCP's header as in UDP's.
const (
	sourcePort      = 0
	destinationPort = 2
)

func toPort(port uint16) test {
	return test{
		load(expr.PayloadBaseTransportHeader, destinationPort, 2),
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: bigEndian(port)},
	}
}

// Registers of 32 bits, one after another: a key of two parts (NFT_REG32_00 of linux/netfilter/nf_tables.h).
const (
	firstPart  = 8
	secondPart = 9
)

// remember notes the ports of what the host asks, each time anew. It sees a frame after runsc's packet socket got it,
// but in the same run of the kernel's (__netif_receive_skb_core), so before runsc can have read it.
func remember(questions *nftables.Set) []expr.Any {
	return rule(protocol(unix.IPPROTO_UDP), portsInto(sourcePort, destinationPort), test{&expr.Dynset{
		SrcRegKey: firstPart, SetName: questions.Name, SetID: questions.ID, Operation: unix.NFT_DYNSET_OP_UPDATE,
	}})
}

// answers is what goes back to a port of the host's from the one that it has asked.
func answers(questions *nftables.Set) test {
	return append(portsInto(destinationPort, sourcePort),
		&expr.Lookup{SourceRegister: firstPart, SetName: questions.Name, SetID: questions.ID})
}

func portsInto(first, second uint32) test {
	return test{
		&expr.Payload{DestRegister: firstPart, Base: expr.PayloadBaseTransportHeader, Offset: first, Len: 2},
		&expr.Payload{DestRegister: secondPart, Base: expr.PayloadBaseTransportHeader, Offset: second, Len: 2},
	}
}

func load(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}
}

// masked keeps some bits of what was loaded.
func masked(bits []byte) expr.Any {
	length := len(bits)
	return &expr.Bitwise{
		SourceRegister: register, DestRegister: register, Len: uint32(length), Mask: bits, Xor: make([]byte, length),
	}
}

func verdict(kind expr.VerdictKind) test { return test{&expr.Verdict{Kind: kind}} }

func bigEndian(number uint16) []byte { return binary.BigEndian.AppendUint16(nil, number) }
