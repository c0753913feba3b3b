package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"
)

// The pods' link is made with the first pod, which is then about to start.
const lookForLink = 100 * time.Millisecond

// frontend is an address that is listened on.
type frontend struct {
	protocol v1.Protocol
	address  netip.AddrPort
}

func (f frontend) String() string { return fmt.Sprintf("%s/%s", f.address, f.protocol) }

// poolName names the endpoints of a Service's port; a Service may treat callers within the cluster and others alike or
// not, and take some callers only. It may also be a pod's host port.
type poolName struct {
	port    kubeproxy.ServicePortName
	local   bool
	limited bool
	pod     types.UID
}

func (n poolName) String() string {
	kind := "the Service"
	if n.pod != "" {
		kind = "the pod"
	}
	return fmt.Sprintf("%s %s", kind, n.port.NamespacedName)
}

// server serves a frontend.
type server interface {
	io.Closer
	// endpointsChanged tells that the pool's endpoints are others now.
	endpointsChanged()
}

type proxy struct {
	changes

	node          string
	nodeAddresses []netip.Addr
	addresses     addressBook
	hostPorts     hostPorts
	recorder      events.EventRecorder
	// allows tells whether network policies let a client have an endpoint.
	allows func(protocol v1.Protocol, client netip.Addr, endpoint netip.AddrPort) bool
	// nodes are the cluster's others.
	nodes otherNodes
	// known is what is served, for others than the loop.
	known atomic.Pointer[map[frontend]*pool]

	serviceChanges *kubeproxy.ServiceChangeTracker
	sliceChanges   *kubeproxy.EndpointsChangeTracker

	// What follows belongs to the loop.
	services  kubeproxy.ServicePortMap
	endpoints kubeproxy.EndpointsMap
	pools     map[poolName]*pool
	served    map[frontend]served
	refused   map[refusal]string
	// What was refused by this sync.
	stillRefused map[refusal]bool
}

type served struct {
	pool   *pool
	server server
}

// addressBook has the Services' addresses on the node.
type addressBook interface {
	// keep has exactly these addresses on the node, of those that it has added.
	keep(addresses map[netip.Addr]bool) error
}

func newProxy(
	node string, nodeAddresses []netip.Addr, hostPorts hostPorts, addresses addressBook, recorder events.EventRecorder,
) *proxy {
	p := &proxy{node: node, nodeAddresses: nodeAddresses, hostPorts: hostPorts, addresses: addresses, recorder: recorder,
		changes:        newChanges(),
		allows:         func(v1.Protocol, netip.Addr, netip.AddrPort) bool { return true },
		serviceChanges: kubeproxy.NewServiceChangeTracker(v1.IPv4Protocol, nil, nil),
		sliceChanges:   kubeproxy.NewEndpointsChangeTracker(v1.IPv4Protocol, node, nil, nil),
		services:       kubeproxy.ServicePortMap{}, endpoints: kubeproxy.EndpointsMap{},
		pools: map[poolName]*pool{}, served: map[frontend]served{}, refused: map[refusal]string{}}
	return p
}

func (p *proxy) serviceChanged(before, after *v1.Service) {
	if p.serviceChanges.Update(before, after) {
		p.wake()
	}
}

func (p *proxy) sliceChanged(slice *discoveryv1.EndpointSlice, removed bool) {
	if p.sliceChanges.EndpointSliceUpdate(slice, removed) {
		p.wake()
	}
}

// loop serves what is known now, and again after each change, until the context ends.
func (p *proxy) loop(ctx context.Context) { p.follow(ctx, p.sync) }

// sync brings what is served in step with what is known. It returns when to try again, if something is to be tried
// again.
func (p *proxy) sync() (again time.Duration) {
	p.stillRefused = map[refusal]bool{}
	p.services.Update(p.serviceChanges)
	p.endpoints.Update(p.sliceChanges)
	wanted := p.frontends()
	p.known.Store(&wanted)
	for _, pool := range p.pools {
		pool.policiesChanged()
	}

	// First what ends: a port may go from one Service to another.
	for front, now := range p.served {
		if pool, ok := wanted[front]; !ok || pool != now.pool {
			now.server.Close()
			delete(p.served, front)
		}
	}
	if err := p.addresses.keep(p.serviceAddresses()); err == errNoLink {
		return lookForLink
	} else if err != nil {
		klog.ErrorS(err, "the Services' addresses", "retryIn", retry)
		again = retry
	}
	for front, pool := range wanted {
		if now, ok := p.served[front]; ok {
			now.server.endpointsChanged()
			continue
		}
		server, err := listen(front, pool)
		if err != nil {
			p.tell(front, pool.name, fmt.Errorf("%w; end the program that has it, or choose another port", err))
			again = retry
			continue
		}
		p.served[front] = served{pool, server}
	}
	maps.DeleteFunc(p.refused, func(about refusal, _ string) bool { return !p.stillRefused[about] })
	return again
}

