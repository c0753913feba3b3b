// Package policy decides by NetworkPolicies who may talk to whom, as their API's documentation has it.
package policy

import (
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Flow is a question: may the source open this to the destination? What is answered to it goes the other way, and needs
// no rule.
type Flow struct {
	Source, Destination netip.Addr
	// Protocol is empty for what has no ports, such as ICMP; only rules without ports allow that.
	Protocol v1.Protocol
	// Port is the destination's.
	Port uint16
}

// Rules are what all policies together allow, among the pods that there are. They do not change: what does is another
// set of rules.
type Rules struct {
	// node are the node's own addresses: what comes from them, or goes to them, is always allowed, as the kubelet asks
	// pods.
	node map[netip.Addr]bool
	// vetted tells the addresses of other nodes: what comes from there to a pod has been asked for by the proxy there.
	vetted     func(netip.Addr) bool
	pods       map[netip.Addr]*pod
	namespaces map[string]labels.Set
}

// pod is what is known of one. Without labels it is known by its address alone, and what isolates any pod of its
// namespace isolates it.
type pod struct {
	namespace       string
	labels          labels.Set
	ports           []v1.ContainerPort
	ingress, egress direction
}

// direction is what a pod's policies say of it.
type direction struct {
	isolated bool
	rules    []rule
}

// rule allows some peers some ports.
type rule struct {
	namespace string // the policy's
	ports     []networkingv1.NetworkPolicyPort
	anyone    bool
	peers     []peer
}

// peer is either a block of addresses or a choice of pods.
type peer struct {
	block            netip.Prefix
	except           []netip.Prefix
	pods, namespaces labels.Selector
}

// NewRules compiles what there is: addresses are the pods', also of those of this node that the API does not know yet.
// A policy that cannot be understood allows nothing, and still isolates.
func NewRules(
	policies []*networkingv1.NetworkPolicy, pods []*v1.Pod, namespaces []*v1.Namespace,
	addresses map[netip.Addr]types.NamespacedName, node map[netip.Addr]bool, vetted func(netip.Addr) bool,
) *Rules {
	r := &Rules{node: node, vetted: vetted, pods: map[netip.Addr]*pod{}, namespaces: map[string]labels.Set{}}
	for _, namespace := range namespaces {
		r.namespaces[namespace.Name] = namespace.Labels
	}
	known := map[types.NamespacedName]*v1.Pod{}
	for _, pod := range pods {
		known[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
	}
	byNamespace := map[string][]compiled{}
	for _, policy := range policies {
		byNamespace[policy.Namespace] = append(byNamespace[policy.Namespace], compile(policy))
	}
	for address, name := range addresses {
		here := &pod{namespace: name.Namespace}
		object := known[name]
		if object != nil {
			here.labels, here.ports = labels.Merge(object.Labels, nil), portsOf(object)
		}
		for _, policy := range byNamespace[name.Namespace] {
			if object == nil {
				here.ingress.isolated = here.ingress.isolated || policy.ingress.isolated
				here.egress.isolated = here.egress.isolated || policy.egress.isolated
			} else if policy.selects(here.labels) {
				here.ingress.add(policy.ingress)
				here.egress.add(policy.egress)
			}
		}
		r.pods[address] = here
	}
	return r
}

func (d *direction) add(more direction) {
	d.isolated = d.isolated || more.isolated
	d.rules = append(d.rules, more.rules...)
}

// Inside tells the addresses of pods and of the node.
func (r *Rules) Inside(address netip.Addr) bool { return r.node[address] || r.pods[address] != nil }

// Allows answers a question by the policies of both ends.
func (r *Rules) Allows(flow Flow) bool {
	source, destination := r.pods[flow.Source], r.pods[flow.Destination]
	if source != nil && source.egress.isolated && !r.node[flow.Destination] &&
		!r.anyAllows(source.egress.rules, flow, flow.Destination, destination, destination) {
		return false
	}
	return destination == nil || !destination.ingress.isolated || r.node[flow.Source] || r.vetted(flow.Source) ||
		r.anyAllows(destination.ingress.rules, flow, flow.Source, source, destination)
}

// anyAllows tells whether one of the rules allows a peer the flow's port, which is one of the target's.
func (r *Rules) anyAllows(rules []rule, flow Flow, address netip.Addr, peer, target *pod) bool {
	return slices.ContainsFunc(rules, func(rule rule) bool {
		return rule.hasPort(flow, target) && (rule.anyone || r.hasPeer(rule, address, peer))
	})
}

func (r *Rules) hasPeer(rule rule, address netip.Addr, there *pod) bool {
	return slices.ContainsFunc(rule.peers, func(peer peer) bool {
		if peer.block.IsValid() {
			without := func(block netip.Prefix) bool { return block.Contains(address) }
			return peer.block.Contains(address) && !slices.ContainsFunc(peer.except, without)
		}
		switch {
		case there == nil || there.labels == nil && peer.pods != nil && !peer.pods.Empty():
			return false
		case peer.pods != nil && !peer.pods.Matches(there.labels):
			return false
		case peer.namespaces == nil:
			return there.namespace == rule.namespace
		}
		return peer.namespaces.Matches(r.namespaces[there.namespace])
	})
}

func (r rule) hasPort(flow Flow, target *pod) bool {
	if len(r.ports) == 0 {
		return true
	}
	return slices.ContainsFunc(r.ports, func(port networkingv1.NetworkPolicyPort) bool {
		protocol := v1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		switch {
		case protocol != flow.Protocol:
			return false
		case port.Port == nil:
			return true
		case port.Port.StrVal != "":
			return target != nil && slices.ContainsFunc(target.ports, func(named v1.ContainerPort) bool {
				return named.Name == port.Port.StrVal && named.ContainerPort == int32(flow.Port) && protocolOf(named) == protocol
			})
		case port.EndPort != nil:
			return port.Port.IntVal <= int32(flow.Port) && int32(flow.Port) <= *port.EndPort
		}
		return port.Port.IntVal == int32(flow.Port)
	})
}

func protocolOf(port v1.ContainerPort) v1.Protocol {
	if port.Protocol == "" {
		return v1.ProtocolTCP
	}
	return port.Protocol
}

// compiled is one policy.
type compiled struct {
	pods            labels.Selector // nil: all, as it cannot be understood
	ingress, egress direction
}

func (c compiled) selects(pod labels.Set) bool { return c.pods == nil || c.pods.Matches(pod) }

func compile(policy *networkingv1.NetworkPolicy) compiled {
	var c compiled
	c.pods, _ = metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	for _, kind := range policy.Spec.PolicyTypes {
		switch kind {
		case networkingv1.PolicyTypeIngress:
			c.ingress.isolated = true
			for _, one := range policy.Spec.Ingress {
				c.ingress.rules = append(c.ingress.rules, newRule(policy.Namespace, one.Ports, one.From))
			}
		case networkingv1.PolicyTypeEgress:
			c.egress.isolated = true
			for _, one := range policy.Spec.Egress {
				c.egress.rules = append(c.egress.rules, newRule(policy.Namespace, one.Ports, one.To))
			}
		}
	}
	return c
}

func newRule(
	namespace string, ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer,
) rule {
	r := rule{namespace: namespace, ports: ports, anyone: len(peers) == 0}
	for _, one := range peers {
		if compiled, ok := newPeer(one); ok {
			r.peers = append(r.peers, compiled)
		}
	}
	return r
}

// newPeer tells whether a peer is understood. The API has checked it; a block of IPv6 addresses has no pod here.
func newPeer(one networkingv1.NetworkPolicyPeer) (p peer, ok bool) {
	if one.IPBlock != nil {
		var err error
		if p.block, err = netip.ParsePrefix(one.IPBlock.CIDR); err != nil {
			return p, false
		}
		for _, text := range one.IPBlock.Except {
			except, err := netip.ParsePrefix(text)
			if err != nil {
				return p, false
			}
			p.except = append(p.except, except)
		}
		return p, true
	}
	for _, choice := range []struct {
		selector *metav1.LabelSelector
		compiled *labels.Selector
	}{{one.PodSelector, &p.pods}, {one.NamespaceSelector, &p.namespaces}} {
		if choice.selector == nil {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(choice.selector)
		if err != nil {
			return p, false
		}
		*choice.compiled = selector
	}
	return p, p.pods != nil || p.namespaces != nil
}

// portsOf are the ports that a pod's containers name, those of sidecars too.
func portsOf(pod *v1.Pod) []v1.ContainerPort {
	var all []v1.ContainerPort
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		all = append(all, container.Ports...)
	}
	return all
}
