package filter

import (
	"encoding/binary"
	"net/netip"

	v1 "k8s.io/api/core/v1"
)

// Ethernet, ARP (RFC 826), IPv4 (RFC 791), TCP (RFC 9293), UDP (RFC 768) and ICMP (RFC 792), as far as is looked at.
const (
	ethernetHeader = 14
	typeIPv4       = 0x0800
	typeARP        = 0x0806
	arpLength      = 28

	protocolICMP = 1
	protocolTCP  = 6
	protocolUDP  = 17

	tcpFIN, tcpSYN, tcpRST, tcpACK = 1, 2, 4, 16

	icmpEchoReply, icmpUnreachable, icmpEcho, icmpTimeExceeded, icmpParameter = 0, 3, 8, 11, 12
)

type mac [6]byte

func (m mac) isGroup() bool { return m[0]&1 == 1 }

// packet is what an IPv4 packet says of its flow.
type packet struct {
	key
	flags uint8 // TCP's
	// about is the flow that an ICMP error is about, as its sender sent it.
	about *key
	// fragment names the datagram that this is a piece of; piece is one without the ports, later says that more come.
	fragment     fragment
	piece, later bool
}

// key is a flow in the direction of a packet. What has no ports has none here: ICMP's echo has its identifier at both
// ends.
type key struct {
	protocol            uint8
	source, destination netip.AddrPort
}

func (k key) reversed() key { return key{k.protocol, k.destination, k.source} }

type fragment struct {
	source, destination netip.Addr
	protocol            uint8
	id                  uint16
}

func ethernet(frame []byte) (to, from mac, kind uint16, payload []byte, ok bool) {
	if len(frame) < ethernetHeader {
		return to, from, 0, nil, false
	}
	return mac(frame[:6]), mac(frame[6:12]), binary.BigEndian.Uint16(frame[12:]), frame[ethernetHeader:], true
}

// arp is who asks, and for which address.
type arp struct {
	sender         mac
	source, target netip.Addr
}

func parseARP(data []byte) (a arp, ok bool) {
	if len(data) < arpLength || binary.BigEndian.Uint32(data) != 1<<16|typeIPv4 || data[4] != 6 || data[5] != 4 {
		return a, false
	}
	return arp{mac(data[8:14]), netip.AddrFrom4([4]byte(data[14:18])), netip.AddrFrom4([4]byte(data[24:28]))}, true
}

// parseIPv4 tells what a packet is, unless it is broken, or has less of the transport's header than is looked at: a
// first fragment that hides its ports, or another that would overwrite them (RFC 1858).
func parseIPv4(data []byte) (p packet, ok bool) {
	if len(data) < 20 || data[0]>>4 != 4 {
		return p, false
	}
	header, total := int(data[0]&15)*4, int(binary.BigEndian.Uint16(data[2:]))
	if header < 20 || total < header || total > len(data) {
		return p, false
	}
	source, destination := netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))
	fragmented := binary.BigEndian.Uint16(data[6:])
	p.protocol, p.later = data[9], fragmented&0x2000 != 0
	p.fragment = fragment{source, destination, p.protocol, binary.BigEndian.Uint16(data[4:])}
	payload := data[header:total]
	if offset := int(fragmented&0x1fff) * 8; offset > 0 {
		p.piece = true
		p.source, p.destination = netip.AddrPortFrom(source, 0), netip.AddrPortFrom(destination, 0)
		return p, offset >= 60
	}
	var sourcePort, destinationPort uint16
	switch p.protocol {
	case protocolTCP:
		if len(payload) < 20 {
			return p, false
		}
		p.flags = payload[13]
		sourcePort, destinationPort = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	case protocolUDP:
		if len(payload) < 8 {
			return p, false
		}
		sourcePort, destinationPort = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	case protocolICMP:
		if len(payload) < 8 {
			return p, false
		}
		switch payload[0] {
		case icmpEcho, icmpEchoReply:
			sourcePort = binary.BigEndian.Uint16(payload[4:])
			destinationPort = sourcePort
		case icmpUnreachable, icmpTimeExceeded, icmpParameter:
			if p.about = quoted(payload[8:]); p.about == nil {
				return p, false
			}
		default:
			return p, false
		}
	}
	p.source, p.destination = netip.AddrPortFrom(source, sourcePort), netip.AddrPortFrom(destination, destinationPort)
	return p, true
}

// quoted is the flow of the packet whose beginning an ICMP error brings back: its header and eight bytes.
func quoted(data []byte) *key {
	if len(data) < 20 || data[0]>>4 != 4 {
		return nil
	}
	header := int(data[0]&15) * 4
	if header < 20 || len(data) < header+8 {
		return nil
	}
	ports := [2]uint16{}
	if protocol := data[9]; protocol == protocolTCP || protocol == protocolUDP {
		ports = [2]uint16{binary.BigEndian.Uint16(data[header:]), binary.BigEndian.Uint16(data[header+2:])}
	}
	return &key{
		data[9],
		netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[12:16])), ports[0]),
		netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[16:20])), ports[1]),
	}
}

// opens tells whether a packet can begin a flow of its own.
func (p packet) opens() bool {
	switch p.protocol {
	case protocolTCP:
		return p.flags&(tcpSYN|tcpACK|tcpRST|tcpFIN) == tcpSYN
	case protocolICMP:
		return p.about == nil
	}
	return true
}

func protocolOf(number uint8) v1.Protocol {
	switch number {
	case protocolTCP:
		return v1.ProtocolTCP
	case protocolUDP:
		return v1.ProtocolUDP
	}
	return ""
}
