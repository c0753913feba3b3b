package main

import (
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
)

// cmdGC removes the links and leases of this network's attachments that are not
// among the valid ones.
func cmdGC(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData, args.Args)
	if err != nil {
		return err
	}
	valid := map[types.GCAttachment]bool{}
	validPorts := map[string]bool{}
	for _, a := range conf.ValidAttachments {
		valid[a] = true
		validPorts[portName(conf.Name, a.ContainerID, a.IfName)] = true
	}
	return join(
		gcHostPorts(conf, valid),
		gcPodLinks(conf, validPorts),
		amongPorts(conf.Bridge, func() error { return gcPorts(networkPrefix(conf.Name), validPorts) }),
		gcLeases(conf.LeaseDir, valid, args.StdinData),
	)
}

// gcPorts is called where ports are.
func gcPorts(prefix string, valid map[string]bool) error {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return fmt.Errorf("listing links: %w", err)
	}
	var failed []error
	for _, link := range links {
		name := link.Attrs().Name
		// Not by its type, which gVisor forgets of a link that has come from another namespace.
		if strings.HasPrefix(name, prefix) && !valid[name] {
			failed = append(failed, deleteLink(name))
		}
	}
	return join(failed...)
}
