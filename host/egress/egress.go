// Package egress is the way out of a sandbox: it runs beside it on the host, holds the far end of a tap device in the
// sandbox's network namespace, and makes each connection and each flow of datagrams that comes out of it an ordinary
// socket of its own. So the host needs neither forwarding nor address translation, and the sandbox reaches what the
// host reaches, but not the host.
//
// It answers DNS at its own address, from the host's name servers, those on the host's loopback included.
//
// Beyond TCP, UDP and DNS nothing passes: no ICMP, no IPv6.
//
// Who is root in the sandbox may send it what they like. So all that it keeps is counted (see quota and budget), and
// when it has got hold of the tap it gives up all rights that it does not need (see drop).
package egress

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os/signal"
	"syscall"

	"gvisor-k3s/host/ports"
	"gvisor-k3s/host/ready"
	"gvisor-k3s/host/usage"
)

type options struct {
	namespace  string
	tap        string
	address    netip.Prefix
	node       netip.Addr
	pods       netip.Prefix
	mtu        int
	resolvConf string
	siblings   string
	parent     int
	tcp, udp   limit
	// share is the half of the ports that the host's own sockets get. All sandboxes' sockets are among these, those
	// included that are closed and wait (TIME-WAIT), so that the host keeps half of its ports whatever they do.
	share ports.Range
}

// Main is the subcommand. It returns after SIGTERM.
func Main(args []string) error {
	teller := ready.Open()
	log.SetFlags(log.LstdFlags | log.LUTC)
	o, err := parse(args)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		err = run(ctx, o, teller)
	}
	if err != nil {
		teller.Tell(err)
	}
	return err
}

func parse(args []string) (options, error) {
	o := options{tcp: limit{tcpTotal, tcpPerSource}, udp: limit{udpTotal, udpPerSource}}
	flags := flag.NewFlagSet("egress", flag.ContinueOnError)
	flags.StringVar(&o.namespace, "netns", "", "the sandbox's network namespace, by its file")
	flags.StringVar(&o.tap, "tap", "", "the tap device there")
	flags.TextVar(&o.address, "address", netip.Prefix{}, "this program's own `address/bits` on the tap")
	flags.TextVar(&o.node, "node", netip.Addr{}, "the node's address there, by which pods are reached")
	flags.TextVar(&o.pods, "pods", netip.Prefix{}, "the pods' network")
	flags.IntVar(&o.mtu, "mtu", 65000, "the tap's largest packet, in `bytes`")
	flags.StringVar(&o.resolvConf, "resolv-conf", "/etc/resolv.conf",
		"a `file` with the host's name servers; it is read anew for each question")
	flags.StringVar(&o.siblings, "siblings", "",
		"what the names of the host's links to sandboxes begin with; those are not let out to")
	flags.IntVar(&o.parent, "parent", 0, "the process with which this one ends")
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		return o, usage.Error{Reason: err}
	}
	var problems []error
	for name, given := range map[string]bool{
		"netns": o.namespace != "", "tap": o.tap != "", "address": o.address.Addr().Is4(), "node": o.node.Is4(),
		"pods": o.pods.Addr().Is4(),
	} {
		if !given {
			problems = append(problems, fmt.Errorf("-%s is missing", name))
		}
	}
	if len(problems) > 0 {
		return o, usage.Error{Reason: errors.Join(problems...)}
	}
	return o, nil
}

func run(ctx context.Context, o options, teller *ready.Teller) error {
	tap, err := openTap(o.namespace, o.tap)
	if err != nil {
		return err
	}
	all, err := ports.Ephemeral()
	if err != nil {
		return err
	}
	o.share = all.UpperHalf()
	if err := bound(&o); err != nil {
		return err
	}
	if err := drop(o); err != nil {
		return err
	}
	gateway, err := newGateway(tap, o)
	if err != nil {
		return err
	}
	defer gateway.close()
	if err := gateway.serveDNS(ctx, o); err != nil {
		return err
	}
	log.Printf("ready on %s", o.tap)
	teller.Tell(nil)
	select {
	case <-ctx.Done():
		return nil
	case err := <-gateway.lost:
		return fmt.Errorf("the tap %s is gone: %v", o.tap, err)
	}
}
