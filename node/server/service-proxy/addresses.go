package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

var errNoLink = errors.New("the pods' link is not there yet")

// linkAddresses has addresses on the node's link to its pods. They have to be on that one: gVisor answers a packet from
// the address that it came to, and cannot look up the pod's MAC address from one that the link does not have.
type linkAddresses struct {
	link string
	// The node's own addresses there, which are somebody else's to add and to take away.
	own []netip.Addr

	index int // the link that this is about
	added map[netip.Addr]bool
}

func (l *linkAddresses) keep(wanted map[netip.Addr]bool) error {
	link, err := netlink.LinkByName(l.link)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return errNoLink
	}
	if err != nil {
		return err
	}
	if l.index != link.Attrs().Index {
		l.added = l.found(link)
		l.index = link.Attrs().Index
	}
	var problems []error
	for address := range wanted {
		if l.added[address] {
			continue
		}
		if err := netlink.AddrAdd(link, only(address)); err != nil && !errors.Is(err, unix.EEXIST) {
			problems = append(problems, fmt.Errorf("adding %s to %s: %w", address, l.link, err))
			continue
		}
		l.added[address] = true
	}
	for address := range l.added {
		if wanted[address] {
			continue
		}
		if err := netlink.AddrDel(link, only(address)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			problems = append(problems, fmt.Errorf("taking %s from %s: %w", address, l.link, err))
			continue
		}
		delete(l.added, address)
	}
	return errors.Join(problems...)
}

// found are the addresses that a process before this one has added. gVisor tells of all addresses in one message,
// which is too long to be read where there are more than some 1,400 (for Go's own net package where there are 90):
// then those stay that no Service has any more.
func (l *linkAddresses) found(link netlink.Link) map[netip.Addr]bool {
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		klog.ErrorS(err, "listing the addresses of a process before this one", "link", l.link)
	}
	found := map[netip.Addr]bool{}
	for _, entry := range list {
		address, ok := netip.AddrFromSlice(entry.IP.To4())
		if length, _ := entry.Mask.Size(); ok && length == address.BitLen() && !slices.Contains(l.own, address) {
			found[address] = true
		}
	}
	return found
}

// only is an address without a network around it.
func only(address netip.Addr) *netlink.Addr {
	parsed, _ := netlink.ParseAddr(address.String() + "/32")
	return parsed
}
