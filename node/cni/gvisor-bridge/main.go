// Command gvisor-bridge is a CNI plugin that attaches pods to a bridge with what
// gVisor's netlink offers: bridge and veth links, addresses, routes. The stock
// bridge plugin needs hairpin mode, and ptp routes with a source address; gVisor
// refuses both.
//
// Configuration: {"name", "type": "gvisor-bridge", "bridge", "mtu", "ipam": {"type": "host-local", …}, "dns"};
// see pluginConf. The bridge is in a namespace of its own (see switch.go for why);
// the node's link to it has the name of the bridge and carries the gateway address
// of each range, and every pod gets a default route through that. Pods reach each
// other directly, and the node forwards for them. There is no hairpin (a pod
// reaches itself through a Service by way of the node's proxy) and no masquerade
// (gVisor has no netfilter).
package main

import (
	"runtime"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// supportedVersions starts where CHECK does.
var supportedVersions = version.PluginSupports("0.4.0", "1.0.0", "1.1.0")

func main() {
	// Namespaces belong to threads: main must stay on the one it started on.
	runtime.LockOSThread()
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    cmdAdd,
		Del:    cmdDel,
		Check:  cmdCheck,
		Status: cmdStatus,
		GC:     cmdGC,
	}, supportedVersions, "CNI plugin gvisor-bridge: pods on a bridge inside a gVisor sandbox")
}

// join is errors.Join for what skel prints: of several errors it would print only
// the first that is a CNI error, and a CNI error is what host-local's are.
func join(errs ...error) error {
	var first error
	var all []string
	for _, err := range errs {
		if err == nil {
			continue
		}
		if first == nil {
			first = err
		}
		all = append(all, err.Error())
	}
	if len(all) < 2 {
		return first
	}
	return types.NewError(types.ErrInternal, strings.Join(all, "; "), "")
}
