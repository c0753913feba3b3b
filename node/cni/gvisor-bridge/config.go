package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
)

const (
	pluginType = "gvisor-bridge"

	// defaultMTU is Ethernet's.
	defaultMTU = 1500
	// minMTU is what every IPv4 host must take (RFC 791); maxMTU leaves the 14
	// bytes of Ethernet header that gVisor counts as part of a link's MTU.
	minMTU, maxMTU = 576, 65535 - 14
)

// pluginConf is the network configuration, validated and with defaults filled in.
type pluginConf struct {
	types.PluginConf
	// Bridge names the node's link to the bridge, and the namespace that holds the
	// bridge: see switch.go. Required. Both are made on first use and never removed.
	Bridge string
	// MTU is the largest IP packet, in bytes, that pods and the bridge send. Default 1500.
	MTU int
	// NodeAddresses are other addresses of the node that pods are to reach, such as the API server's. They are put on the
	// node's link to the bridge as well: gVisor answers a packet from the address that it came to, and cannot look up the
	// pod's MAC address from one that the link does not have.
	NodeAddresses []net.IP
	// HostPorts is the folder where the service proxy is told of the pods' host ports; without it there are none.
	HostPorts string
	// Policies is the folder that is shared with the service proxy, which enforces network policies: "links" tells of the
	// pods' links, and at "socket" it puts each pod's port in its place. Without it ports are on the bridge.
	Policies string
	// RuntimeConfig is what the runtime says of the pod.
	RuntimeConfig struct {
		PortMappings []portMapping `json:"portMappings"`
	}
	// LeaseDir is where host-local keeps this network's leases.
	LeaseDir string
}

// configKeys lists what a configuration may hold: what a person writes, then
// what the runtime (libcni) adds.
var configKeys = []string{
	"cniVersion", "name", "type", "bridge", "mtu", "nodeAddresses", "hostPorts", "policies", "ipam", "dns",
	"args", "capabilities", "runtimeConfig", "prevResult", "cni.dev/attachments", "cni.dev/valid-attachments",
}

// bridgePluginKeys are options of the stock bridge plugin, with the reason why
// there is no such thing here: people come from there.
var bridgePluginKeys = map[string]string{
	"isGateway":                 "always on here: leave it out",
	"isDefaultGateway":          "always on here: leave it out",
	"forceAddress":              "not needed: addresses are added beside others",
	"ipMasq":                    "gVisor has no netfilter: leave it out",
	"ipMasqBackend":             "gVisor has no netfilter: leave it out",
	"hairpinMode":               "gVisor's bridge has no hairpin mode: leave it out",
	"promiscMode":               "gVisor's bridge has no promiscuous mode: leave it out",
	"vlan":                      "gVisor's bridge has no VLANs: leave it out",
	"vlanTrunk":                 "gVisor's bridge has no VLANs: leave it out",
	"macspoofchk":               "gVisor has no nftables: leave it out",
	"enabledad":                 "IPv4 only: leave it out",
	"portIsolation":             "gVisor's bridge has no port isolation: leave it out",
	"disableContainerInterface": "a pod always gets its interface: leave it out",
}

// ipamKeys are host-local's.
var ipamKeys = []string{
	"type", "subnet", "rangeStart", "rangeEnd", "gateway", "ranges", "routes", "dataDir", "resolvConf",
}

// capabilities are those that host-local serves, and that of host ports.
var capabilities = []string{"ips", "ipRanges", "portMappings"}

// problems collects what is wrong with a configuration, so that all of it is told at once.
type problems []string

func (p *problems) addf(format string, args ...any) {
	*p = append(*p, fmt.Sprintf(format, args...))
}

// field decodes one key's value; a missing key leaves dst alone.
func (p *problems) field(conf map[string]json.RawMessage, key string, dst any, want string) {
	raw, ok := conf[key]
	if !ok {
		return
	}
	if err := json.Unmarshal(raw, dst); err != nil {
		p.addf("%s: %s is not %s", key, compact(raw), want)
	}
}

// folder reports a path that is not absolute; there may be none.
func (p *problems) folder(key, path string) {
	if path != "" && !filepath.IsAbs(path) {
		p.addf("%s: %q is no absolute path of a folder", key, path)
	}
}

// unknown reports the keys of conf that are not allowed.
func (p *problems) unknown(where string, conf map[string]json.RawMessage, allowed []string, hints map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(conf)) {
		if slices.Contains(allowed, key) {
			continue
		}
		if hint, ok := hints[key]; ok {
			p.addf("%s%s: %s", where, key, hint)
			continue
		}
		p.addf("%s%s: unknown key, allowed are %s", where, key, strings.Join(allowed, ", "))
	}
}

// err is nil, or one CNI error with code 7 that lists every problem.
func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return types.NewError(types.ErrInvalidNetworkConfig, pluginType+": invalid network configuration",
		strings.Join(p, "; "))
}

