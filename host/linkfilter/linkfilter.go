// Package linkfilter keeps a sandbox from the host's services: on the link between the two it lets the host in, and out
// only the answers. Without it, whatever of the host's listens on every address (0.0.0.0) answers the sandbox at the
// host's end of the link. What is let out has to be for the address there, or a host that forwards packets, as one with
// containers does, would pass them on to any other machine.
//
// It sets rules of nftables, of the family netdev, at the egress of the sandbox's end of the link. There, in a network
// namespace that is the sandbox's own, they change nothing of the host's network and vanish with the namespace. Egress
// is past the network stack, so that it sees also what is sent by packet sockets, as runsc does, even if they bypass
// the queues (__dev_queue_xmit, nf_hook_direct_egress). It would not see AF_XDP, which runsc uses only if asked. The
// rules can be replaced under connections: their one state is which of its datagrams the host may still get answers to,
// and only the host's own datagrams fill that.
//
// Sources: nft(8), of the family netdev and its egress hook; functions that comments here name are the Linux kernel's.
package linkfilter

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gvisor-k3s/host/netns"
	"gvisor-k3s/host/usage"
)

// Options are what is let out, and where.
type Options struct {
	// Namespace is the sandbox's network namespace, by its file.
	Namespace string
	// Link is the sandbox's end of its link to the host.
	Link string
	// Host is the host's address on the link.
	Host netip.Addr
	// Ports are the host's that the sandbox is given, of TCP and of UDP.
	Ports []uint16
	// All is every port, and every address: there are no rules then.
	All bool
}

// Main is the subcommand.
func Main(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	return Set(o)
}

func parse(args []string) (Options, error) {
	var o Options
	flags := flag.NewFlagSet("filter", flag.ContinueOnError)
	flags.StringVar(&o.Namespace, "netns", "", "the sandbox's network namespace, by its file")
	flags.StringVar(&o.Link, "link", "", "the sandbox's end of its link to the host")
	flags.TextVar(&o.Host, "host", netip.Addr{}, "the host's own `address` on the link")
	given := "the host's `ports` that the sandbox is given, of TCP and of UDP: 5000,6000, or all"
	flags.Func("ports", given, func(list string) error {
		o.Ports = nil
		if o.All = list == "all"; o.All {
			return nil
		}
		for _, text := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' }) {
			port, err := strconv.ParseUint(text, 10, 16)
			if err != nil || port == 0 {
				return fmt.Errorf("%q is no port", text)
			}
			o.Ports = append(o.Ports, uint16(port))
		}
		return nil
	})
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		return o, usage.Error{Reason: err}
	}
	var problems []error
	if o.Namespace == "" {
		problems = append(problems, errors.New("-netns is missing"))
	}
	if o.Link == "" {
		problems = append(problems, errors.New("-link is missing"))
	}
	if !o.Host.Is4() && !o.All {
		problems = append(problems, errors.New("-host is missing: the host's IPv4 address on the link"))
	}
	if flags.NArg() > 0 {
		problems = append(problems, fmt.Errorf("what is %q?", flags.Arg(0)))
	}
	if len(problems) > 0 {
		return o, usage.Error{Reason: errors.Join(problems...)}
	}
	return o, nil
}

// Set replaces the rules by those for the options, all at once.
func Set(o Options) error {
	_, err := netns.In(o.Namespace, func() (any, error) { return nil, setHere(o) })
	return explain(err)
}

func setHere(o Options) error {
	// Since Linux 6.16 a chain may be for a link that does not exist yet: a wrong name would be no error, and no filter.
	if _, err := net.InterfaceByName(o.Link); err != nil {
		return fmt.Errorf("%s in %s: %w", o.Link, o.Namespace, err)
	}
	if o.All {
		return removeRules()
	}
	return replaceRules(o)
}

// explain makes one line of what the kernel says, which refuses each rule that follows from the first refusal.
func explain(err error) error {
	var refusal unix.Errno
	if !errors.As(err, &refusal) {
		return err
	}
	if lacksHook(refusal) {
		return fmt.Errorf("the kernel has no nftables netdev egress hook "+
			"(Linux 5.16 or newer with CONFIG_NETFILTER_EGRESS): %w", refusal)
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(line)
}

// lacksHook tells what a kernel without the hook says. The first is nft_chain_parse_hook's, of an older kernel, and
// __nf_register_net_hook's; the others are those of one without nftables, or gVisor's.
func lacksHook(refusal unix.Errno) bool {
	return refusal == unix.EOPNOTSUPP || refusal == unix.EAFNOSUPPORT || refusal == unix.EPROTONOSUPPORT
}