// frontends fills the pools and returns what is to be listened on. Where no endpoint can be reached nothing listens, so
// that callers are refused at once, as kube-proxy does it.
func (p *proxy) frontends() map[frontend]*pool {
	wanted := map[frontend]*pool{}
	used := map[poolName]bool{}
	for name, service := range p.services {
		if service.Protocol() == v1.ProtocolSCTP {
			continue // gVisor has none
		}
		cluster, local, _, _ := kubeproxy.CategorizeEndpoints(p.endpoints[name], service, p.node, nil)
		serve := func(onlyLocal bool, addresses []netip.Addr, port int, sources []*net.IPNet) {
			endpoints := cluster
			if onlyLocal {
				endpoints = local
			}
			if len(endpoints) == 0 || port == 0 {
				return
			}
			key := poolName{port: name, local: onlyLocal, limited: len(sources) > 0}
			used[key] = true
			if p.pools[key] == nil {
				p.pools[key] = p.newPool(key)
			}
			p.pools[key].set(addressesOf(endpoints), affinityOf(service), prefixes(sources))
			for _, address := range addresses {
				wanted[frontend{service.Protocol(), netip.AddrPortFrom(address, uint16(port))}] = p.pools[key]
			}
		}
		serve(service.InternalPolicyLocal(), ipv4(service.ClusterIP()), service.Port(), nil)
		serve(service.ExternalPolicyLocal(), ipv4(service.ExternalIPs()...), service.Port(), nil)
		balanced := ipv4(service.LoadBalancerVIPs()...)
		serve(service.ExternalPolicyLocal(), balanced, service.Port(), service.LoadBalancerSourceRanges())
		serve(service.ExternalPolicyLocal(), p.nodeAddresses, service.NodePort(), nil)
	}
	p.addHostPorts(wanted, used)
	maps.DeleteFunc(p.pools, func(key poolName, pool *pool) bool { return !used[key] && !pool.isRelaying() })
	return wanted
}

// serves are the endpoints of what is served at an address, and whether something is.
func (p *proxy) serves(protocol v1.Protocol, address netip.AddrPort) ([]netip.AddrPort, bool) {
	known := p.known.Load()
	if known == nil {
		return nil, false
	}
	pool := (*known)[frontend{protocol, address}]
	if pool == nil {
		return nil, false
	}
	return pool.all(), true
}

func (p *proxy) newPool(name poolName) *pool {
	return newPool(name, func(client netip.Addr, endpoint netip.AddrPort) bool {
		return p.allows(name.port.Protocol, client, endpoint)
	})
}

// serviceAddresses are the addresses that the node answers for beside its own; also for Services without endpoints, so
// that callers are refused.
func (p *proxy) serviceAddresses() map[netip.Addr]bool {
	all := map[netip.Addr]bool{}
	for _, service := range p.services {
		ips := append(append(service.ExternalIPs(), service.LoadBalancerVIPs()...), service.ClusterIP())
		for _, address := range ipv4(ips...) {
			if !slices.Contains(p.nodeAddresses, address) && !p.nodes.has(address) {
				all[address] = true
			}
		}
	}
	return all
}

// refusal is what was told of a port that cannot be served.
type refusal struct {
	front frontend
	name  poolName
}

// tell says once in the log, and to who looks at the Service or the pod, that a port cannot be served.
func (p *proxy) tell(front frontend, name poolName, err error) {
	about := refusal{front, name}
	p.stillRefused[about] = true
	if p.refused[about] == err.Error() {
		return
	}
	p.refused[about] = err.Error()
	klog.ErrorS(err, "a port cannot be served", "by", name, "address", front)
	reference := &v1.ObjectReference{
		APIVersion: "v1", Kind: "Service", Namespace: name.port.Namespace, Name: name.port.Name,
	}
	if name.pod != "" {
		reference.Kind, reference.UID = "Pod", name.pod
	}
	p.recorder.Eventf(reference, nil, v1.EventTypeWarning, "FailedToListen", "Serving",
		"%s cannot be listened on: %v", front, err)
}
