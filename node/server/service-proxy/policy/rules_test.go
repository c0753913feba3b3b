package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// The pods of every case, by their addresses: two namespaces with two pods each, and one that the API does not know.
var addresses = map[netip.Addr]types.NamespacedName{
	ip("10.42.0.2"): {Namespace: "x", Name: "server"},
	ip("10.42.0.3"): {Namespace: "x", Name: "client"},
	ip("10.42.0.4"): {Namespace: "y", Name: "server"},
	ip("10.42.0.5"): {Namespace: "y", Name: "client"},
	ip("10.42.0.9"): {Namespace: "x", Name: "unknown"},
}

var names = map[string]string{
	"x/server": "10.42.0.2", "x/client": "10.42.0.3", "y/server": "10.42.0.4", "y/client": "10.42.0.5",
	"x/unknown": "10.42.0.9", "node": "10.42.0.1", "outside": "192.0.2.7",
}

func ip(text string) netip.Addr { return netip.MustParseAddr(text) }

func TestRules(t *testing.T) {
	const toServer = `{podSelector: {matchLabels: {app: server}}, `
	type answers map[string]bool // "from to port/protocol"
	for name, test := range map[string]struct {
		policies []string
		want     answers
	}{
		"none": {nil, answers{"x/client x/server 80/TCP": true, "x/unknown y/server 80/TCP": true}},
		"ingress denied": {[]string{toServer + `policyTypes: [Ingress]}`}, answers{
			"x/client x/server 80/TCP": false, "outside x/server 80/TCP": false, "x/client x/server 0/": false,
			"node x/server 80/TCP": true, "x/server x/client 80/TCP": true, "x/client y/server 80/TCP": true,
			"x/client x/unknown 80/TCP": false,
		}},
		"egress denied": {[]string{`{podSelector: {}, policyTypes: [Egress]}`}, answers{
			"x/client x/server 80/TCP": false, "x/client outside 80/TCP": false, "x/client node 80/TCP": true,
			"y/client x/server 80/TCP": true, "x/unknown outside 443/TCP": false,
		}},
		"one empty rule allows all": {[]string{`{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}`}, answers{
			"y/client x/server 80/TCP": true, "outside x/server 1/UDP": true, "y/client x/server 0/": true,
		}},
		"a number, a name, a range": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP, port: 81}, {protocol: TCP, port: web}, ` +
				`{protocol: UDP, port: 5000, endPort: 5002}]}]}`,
		}, answers{
			"y/client x/server 81/TCP": true, "y/client x/server 80/TCP": true, "y/client x/server 80/UDP": false,
			"y/client x/server 5000/UDP": true, "y/client x/server 5002/UDP": true, "y/client x/server 5003/UDP": false,
			"y/client x/server 4999/UDP": false, "y/client x/server 5001/TCP": false, "y/client x/server 0/": false,
		}},
		"a name is the other end's with egress": {[]string{
			`{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], ` +
				`egress: [{ports: [{protocol: TCP, port: web}]}]}`,
		}, answers{
			"x/client y/server 80/TCP": true, "x/client y/server 81/TCP": false, "x/client outside 80/TCP": false,
		}},
		"a port of a sidecar": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP, port: mesh}]}]}`,
		}, answers{"y/client x/server 15000/TCP": true, "y/client x/server 15001/TCP": false}},
		"pods of its own namespace": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`,
		}, answers{
			"x/client x/server 80/TCP": true, "y/client x/server 80/TCP": false, "outside x/server 80/TCP": false,
			"x/unknown x/server 80/TCP": false,
		}},
		"an unknown pod is none that lacks a label": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchExpressions: ` +
				`[{key: app, operator: NotIn, values: [evil]}]}}]}]}`,
		}, answers{"x/client x/server 80/TCP": true, "x/unknown x/server 80/TCP": false}},
		"namespaces": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {team: of-y}}}]}]}`,
		}, answers{"y/client x/server 80/TCP": true, "x/client x/server 80/TCP": false}},
		"pods of namespaces": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: ` +
				`{app: client}}}]}]}`,
		}, answers{
			"y/client x/server 80/TCP": true, "x/client x/server 80/TCP": true, "y/server x/server 80/TCP": false,
		}},
		"a block without a part": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.42.0.0/24, except: [10.42.0.5/32]}}]}]}`,
		}, answers{
			"x/client x/server 80/TCP": true, "y/client x/server 80/TCP": false, "outside x/server 80/TCP": false,
		}},
		"policies add up": {[]string{
			toServer + `policyTypes: [Ingress]}`,
			toServer + `policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}`,
			`{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}`,
		}, answers{
			"outside x/server 80/TCP": true, "x/client x/server 80/TCP": true, "y/client x/server 80/TCP": false,
			"outside x/client 80/TCP": false,
		}},
		"both ends have their say": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}`,
			`{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{protocol: TCP, port: 80}]}]}`,
		}, answers{
			"x/client x/server 80/TCP": true, "x/client x/server 81/TCP": false, "x/server x/client 81/TCP": true,
		}},
		"what nobody understands allows nothing": {[]string{
			toServer + `policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}`,
			`{podSelector: {matchExpressions: [{key: a, operator: Nonsense}]}, policyTypes: [Egress]}`,
		}, answers{"x/client x/server 80/TCP": false, "x/server outside 80/TCP": false}},
	} {
		t.Run(name, func(t *testing.T) {
			var policies []*networkingv1.NetworkPolicy
			for _, text := range test.policies {
				policy := &networkingv1.NetworkPolicy{}
				policy.Namespace = "x"
				if err := yaml.UnmarshalStrict([]byte(text), &policy.Spec); err != nil {
					t.Fatal(err)
				}
				policies = append(policies, policy)
			}
			node, vetted := map[netip.Addr]bool{ip("10.42.0.1"): true}, func(netip.Addr) bool { return false }
			rules := NewRules(policies, pods(t), namespaces(), addresses, node, vetted)
			for question, want := range test.want {
				if got := rules.Allows(flow(t, question)); got != want {
					t.Errorf("%s: %v, not %v", question, got, want)
				}
			}
		})
	}
}

func flow(t *testing.T, question string) Flow {
	t.Helper()
	var from, to, port string
	if _, err := fmt.Sscan(question, &from, &to, &port); err != nil {
		t.Fatal(err)
	}
	number, protocol, _ := strings.Cut(port, "/")
	parsed, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return Flow{
		Source: ip(names[from]), Destination: ip(names[to]), Protocol: v1.Protocol(protocol), Port: uint16(parsed),
	}
}

func pods(t *testing.T) (all []*v1.Pod) {
	for _, namespace := range []string{"x", "y"} {
		for _, name := range []string{"server", "client"} {
			pod := &v1.Pod{}
			pod.Namespace, pod.Name, pod.Labels = namespace, name, map[string]string{"app": name}
			if name == "server" {
				spec := `{containers: [{name: c, ports: [{name: web, containerPort: 80}]}], initContainers: [{name: s, ` +
					`restartPolicy: Always, ports: [{name: mesh, containerPort: 15000}]}]}`
				if err := yaml.UnmarshalStrict([]byte(spec), &pod.Spec); err != nil {
					t.Fatal(err)
				}
			}
			all = append(all, pod)
		}
	}
	return all
}

func namespaces() (all []*v1.Namespace) {
	for _, name := range []string{"x", "y"} {
		namespace := &v1.Namespace{}
		namespace.Name, namespace.Labels = name, map[string]string{"team": "of-" + name}
		all = append(all, namespace)
	}
	return all
}
