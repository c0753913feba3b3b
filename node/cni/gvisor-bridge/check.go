package main

import (
	"fmt"
	"net"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
)

// cmdCheck compares an attachment with prevResult, what ADD returned, and reports every difference.
func cmdCheck(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	if conf.PrevResult == nil {
		return problems{"prevResult: missing, CHECK needs what ADD returned"}.err()
	}
	want, err := current.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return problems{fmt.Sprintf("prevResult: %v", err)}.err()
	}
	pod, err := ns.GetNS(args.Netns)
	if err != nil {
		what := fmt.Sprintf("opening the pod's network namespace %q", args.Netns)
		return types.NewError(types.ErrInvalidNetNS, what, err.Error())
	}
	defer pod.Close()

	return join(
		checkLease(args.StdinData),
		checkNode(conf, portName(conf.Name, args.ContainerID, args.IfName), want),
		pod.Do(func(ns.NetNS) error { return checkPod(args.IfName, args.Netns, conf.MTU, want) }),
	)
}

// checkNode looks at the node's side: its link with the node's addresses, and
// that link's other end and the pod's on the bridge.
func checkNode(conf *pluginConf, port string, want *current.Result) error {
	node, err := findLink(conf.Bridge)
	if err != nil {
		return err
	}
	var wrong []error
	if node == nil {
		wrong = append(wrong, fmt.Errorf("the node's link %q is gone", conf.Bridge))
	} else {
		wrong = append(wrong, checkAddresses(node, nodeAddresses(conf, want)))
	}
	sw, err := openSwitch(conf.Bridge)
	if err != nil {
		return err
	}
	if sw == nil {
		return join(append(wrong, fmt.Errorf("the namespace of bridge %q is gone", conf.Bridge))...)
	}
	defer sw.Close()
	// A port is on the bridge, or, with network policies, on one of its own.
	filtered := false
	err = inSwitch(filterName(conf.Bridge), func() error {
		link, err := findLink(port)
		filtered = link != nil && link.Attrs().MasterIndex != 0
		return err
	})
	ports := []string{uplinkName}
	if !filtered {
		ports = append(ports, port)
	}
	return join(append(wrong, err, sw.Do(func(ns.NetNS) error { return checkPorts(ports...) }))...)
}

// checkPorts looks whether links are on the bridge. Called in the switch.
func checkPorts(ports ...string) error {
	bridge, err := findLink(bridgeName)
	if err != nil {
		return err
	}
	if bridge == nil {
		return fmt.Errorf("the bridge is gone")
	}
	var wrong []error
	for _, name := range ports {
		port, err := findLink(name)
		switch {
		case err != nil:
			return err
		case port == nil:
			wrong = append(wrong, fmt.Errorf("port %q is gone", name))
		case port.Attrs().MasterIndex != bridge.Attrs().Index:
			wrong = append(wrong, fmt.Errorf("port %q is not on the bridge", name))
		}
	}
	return join(wrong...)
}

// checkPod looks at the pod's interface: state, MAC address, MTU, addresses, routes.
func checkPod(ifName, sandbox string, mtu int, want *current.Result) error {
	i := slices.IndexFunc(want.Interfaces, func(i *current.Interface) bool {
		return i.Name == ifName && i.Sandbox == sandbox
	})
	if i < 0 {
		return fmt.Errorf("prevResult has no interface %q in %q", ifName, sandbox)
	}
	link, err := findLink(ifName)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("the pod's interface %q is gone", ifName)
	}
	var wrong []error
	attrs := link.Attrs()
	if attrs.Flags&net.FlagUp == 0 {
		wrong = append(wrong, fmt.Errorf("the pod's interface %q is down", ifName))
	}
	if mac := attrs.HardwareAddr.String(); want.Interfaces[i].Mac != mac {
		wrong = append(wrong, fmt.Errorf("the pod's interface %q has MAC address %s, not %s",
			ifName, mac, want.Interfaces[i].Mac))
	}
	if attrs.MTU != mtu {
		wrong = append(wrong, fmt.Errorf("the pod's interface %q has MTU %d, not %d", ifName, attrs.MTU, mtu))
	}
	var addresses []net.IPNet
	for _, ip := range want.IPs {
		if ip.Interface != nil && *ip.Interface == i {
			addresses = append(addresses, ip.Address)
		}
	}
	return join(append(wrong, checkAddresses(link, addresses), checkRoutes(link, want.Routes))...)
}

func checkAddresses(link netlink.Link, want []net.IPNet) error {
	have, err := netlinksafe.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing addresses of %q: %w", link.Attrs().Name, err)
	}
	var wrong []error
	for _, address := range want {
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == address.String() }) {
			wrong = append(wrong, fmt.Errorf("%q has no address %s", link.Attrs().Name, address.String()))
		}
	}
	return join(wrong...)
}

func checkRoutes(link netlink.Link, want []*types.Route) error {
	have, err := netlinksafe.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing routes of %q: %w", link.Attrs().Name, err)
	}
	var wrong []error
	for _, w := range want {
		found := slices.ContainsFunc(have, func(r netlink.Route) bool {
			sameDst := isDefault(r.Dst) && isDefault(&w.Dst) || r.Dst != nil && r.Dst.String() == w.Dst.String()
			return sameDst && r.Gw.Equal(w.GW)
		})
		if !found {
			wrong = append(wrong, fmt.Errorf("%q has no route %s via %s", link.Attrs().Name, w.Dst.String(), w.GW))
		}
	}
	return join(wrong...)
}

// cmdStatus says whether ADD can work: code 50 when it cannot.
func cmdStatus(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	if err := join(checkName(conf.Bridge), ipamStatus()); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, pluginType+": pods cannot be attached", err.Error())
	}
	return nil
}

// checkName refuses a name that another link of the node has.
func checkName(bridge string) error {
	link, err := findLink(bridge)
	if link == nil || err != nil {
		return err
	}
	var uplink netlink.Link
	err = inSwitch(bridge, func() (err error) {
		uplink, err = findLink(uplinkName)
		return err
	})
	if err == nil && uplink == nil {
		err = notOurs(link)
	}
	return err
}
