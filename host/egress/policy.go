package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// metadata are where clouds tell a machine of itself, credentials among it, that are not link-local: Alibaba's, Azure's
// (WireServer) and Oracle's.
var metadata = []netip.Addr{
	netip.AddrFrom4([4]byte{100, 100, 100, 200}),
	netip.AddrFrom4([4]byte{168, 63, 129, 16}),
	netip.AddrFrom4([4]byte{192, 0, 0, 192}),
}

// refusal tells why the sandbox may not reach an address; "" if it may. It reaches anything but the host itself, and
// what only the host is to reach.
func (g *gateway) refusal(to netip.Addr) string {
	switch {
	case to.IsLoopback() || to.IsUnspecified():
		return "it is the host's loopback"
	case to.IsLinkLocalUnicast():
		return "it is link-local, as clouds' metadata services are"
	case slices.Contains(metadata, to):
		return "it is a cloud's metadata service"
	case to.IsMulticast() || to == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "it is no single host"
	}
	// The kernel itself is asked where packets go: more is the host's than what its interfaces have, such as addresses
	// of a load balancer or of a whole network by a route of the type local.
	routes, err := g.routes.RouteGet(to.AsSlice())
	if err != nil {
		return fmt.Sprintf("the host has no way there (%v)", err)
	}
	for _, route := range routes {
		switch route.Type {
		case unix.RTN_UNICAST:
			if g.toSibling(route.LinkIndex) {
				return "it is another sandbox's"
			}
		case unix.RTN_LOCAL:
			return "it is the host's"
		case unix.RTN_BROADCAST, unix.RTN_MULTICAST, unix.RTN_ANYCAST:
			return "it is no single host"
		default:
			return fmt.Sprintf("the host's way there is of the type %d", route.Type)
		}
	}
	if len(routes) == 0 {
		return "the host has no way there"
	}
	return ""
}

// toSibling tells whether a link of the host's leads to another sandbox, which the host alone is to reach.
func (g *gateway) toSibling(index int) bool {
	if g.siblings == "" {
		return false
	}
	link, err := g.routes.LinkByIndex(index)
	return err != nil || strings.HasPrefix(link.Attrs().Name, g.siblings)
}

// stranger tells whether an address is none that the sandbox has: nobody would get an answer.
func (g *gateway) stranger(from netip.Addr) bool {
	return !g.pods.Contains(from) && (!g.address.Contains(from) || from == g.address.Addr())
}

// permits tells whether a connection or a flow is let out, and notes why not.
func (g *gateway) permits(from, to netip.AddrPort) bool {
	if g.stranger(from.Addr()) {
		g.notes.add("%s is refused from %s: that is none of the sandbox's addresses", to, from)
		return false
	}
	if reason := g.refusal(to.Addr()); reason != "" {
		g.notes.add("%s is refused: %s", to, reason)
		return false
	}
	return true
}

func openRoutes() (*netlink.Handle, error) {
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("the host's routes: %w", err)
	}
	return routes, nil
}
