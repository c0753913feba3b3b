package egress

import (
	"context"
	"log"
	"net"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

const (
	// How long a name server may take; a question is then asked of the next one. resolv.conf(5) has five seconds, and
	// callers give up after as many.
	dnsTimeout = 2 * time.Second
	// How many questions may wait for an answer, and how many connections ask any. Each takes a socket of the host's.
	dnsQuestions   = 512
	dnsConnections = 256
)

// serveDNS answers questions at the gateway's own address by asking the host's name servers.
func (g *gateway) serveDNS(ctx context.Context, o options) error {
	at := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(o.address.Addr().As4()), Port: 53}
	packets, err := gonet.DialUDP(g.Stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	listener, err := gonet.ListenTCP(g.Stack, at, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	waiting := make(chan struct{}, dnsQuestions)
	for _, server := range []*dns.Server{
		{PacketConn: packets, Handler: g.resolver("udp", o.resolvConf, waiting)},
		{Listener: netutil.LimitListener(listener, dnsConnections), Handler: g.resolver("tcp", o.resolvConf, waiting)},
	} {
		go func() {
			if err := server.ActivateAndServe(); err != nil && ctx.Err() == nil {
				log.Printf("DNS: %v", err)
			}
		}()
		context.AfterFunc(ctx, func() { server.Shutdown() })
	}
	return nil
}

// resolver passes a question on as it came, so that an answer that does not fit is asked for again by who asked.
func (g *gateway) resolver(network, resolvConf string, waiting chan struct{}) dns.HandlerFunc {
	return func(w dns.ResponseWriter, question *dns.Msg) {
		fail := func(code int) {
			failure := new(dns.Msg)
			failure.SetRcode(question, code)
			w.WriteMsg(failure)
		}
		if !isQuestion(question) {
			fail(dns.RcodeRefused)
			return
		}
		select {
		case waiting <- struct{}{}:
			defer func() { <-waiting }()
		default:
			g.notes.add("a question for a name is refused: %d wait for an answer", dnsQuestions)
			fail(dns.RcodeServerFailure)
			return
		}
		client := &dns.Client{
			Net: network, Timeout: dnsTimeout, UDPSize: dns.MaxMsgSize, Dialer: g.dialer(dnsTimeout, 0),
		}
		config, err := dns.ClientConfigFromFile(resolvConf)
		if err != nil {
			g.notes.add("names cannot be looked up: %v", err)
			fail(dns.RcodeServerFailure)
			return
		}
		for _, server := range config.Servers {
			if answer, _, err := client.Exchange(question, net.JoinHostPort(server, config.Port)); err == nil {
				w.WriteMsg(answer)
				return
			}
		}
		fail(dns.RcodeServerFailure)
	}
}

// isQuestion tells whether a message asks for what everybody may know. A name server on this host may let its own
// machine do more: change a zone, or have all of it.
func isQuestion(message *dns.Msg) bool {
	if message.Opcode != dns.OpcodeQuery || message.Response || len(message.Question) != 1 {
		return false
	}
	kind := message.Question[0].Qtype
	return kind != dns.TypeAXFR && kind != dns.TypeIXFR
}
