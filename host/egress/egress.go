// Package egress is the way out of a sandbox: it runs beside it on the host, holds the far end of a tap device in the sandbox's network
// namespace, and makes each connection and each flow of datagrams that comes out of it an ordinary socket of its own. So the host needs
// neither forwarding nor address translation, and the sandbox reaches what the host reaches, but not the host.
//
// It answers DNS at its own address, from the host's name servers, those on the host's loopback included.
//
// Beyond TCP, UDP and DNS nothing passes: no ICMP, no IPv6.
package egress

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/netip"
	"os/signal"
	"syscall"
)

type options struct {
	namespace  string
	tap        string
	address    netip.Prefix
	node       netip.Addr
	pods       netip.Prefix
	mtu        int
	resolvConf string
}

// Main is the subcommand. It returns after SIGTERM.
func Main(args []string) error {
	log.SetFlags(log.LstdFlags | log.LUTC)
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return run(ctx, o)
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("egress", flag.ContinueOnError)
	flags.StringVar(&o.namespace, "netns", "", "the sandbox's network namespace, by its file")
	flags.StringVar(&o.tap, "tap", "", "the tap device there")
	flags.TextVar(&o.address, "address", netip.Prefix{}, "this program's own `address/bits` on the tap")
	flags.TextVar(&o.node, "node", netip.Addr{}, "the node's address there, by which pods are reached")
	flags.TextVar(&o.pods, "pods", netip.Prefix{}, "the pods' network")
	flags.IntVar(&o.mtu, "mtu", 65000, "the tap's largest packet, in `bytes`")
	flags.StringVar(&o.resolvConf, "resolv-conf", "/etc/resolv.conf", "a `file` with the host's name servers; it is read anew for each question")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	var problems []error
	for name, given := range map[string]bool{"netns": o.namespace != "", "tap": o.tap != "", "address": o.address.IsValid(), "node": o.node.IsValid(), "pods": o.pods.IsValid()} {
		if !given {
			problems = append(problems, fmt.Errorf("-%s is missing", name))
		}
	}
	return o, errors.Join(problems...)
}

func run(ctx context.Context, o options) error {
	tap, err := openTap(o.namespace, o.tap)
	if err != nil {
		return err
	}
	gateway, err := newGateway(tap, o)
	if err != nil {
		return err
	}
	defer gateway.Close()
	if err := serveDNS(ctx, gateway, o); err != nil {
		return err
	}
	log.Printf("ready on %s", o.tap)
	<-ctx.Done()
	return nil
}
