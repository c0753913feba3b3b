package egress

import (
	"context"
	"log"
	"net"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// How long a name server may take; a question is then asked of the next one. resolv.conf(5) has five seconds, and callers give up after as many.
const dnsTimeout = 2 * time.Second

// serveDNS answers questions at the gateway's own address by asking the host's name servers.
func serveDNS(ctx context.Context, g *gateway, o options) error {
	at := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(o.address.Addr().As4()), Port: 53}
	packets, err := gonet.DialUDP(g.Stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	listener, err := gonet.ListenTCP(g.Stack, at, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	for _, server := range []*dns.Server{
		{PacketConn: packets, Handler: forward("udp", o.resolvConf)},
		{Listener: listener, Handler: forward("tcp", o.resolvConf)},
	} {
		go func() {
			if err := server.ActivateAndServe(); err != nil && ctx.Err() == nil {
				log.Printf("DNS: %v", err)
			}
		}()
	}
	return nil
}

// forward passes a question on as it came, so that an answer that does not fit is asked for again by who asked.
func forward(network, resolvConf string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, question *dns.Msg) {
		client := &dns.Client{Net: network, Timeout: dnsTimeout, UDPSize: dns.MaxMsgSize}
		config, err := dns.ClientConfigFromFile(resolvConf)
		if err == nil {
			for _, server := range config.Servers {
				answer, _, err := client.Exchange(question, net.JoinHostPort(server, config.Port))
				if err != nil {
					continue
				}
				w.WriteMsg(answer)
				return
			}
		}
		failure := new(dns.Msg)
		failure.SetRcode(question, dns.RcodeServerFailure)
		w.WriteMsg(failure)
	}
}