// parseConf reads and validates a network configuration. envArgs is CNI_ARGS,
// where host-local takes a wished-for address from. The error is a *types.Error
// with code 7 and lists every problem found.
func parseConf(stdin []byte, envArgs string) (*pluginConf, error) {
	var p problems
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal(stdin, &keys); err != nil {
		p.addf("not a JSON object: %v", err)
		return nil, p.err()
	}
	p.unknown("", keys, configKeys, bridgePluginKeys)

	conf := &pluginConf{MTU: defaultMTU}
	p.field(keys, "cniVersion", &conf.CNIVersion, "a string")
	p.field(keys, "name", &conf.Name, "a string")
	p.field(keys, "type", &conf.Type, "a string")
	p.field(keys, "bridge", &conf.Bridge, "a string")
	p.field(keys, "mtu", &conf.MTU, "a whole number")
	p.field(keys, "nodeAddresses", &conf.NodeAddresses, "a list of IP addresses")
	p.field(keys, "hostPorts", &conf.HostPorts, "a string")
	p.field(keys, "policies", &conf.Policies, "a string")
	p.field(keys, "runtimeConfig", &conf.RuntimeConfig, "an object of the runtime's")
	p.field(keys, "dns", &conf.DNS, "a DNS object: nameservers, domain, search, options")
	p.field(keys, "prevResult", &conf.RawPrevResult, "a CNI result")
	p.field(keys, "cni.dev/valid-attachments", &conf.ValidAttachments, "a list of {containerID, ifname}")
	p.field(keys, "capabilities", &conf.Capabilities, "an object of booleans")

	if conf.Type != pluginType {
		p.addf("type: %q is not %q", conf.Type, pluginType)
	}
	if conf.Bridge == "" {
		p.addf("bridge: missing, give a name for the node's link to it, such as \"cni0\"")
	} else if err := utils.ValidateInterfaceName(conf.Bridge); err != nil {
		p.addf("bridge: %q is not an interface name: %s", conf.Bridge, strings.TrimSpace(err.Msg+" "+err.Details))
	}
	if conf.MTU < minMTU || conf.MTU > maxMTU {
		p.addf("mtu: %d is not within %d to %d bytes", conf.MTU, minMTU, maxMTU)
	}
	for _, address := range conf.NodeAddresses {
		if address.To4() == nil {
			p.addf("nodeAddresses: %s is not IPv4", address)
		}
	}
	p.folder("hostPorts", conf.HostPorts)
	p.folder("policies", conf.Policies)
	if conf.Capabilities["portMappings"] && conf.HostPorts == "" {
		p.addf("capabilities.portMappings: it takes hostPorts, the folder where the service proxy is told of them")
	}
	for _, name := range slices.Sorted(maps.Keys(conf.Capabilities)) {
		if conf.Capabilities[name] && !slices.Contains(capabilities, name) {
			p.addf("capabilities.%s: not supported, allowed are %s", name, strings.Join(capabilities, ", "))
		}
	}
	conf.LeaseDir = p.ipam(stdin, envArgs, keys, conf.Name)
	if err := p.err(); err != nil {
		return nil, err
	}
	if err := version.ParsePrevResult(&conf.PluginConf); err != nil {
		p.addf("prevResult: %v", err)
	}
	return conf, p.err()
}

// ipam validates the ipam section with host-local's own code, and returns the folder of its leases.
func (p *problems) ipam(stdin []byte, envArgs string, conf map[string]json.RawMessage, network string) string {
	raw, ok := conf["ipam"]
	if !ok {
		p.addf("ipam: missing, give {\"type\": %q, \"subnet\": \"10.42.0.0/24\"}", ipamType)
		return ""
	}
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &keys); err != nil {
		p.addf("ipam: %s is not an object", compact(raw))
		return ""
	}
	p.unknown("ipam.", keys, ipamKeys, nil)
	var kind string
	_ = json.Unmarshal(keys["type"], &kind) // not a string: reported as not host-local
	if kind != ipamType {
		p.addf("ipam.type: %q is not supported, allowed is %q", kind, ipamType)
		return ""
	}
	ipamConf, _, err := allocator.LoadIPAMConfig(stdin, envArgs)
	if err != nil {
		p.addf("ipam: %v", err)
		return ""
	}
	for _, set := range ipamConf.Ranges {
		for _, r := range set {
			if r.Subnet.IP.To4() == nil {
				p.addf("ipam: %s is not IPv4: gVisor cannot forward IPv6 between a pod and the node's other addresses",
					subnetString(r))
			}
		}
	}
	for _, r := range ipamConf.Routes {
		if r.Dst.IP.To4() == nil {
			p.addf("ipam.routes: %s is not IPv4", r.Dst.String())
		}
		if r.GW != nil && r.GW.To4() == nil {
			p.addf("ipam.routes: %s: gw %s is not IPv4", r.Dst.String(), r.GW)
		}
		if r.MTU != 0 || r.AdvMSS != 0 || r.Priority != 0 || r.Table != nil || r.Scope != nil {
			p.addf("ipam.routes: %s: only dst and gw are supported, gVisor's routes have no mtu, advmss, "+
				"priority, table or scope", r.Dst.String())
		}
	}
	return leaseDir(ipamConf.DataDir, network)
}

func subnetString(r allocator.Range) string {
	return (*net.IPNet)(&r.Subnet).String()
}

func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return b.String()
}
