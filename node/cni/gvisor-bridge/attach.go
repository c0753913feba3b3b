package main

import (
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
)

// cmdAdd attaches a pod. What an earlier ADD of the same container and interface
// left is replaced, lease included, so the pod's address may change. When it
// fails nothing of the attachment is left, neither links nor lease.
func cmdAdd(args *skel.CmdArgs) (err error) {
	conf, err := parseConf(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	if conf.PrevResult != nil {
		return problems{
			"prevResult: this plugin makes the pod's interface, so it must come first in the list of plugins",
		}.err()
	}
	pod, err := ns.GetNS(args.Netns)
	if err != nil {
		what := fmt.Sprintf("opening the pod's network namespace %q", args.Netns)
		return types.NewError(types.ErrInvalidNetNS, what, err.Error())
	}
	defer pod.Close()

	sw, uplink, err := ensureSwitch(conf)
	if err != nil {
		return err
	}
	defer sw.Close()
	port := portName(conf.Name, args.ContainerID, args.IfName)
	if err := join(forgetPodLink(conf, port), deletePort(conf.Bridge, port)); err != nil {
		return err
	}
	// What still has the pod's interface name is someone else's.
	if err := pod.Do(func(ns.NetNS) error { return checkFree(args.IfName) }); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = join(err, forgetPodLink(conf, port), deletePort(conf.Bridge, port))
		}
	}()
	var portMAC string
	err = sw.Do(func(ns.NetNS) error {
		if err := addVeth(port, args.IfName, pod); err != nil {
			return err
		}
		link, err := netlinksafe.LinkByName(port)
		if err != nil {
			return fmt.Errorf("looking up link %q: %w", port, err)
		}
		portMAC = link.Attrs().HardwareAddr.String()
		if conf.Policies != "" {
			return bringUp(link, conf.MTU)
		}
		return plugIn(port, conf.MTU)
	})
	if err != nil {
		return err
	}

	lease, err := takeLease(args.StdinData)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = join(err, releaseLease(args.StdinData))
		}
	}()
	for _, address := range nodeAddresses(conf, lease) {
		if err := addAddress(uplink, address); err != nil {
			return err
		}
	}
	if err := ensureForwarding(forwardingFile); err != nil {
		return err
	}

	result := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: conf.Bridge, Mac: uplink.Attrs().HardwareAddr.String()},
			{Name: port, Mac: portMAC, Sandbox: switchPath(conf.Bridge)},
			{Name: args.IfName, Sandbox: args.Netns},
		},
		IPs:    lease.IPs,
		Routes: podRoutes(lease),
		DNS:    lease.DNS,
	}
	if !conf.DNS.IsEmpty() {
		result.DNS = conf.DNS
	}
	var addresses []net.IPNet
	for _, ip := range result.IPs {
		ip.Interface = current.Int(2)
		addresses = append(addresses, ip.Address)
	}
	err = pod.Do(func(ns.NetNS) error {
		link, err := configurePod(args.IfName, conf.MTU, addresses, result.Routes)
		if err != nil {
			return err
		}
		result.Interfaces[2].Mac = link.Attrs().HardwareAddr.String()
		return nil
	})
	if err != nil {
		return err
	}
	if err := tellPodLink(conf, port, args.Args, result); err != nil {
		return err
	}
	if err := tellHostPorts(conf, args.ContainerID, args.Args, result.IPs); err != nil {
		return err
	}
	return types.PrintResult(result, conf.CNIVersion)
}

// cmdDel detaches a pod; whatever is gone already is no error. The pod's
// namespace is not needed: its interface goes with the port.
func cmdDel(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	port := portName(conf.Name, args.ContainerID, args.IfName)
	return join(
		forgetHostPorts(conf, args.ContainerID),
		forgetPodLink(conf, port),
		deletePort(conf.Bridge, port),
		releaseLease(args.StdinData),
	)
}

// deletePort unplugs a pod, which removes its interface; one that is gone already is no error.
func deletePort(bridge, port string) error {
	return amongPorts(bridge, func() error { return deleteLink(port) })
}

func checkFree(ifName string) error {
	link, err := findLink(ifName)
	if err != nil {
		return err
	}
	if link != nil {
		return fmt.Errorf("the pod already has an interface %q that is not of this network: remove it, "+
			"or use another interface name", ifName)
	}
	return nil
}

// nodeAddresses are what the node's link to the bridge has: the gateways, of which host-local fills in the first
// address of a subnet where none is configured, and the addresses that the configuration names.
func nodeAddresses(conf *pluginConf, lease *current.Result) []net.IPNet {
	var all []net.IPNet
	for _, ip := range lease.IPs {
		all = append(all, net.IPNet{IP: ip.Gateway, Mask: ip.Address.Mask})
	}
	for _, address := range conf.NodeAddresses {
		all = append(all, net.IPNet{IP: address.To4(), Mask: net.CIDRMask(32, 32)})
	}
	return all
}

// podRoutes are IPAM's, those without a gateway through the bridge, and a default
// route where IPAM gives none.
func podRoutes(lease *current.Result) []*types.Route {
	gateway := lease.IPs[0].Gateway
	hasDefault := false
	var routes []*types.Route
	for _, r := range lease.Routes {
		r = r.Copy()
		if r.GW == nil {
			r.GW = gateway
		}
		hasDefault = hasDefault || isDefault(&r.Dst)
		routes = append(routes, r)
	}
	if !hasDefault {
		routes = append(routes, &types.Route{Dst: net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, GW: gateway})
	}
	return routes
}

// isDefault also takes nil, which is how netlink may report a default route's destination.
func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}
