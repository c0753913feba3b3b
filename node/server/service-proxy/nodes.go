package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// otherNodes are the addresses of the cluster's other nodes.
type otherNodes struct {
	addresses atomic.Pointer[map[netip.Addr]bool]
}

// nodeRoutes are those on a link that lead to the pods of other nodes, by way of these. What is there is asked for
// once, as gVisor's answer is too long where there are many Services.
type nodeRoutes struct {
	link  string
	there map[netip.Prefix]netip.Addr // nil until it was asked for
}

// has tells whether an address is another node's. What is served there is served by that node: here it would take the
// node's place.
func (n *otherNodes) has(address netip.Addr) bool {
	addresses := n.addresses.Load()
	return addresses != nil && (*addresses)[address]
}

// find finds out who they are, and returns where each is, by the network of its pods.
func (n *otherNodes) find(own string, nodes []*v1.Node) map[netip.Prefix]netip.Addr {
	pods, addresses := map[netip.Prefix]netip.Addr{}, map[netip.Addr]bool{}
	for _, node := range nodes {
		address, ok := addressOf(node)
		if node.Name == own || !ok {
			continue
		}
		addresses[address] = true
		if network, err := netip.ParsePrefix(node.Spec.PodCIDR); err == nil && network.Addr().Is4() {
			pods[network.Masked()] = address
		}
	}
	n.addresses.Store(&addresses)
	return pods
}

func addressOf(node *v1.Node) (netip.Addr, bool) {
	for _, address := range node.Status.Addresses {
		if parsed, err := netip.ParseAddr(address.Address); err == nil && address.Type == v1.NodeInternalIP && parsed.Is4() {
			return parsed, true
		}
	}
	return netip.Addr{}, false
}

// routeNodes has the pods of other nodes reached by way of these, from now on and until the context ends.
func (p *proxy) routeNodes(ctx context.Context, client kubernetes.Interface, link string) error {
	// Nodes tell how they are again and again, and take much memory for it.
	slim := informers.WithTransform(func(object any) (any, error) {
		if node, ok := object.(*v1.Node); ok {
			node.ManagedFields, node.Status.Images, node.Annotations = nil, nil, nil
		}
		return object, nil
	})
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, slim)
	nodes := factory.Core().V1().Nodes()
	changed := newChanges()
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed.wake() },
		UpdateFunc: func(any, any) { changed.wake() },
		DeleteFunc: func(any) { changed.wake() },
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) {
		return nil
	}
	routes := &nodeRoutes{link: link}
	sync := func() time.Duration { return p.syncNodes(nodes.Lister(), routes) }
	sync() // before a Service's address is taken for none of a node's
	go changed.follow(ctx, sync)
	return nil
}

func (p *proxy) syncNodes(nodes corelisters.NodeLister, routes *nodeRoutes) (again time.Duration) {
	list, err := nodes.List(labels.Everything())
	if err == nil {
		err = routes.keep(p.nodes.find(p.node, list))
	}
	p.wake() // what is a Service's address, and what a node's
	if err != nil {
		klog.ErrorS(err, "the routes to other nodes' pods", "retryIn", retry)
		return retry
	}
	return 0
}

// keep has exactly these routes there.
func (r *nodeRoutes) keep(wanted map[netip.Prefix]netip.Addr) error {
	link, err := netlink.LinkByName(r.link)
	if err != nil {
		return err
	}
	if r.there == nil {
		r.there = foundRoutes(link)
	}
	var problems []error
	for network, gateway := range r.there {
		if wanted[network] == gateway {
			continue
		}
		if err := netlink.RouteDel(routeBy(link, network, gateway)); err != nil && !errors.Is(err, unix.ESRCH) {
			problems = append(problems, fmt.Errorf("removing the route to %s by %s: %w", network, gateway, err))
			continue
		}
		delete(r.there, network)
	}
	for network, gateway := range wanted {
		if _, has := r.there[network]; has {
			continue // or the one of before could not be removed
		}
		if err := netlink.RouteAdd(routeBy(link, network, gateway)); err != nil && !errors.Is(err, unix.EEXIST) {
			problems = append(problems, fmt.Errorf("adding the route to %s by %s: %w", network, gateway, err))
			continue
		}
		r.there[network] = gateway
	}
	return errors.Join(problems...)
}

// foundRoutes are those that a process before this one has added.
func foundRoutes(link netlink.Link) map[netip.Prefix]netip.Addr {
	list, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		klog.ErrorS(err, "listing the routes of a process before this one", "link", link.Attrs().Name)
	}
	found := map[netip.Prefix]netip.Addr{}
	for _, route := range list {
		gateway, by := netip.AddrFromSlice(route.Gw.To4())
		if network, ok := prefixOf(route.Dst); by && ok {
			found[network] = gateway
		}
	}
	return found
}

func routeBy(link netlink.Link, network netip.Prefix, gateway netip.Addr) *netlink.Route {
	return &netlink.Route{
		LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(),
		Dst: &net.IPNet{IP: network.Addr().AsSlice(), Mask: net.CIDRMask(network.Bits(), network.Addr().BitLen())},
	}
}

func prefixOf(network *net.IPNet) (netip.Prefix, bool) {
	if network == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(network.IP.To4())
	bits, _ := network.Mask.Size()
	return netip.PrefixFrom(address, bits), ok
}
