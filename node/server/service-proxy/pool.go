package main

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"
)

// pool holds the endpoints of a Service's port, and which client stays with which.
type pool struct {
	name poolName
	// allows tells whether network policies let a client have an endpoint.
	allows func(client netip.Addr, endpoint netip.AddrPort) bool

	mutex     sync.Mutex
	endpoints []netip.AddrPort
	affinity  time.Duration  // 0: none
	sources   []netip.Prefix // whose connections are taken; none: everybody's
	clients   map[netip.Addr]sticky
	relayed   map[*relayed]bool
}

// relayed is a connection that is being relayed.
type relayed struct {
	client   netip.Addr
	endpoint netip.AddrPort
	reset    func()
}

type sticky struct {
	endpoint netip.AddrPort
	until    time.Time
}

func newPool(name poolName, allows func(netip.Addr, netip.AddrPort) bool) *pool {
	return &pool{name: name, allows: allows, clients: map[netip.Addr]sticky{}, relayed: map[*relayed]bool{}}
}

// set replaces the endpoints; clients of one that is gone are free to get another.
func (p *pool) set(endpoints []netip.AddrPort, affinity time.Duration, sources []netip.Prefix) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.endpoints, p.affinity, p.sources = endpoints, affinity, sources
	now := time.Now()
	for client, s := range p.clients {
		if affinity == 0 || now.After(s.until) || !slices.Contains(endpoints, s.endpoint) {
			delete(p.clients, client)
		}
	}
}

// has tells whether an endpoint is still one, for a client.
func (p *pool) has(client netip.Addr, endpoint netip.AddrPort) bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return slices.Contains(p.endpoints, endpoint) && p.allows(client, endpoint)
}

// all are the endpoints.
func (p *pool) all() []netip.AddrPort {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.endpoints
}

// relaying notes a connection until end is called.
func (p *pool) relaying(connection *relayed) (end func()) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.relayed[connection] = true
	return func() {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		delete(p.relayed, connection)
	}
}

func (p *pool) isRelaying() bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return len(p.relayed) > 0
}

// policiesChanged breaks the connections that are allowed no longer.
func (p *pool) policiesChanged() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for connection := range p.relayed {
		if !p.allows(connection.client, connection.endpoint) {
			connection.reset()
		}
	}
}

// candidates returns the endpoints in the order in which they are to be tried for a client: the one that it stays with,
// then the others by chance. A client that is not taken has none.
func (p *pool) candidates(client netip.Addr) []netip.AddrPort {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	from := func(source netip.Prefix) bool { return source.Contains(client) }
	if len(p.sources) > 0 && !slices.ContainsFunc(p.sources, from) {
		return nil
	}
	denied := func(endpoint netip.AddrPort) bool { return !p.allows(client, endpoint) }
	order := slices.DeleteFunc(slices.Clone(p.endpoints), denied)
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	if s, ok := p.clients[client]; ok && p.affinity > 0 && time.Now().Before(s.until) {
		if i := slices.Index(order, s.endpoint); i > 0 {
			order[0], order[i] = order[i], order[0]
		}
	}
	return order
}

// chosen notes which endpoint a client got; with affinity it stays with that one.
func (p *pool) chosen(client netip.Addr, endpoint netip.AddrPort) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.affinity > 0 {
		p.clients[client] = sticky{endpoint, time.Now().Add(p.affinity)}
	}
}

func affinityOf(service kubeproxy.ServicePort) time.Duration {
	if service.SessionAffinityType() != v1.ServiceAffinityClientIP {
		return 0
	}
	return time.Duration(service.StickyMaxAgeSeconds()) * time.Second
}

func addressesOf(endpoints []kubeproxy.Endpoint) []netip.AddrPort {
	var all []netip.AddrPort
	for _, endpoint := range endpoints {
		if address, err := netip.ParseAddrPort(endpoint.String()); err == nil {
			all = append(all, address)
		}
	}
	return all
}

func prefixes(networks []*net.IPNet) []netip.Prefix {
	var all []netip.Prefix
	for _, network := range networks {
		if prefix, err := netip.ParsePrefix(network.String()); err == nil {
			all = append(all, prefix)
		}
	}
	return all
}

func ipv4(ips ...net.IP) []netip.Addr {
	var all []netip.Addr
	for _, ip := range ips {
		if address, ok := netip.AddrFromSlice(ip.To4()); ok {
			all = append(all, address)
		}
	}
	return all
}
