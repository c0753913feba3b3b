// Package filter is a switch between the pods of a node and the node, which lets through what the network policies
// allow. gVisor's bridge has no filter, and its network no netfilter, so that every frame of theirs passes here.
package filter

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor-k3s/node/server/service-proxy/policy"

	"k8s.io/klog/v2"
)

// frameSize is more than the largest packet of pods (65521 bytes) and an Ethernet header.
const frameSize = 1 << 16

// Filter has pods on the one side and the node on the other. Each writes whole frames and reads them, as a tap does.
type Filter struct {
	flows *flows
	node  io.ReadWriter

	mutex     sync.RWMutex
	pods      map[mac]*Pod
	addresses map[netip.Addr]*Pod
}

// Pod is one on the filter.
type Pod struct {
	// Address is the only one that it can have: what comes from another is dropped.
	Address netip.Addr
	// MAC is that of its interface.
	MAC net.HardwareAddr
	// Link is where its frames come from and go to.
	Link io.ReadWriter

	mac mac
}

// New makes a filter without pods, and passes on what the node sends until its link is closed. allows must not call the
// filter; inside tells the addresses of pods and of the node.
func New(node io.ReadWriter, allows func(policy.Flow) bool, inside func(netip.Addr) bool) *Filter {
	f := &Filter{
		flows: newFlows(allows, inside), node: node, pods: map[mac]*Pod{}, addresses: map[netip.Addr]*Pod{},
	}
	go read(node, f.fromNode)
	return f
}

// RulesChanged has what was allowed so far asked for again, with the next packet of each flow.
func (f *Filter) RulesChanged() { f.flows.rulesChanged() }

// Add lets a pod talk, until its link is closed or it is removed.
func (f *Filter) Add(pod *Pod) {
	pod.mac = mac(pod.MAC)
	f.mutex.Lock()
	f.pods[pod.mac] = pod
	f.addresses[pod.Address] = pod
	f.mutex.Unlock()
	go read(pod.Link, func(frame []byte) { f.fromPod(pod, frame) })
}

// Remove has nothing go to a pod any more.
func (f *Filter) Remove(pod *Pod) {
	defer f.flows.forgetAllBy(pod.Address)
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.pods[pod.mac] == pod {
		delete(f.pods, pod.mac)
	}
	if f.addresses[pod.Address] == pod {
		delete(f.addresses, pod.Address)
	}
}

func read(from io.Reader, take func(frame []byte)) {
	buffer := make([]byte, frameSize)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.EOF) {
				klog.Fatalf("a link of the filter ended: %v", err) // the process after this one makes all of them anew
			}
			return
		}
		take(buffer[:n])
	}
}

// send loses the frame where it cannot be sent, as a link does.
func send(to io.Writer, frame []byte) {
	if _, err := to.Write(frame); err != nil {
		klog.V(4).InfoS("a frame was lost", "err", err)
	}
}

func (f *Filter) fromPod(pod *Pod, frame []byte) {
	to, from, kind, payload, ok := ethernet(frame)
	if !ok || from != pod.mac {
		return
	}
	switch kind {
	case typeARP:
		asked, ok := parseARP(payload)
		if !ok || asked.sender != pod.mac || asked.source != pod.Address && !asked.source.IsUnspecified() {
			return
		}
		f.passOn(to, asked.target, frame, true)
	case typeIPv4:
		if p, ok := parseIPv4(payload); ok && p.source.Addr() == pod.Address {
			f.deliver(to, p, frame, true)
		}
	}
}

func (f *Filter) fromNode(frame []byte) {
	to, _, kind, payload, ok := ethernet(frame)
	if !ok {
		return
	}
	switch kind {
	case typeARP:
		if asked, ok := parseARP(payload); ok {
			f.passOn(to, asked.target, frame, false)
		}
	case typeIPv4:
		if p, ok := parseIPv4(payload); ok {
			f.deliver(to, p, frame, false)
		}
	}
}

// passOn sends an ARP packet to whom it is for: the pod that is asked for, or the node, which is the bridge's others.
func (f *Filter) passOn(to mac, target netip.Addr, frame []byte, fromPod bool) {
	f.mutex.RLock()
	pod := f.pods[to]
	if to.isGroup() {
		pod = f.addresses[target]
	}
	f.mutex.RUnlock()
	switch {
	case pod != nil:
		send(pod.Link, frame)
	case fromPod:
		send(f.node, frame)
	}
}

// deliver sends a packet to whom it is for, if it passes.
func (f *Filter) deliver(to mac, p packet, frame []byte, fromPod bool) {
	if to.isGroup() {
		f.toAll(p, frame, fromPod)
		return
	}
	f.mutex.RLock()
	pod := f.pods[to]
	f.mutex.RUnlock()
	// A pod's frames reach it at its own address only.
	if pod == nil && !fromPod || pod != nil && p.destination.Addr() != pod.Address {
		return
	}
	if !f.flows.passes(p, fromPod, time.Now()) {
		klog.V(4).InfoS("not allowed", "from", p.source, "to", p.destination, "protocol", p.protocol)
		return
	}
	if pod != nil {
		send(pod.Link, frame)
	} else {
		send(f.node, frame)
	}
}

// toAll sends a packet for everybody to each one whom its sender may reach.
func (f *Filter) toAll(p packet, frame []byte, fromPod bool) {
	f.mutex.RLock()
	defer f.mutex.RUnlock()
	for _, pod := range f.pods {
		one := p.key
		one.destination = netip.AddrPortFrom(pod.Address, p.destination.Port())
		if !p.piece && pod.Address != p.source.Addr() && f.flows.ask(one) {
			send(pod.Link, frame)
		}
	}
	if fromPod && !p.piece && f.flows.ask(p.key) {
		send(f.node, frame)
	}
}
