package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor-k3s/node/server/service-proxy/policy"

	v1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/events"
)

// fakeNetwork notes where ports are: "bridge" or "filter".
type fakeNetwork struct {
	*testing.T
	at     map[string]string
	broken error
	gone   string
}

func (n *fakeNetwork) toBridge(port string) error {
	if port == n.gone {
		return errors.New("link not found")
	}
	if n.broken == nil {
		n.at[port] = "bridge"
	}
	return n.broken
}

func (n *fakeNetwork) toFilter(port string, _ int) (*os.File, error) {
	if n.broken != nil {
		return nil, n.broken
	}
	n.at[port] = "filter"
	return n.tap(), nil
}

func (n *fakeNetwork) openFilter() (*os.File, int, error) { return n.tap(), 1500, n.broken }

func (n *fakeNetwork) prune(links map[string]podLink) error {
	maps.DeleteFunc(n.at, func(port, _ string) bool { return links[port].port == "" })
	return nil
}

// tap is a file that is read from until it is closed.
func (n *fakeNetwork) tap() *os.File {
	n.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { writer.Close() })
	return reader
}

// policed has an enforcer of its own, with what it hears of in these fields.
type policed struct {
	*enforcer
	*fakeNetwork
	events   *events.FakeRecorder
	policies []*networkingv1.NetworkPolicy
	pods     []*v1.Pod
	unknown  bool
	applied  int
}

func newPoliced(t *testing.T) *policed {
	p := &policed{fakeNetwork: &fakeNetwork{T: t, at: map[string]string{}}, events: events.NewFakeRecorder(10)}
	p.enforcer = &enforcer{
		network: p.fakeNetwork, links: podLinks(t.TempDir()), recorder: p.events,
		serves:    func(v1.Protocol, netip.AddrPort) ([]netip.AddrPort, bool) { return nil, false },
		node:      "own",
		otherNode: func(address netip.Addr) bool { return address == netip.MustParseAddr("10.107.0.6") },
		applied:   func() { p.applied++ },
		listed: func() ([]*networkingv1.NetworkPolicy, []*v1.Pod, []*v1.Namespace, bool) {
			return p.policies, p.pods, nil, !p.unknown
		},
		filtered: map[string]*member{}, changes: newChanges(),
	}
	t.Cleanup(func() {
		p.policies = nil
		p.fakeNetwork.broken = nil
		p.enforcer.sync()
	})
	return p
}

// link tells of a pod's link, as the CNI plugin does.
func (p *policed) link(port, address string) {
	p.Helper()
	text := fmt.Sprintf(`{"namespace":"x","name":%q,"address":%q,"gateway":"10.42.0.1","mac":"02:00:00:00:00:01"}`,
		"pod-"+port, address)
	if err := os.WriteFile(filepath.Join(string(p.links), port), []byte(text), 0o600); err != nil {
		p.Fatal(err)
	}
}

func (p *policed) unlink(port string) {
	p.Helper()
	if err := os.Remove(filepath.Join(string(p.links), port)); err != nil {
		p.Fatal(err)
	}
}

func (p *policed) deny(spec string) {
	p.Helper()
	policy := &networkingv1.NetworkPolicy{}
	policy.Namespace = "x"
	if err := json.Unmarshal([]byte(spec), &policy.Spec); err != nil {
		p.Fatal(err)
	}
	p.policies = append(p.policies, policy)
}

const denyIngress = `{"podSelector":{},"policyTypes":["Ingress"]}`

func (p *policed) places(want string) {
	p.Helper()
	var all []string
	for _, port := range slices.Sorted(maps.Keys(p.at)) {
		all = append(all, port+" "+p.at[port])
	}
	expect(p.T, "the ports", strings.Join(all, ", "), want)
}

func TestPlacesPorts(t *testing.T) {
	p := newPoliced(t)
	p.link("veth1", "10.42.0.2")
	expect(t, "a pod without policies", p.place("veth1"), nil)
	p.places("veth1 bridge")
	p.deny(denyIngress)
	p.link("veth2", "10.42.0.3")
	expect(t, "a pod with policies", p.place("veth2"), nil)
	p.places("veth1 filter, veth2 filter")
	expect(t, "one of which nothing is told", p.place("veth3") != nil, true)
	expect(t, "is allowed", p.allowsEndpoint("TCP", netip.MustParseAddr("10.42.0.2"),
		netip.MustParseAddrPort("10.42.0.3:80")), false)

	p.unlink("veth1")
	p.enforcer.sync()
	p.places("veth2 filter")
	p.policies = nil
	p.enforcer.sync()
	p.places("veth2 bridge")
	expect(t, "is allowed", p.allowsEndpoint("TCP", netip.MustParseAddr("10.42.0.2"),
		netip.MustParseAddrPort("10.42.0.3:80")), true)
}

// What is not known, or does not work, opens nothing; it is told at the policies, and tried again.
func TestFailsClosed(t *testing.T) {
	p := newPoliced(t)
	p.deny(denyIngress)
	p.link("veth1", "10.42.0.2")
	p.unknown = true
	expect(t, "before all pods are known", p.place("veth1") != nil, true)
	p.places("")
	p.unknown, p.fakeNetwork.broken = false, errors.New("no room")
	expect(t, "what does not work", p.place("veth1") != nil, true)
	p.places("")
	go p.loop(t.Context())
	event := <-p.events.Events
	expect(t, event, event, "Warning NotEnforced This policy is not enforced: no room")
	p.mutex.Lock()
	p.fakeNetwork.broken = nil
	p.mutex.Unlock()
	eventually(t, "it is tried again", func() bool {
		p.mutex.Lock()
		defer p.mutex.Unlock()
		return p.at["veth1"] == "filter"
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	try := func(context.Context) (bool, error) { return is(), nil }
	if err := wait.PollUntilContextTimeout(t.Context(), 10*time.Millisecond, 20*time.Second, true, try); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// A process before this one has left ports on the filter.
func TestTakesUpWhatIsThere(t *testing.T) {
	p := newPoliced(t)
	p.link("veth1", "10.42.0.2")
	p.at["veth1"], p.at["veth2"] = "filter", "filter"
	p.deny(denyIngress)
	p.enforcer.sync()
	p.places("veth1 filter")
	p.policies = nil
	p.enforcer.sync()
	p.places("veth1 bridge")
}

// A Service is as open to a client as the most open of its endpoints.
func TestAllowsServices(t *testing.T) {
	p := newPoliced(t)
	service := netip.MustParseAddrPort("10.43.0.7:80")
	endpoints := []netip.AddrPort{netip.MustParseAddrPort("10.42.0.3:8080"), netip.MustParseAddrPort("10.42.0.4:8080")}
	p.serves = func(protocol v1.Protocol, at netip.AddrPort) ([]netip.AddrPort, bool) {
		return endpoints, protocol == v1.ProtocolTCP && at == service
	}
	for i, address := range []string{"10.42.0.2", "10.42.0.3", "10.42.0.4"} {
		p.link(fmt.Sprintf("veth%d", i), address)
	}
	p.pods = []*v1.Pod{{}}
	p.pods[0].Namespace, p.pods[0].Name, p.pods[0].Labels = "x", "pod-veth1", map[string]string{"closed": ""}
	p.deny(`{"podSelector":{"matchLabels":{"closed":""}},"policyTypes":["Ingress"]}`)
	p.pods = append(p.pods, podNamed("pod-veth0"), podNamed("pod-veth2"))
	p.enforcer.sync()
	flow := policy.Flow{
		Source: netip.MustParseAddr("10.42.0.2"), Destination: service.Addr(), Protocol: v1.ProtocolTCP, Port: service.Port(),
	}
	expect(t, "one endpoint is open", p.allows(flow), true)
	endpoints = endpoints[:1]
	expect(t, "none is", p.allows(flow), false)
	flow.Port = 81
	expect(t, "an address where nothing is served", p.allows(flow), true)
}

func podNamed(name string) *v1.Pod {
	pod := &v1.Pod{}
	pod.Namespace, pod.Name = "x", name
	return pod
}

func TestAnswersThePlugin(t *testing.T) {
	p := newPoliced(t)
	socket := filepath.Join(t.TempDir(), "socket")
	for range 2 { // the second time one is left there
		if err := p.answer(t.Context(), socket); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(line string) string {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintln(conn, line)
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
	p.link("veth1", "10.42.0.2")
	expect(t, "placed", ask("veth1"), "\n")
	p.places("veth1 bridge")
	p.fakeNetwork.broken = errors.New("no\nroom")
	expect(t, "not placed", ask("veth2"), "no; room\n")
	info, err := os.Stat(socket)
	expect(t, "who may ask", fmt.Sprint(info.Mode().Perm(), err), "-rw------- <nil>")
}

// Pods of other nodes are known by what the API tells, and what comes from another node by way of a Service has been
// asked for there.
func TestPodsOfOtherNodes(t *testing.T) {
	p := newPoliced(t)
	p.deny(`{"podSelector":{"matchLabels":{"app":"b"}},"policyTypes":["Ingress"],
		"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"a"}}}]}]}`)
	pod := func(name, app, node, address string, phase v1.PodPhase) *v1.Pod {
		return &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, Labels: map[string]string{"app": app}},
			Spec:       v1.PodSpec{NodeName: node}, Status: v1.PodStatus{PodIP: address, Phase: phase},
		}
	}
	p.pods = []*v1.Pod{
		pod("pod-veth1", "b", "own", "10.42.0.2", v1.PodRunning),
		pod("a", "a", "other", "10.42.1.2", v1.PodRunning),
		pod("c", "c", "other", "10.42.1.3", v1.PodRunning),
		pod("ended", "a", "other", "10.42.1.3", v1.PodSucceeded),
	}
	p.link("veth1", "10.42.0.2")
	expect(t, "the pod", p.place("veth1"), nil)
	for source, want := range map[string]bool{
		"10.42.1.2": true, "10.42.1.3": false, "10.107.0.6": true, "10.107.0.10": false,
	} {
		got := p.allowsEndpoint(v1.ProtocolTCP, netip.MustParseAddr(source), netip.MustParseAddrPort("10.42.0.2:80"))
		expect(t, source, got, want)
	}
}

// Where there is no policy no pod is kept in memory.
func TestHearsOfPodsFromTheFirstPolicyOn(t *testing.T) {
	client := fake.NewClientset(podNamed("a"))
	w := newWatched(client)
	changed := make(chan struct{}, 100)
	if err := w.start(t.Context(), func() { changed <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	for _, action := range client.Actions() {
		expect(t, "asked for", action.GetResource().Resource, "networkpolicies")
	}
	policy := &networkingv1.NetworkPolicy{}
	policy.Namespace, policy.Name = "x", "p"
	store := w.policies.Networking().V1().NetworkPolicies().Informer().GetStore()
	eventually(t, "the policy is heard of", func() bool {
		// The fake API tells nobody of what is made between list and watch.
		_ = client.Tracker().Delete(networkingv1.SchemeGroupVersion.WithResource("networkpolicies"), "x", "p")
		if err := client.Tracker().Add(policy.DeepCopy()); err != nil {
			t.Fatal(err)
		}
		return len(store.List()) > 0
	})
	for range 2 {
		select {
		case <-changed:
		case <-time.After(20 * time.Second):
			t.Fatal("a change is not told")
		}
	}
	eventually(t, "pods are heard of", func() bool {
		policies, pods, _, known := w.listed()
		if known {
			expect(t, "policies and pods", fmt.Sprint(len(policies), len(pods)), "1 1")
		}
		return known
	})
}

// A port that cannot be moved keeps no other pod from starting.
func TestAPortThatIsGone(t *testing.T) {
	p := newPoliced(t)
	p.link("veth1", "10.42.0.2")
	p.fakeNetwork.gone = "veth1"
	p.link("veth2", "10.42.0.3")
	expect(t, "the other one", p.place("veth2"), nil)
	expect(t, "the one that is gone", p.place("veth1") != nil, true)
	p.places("veth2 bridge")
}

// A container that is added again has another link.
func TestALinkThatIsMadeAnew(t *testing.T) {
	p := newPoliced(t)
	p.deny(denyIngress)
	p.link("veth1", "10.42.0.2")
	expect(t, "the first", p.place("veth1"), nil)
	first := p.filtered["veth1"]
	text := `{"namespace":"x","name":"pod-veth1","address":"10.42.0.2","mac":"02:00:00:00:00:02"}`
	if err := os.WriteFile(filepath.Join(string(p.links), "veth1"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "the second", p.place("veth1"), nil)
	expect(t, "is another", p.filtered["veth1"] != first && p.filtered["veth1"] != nil, true)
}

// The node is who has its addresses, which are its own and the pods' gateway.
func TestTheNodeIsAlwaysAllowed(t *testing.T) {
	p := newPoliced(t)
	p.nodeAddresses = []netip.Addr{netip.MustParseAddr("10.107.0.2")}
	p.deny(denyIngress)
	p.link("veth1", "10.42.0.2")
	p.link("veth2", "10.42.0.3")
	p.enforcer.sync()
	for address, want := range map[string]bool{"10.42.0.2": false, "10.42.0.1": true, "10.107.0.2": true} {
		allowed := p.allowsEndpoint("TCP", netip.MustParseAddr(address), netip.MustParseAddrPort("10.42.0.3:80"))
		expect(t, address, allowed, want)
	}
}

// A pod whose link could not be read when the last policy went is put on the bridge once it can be.
func TestUnreadableLinkAfterTheLastPolicy(t *testing.T) {
	p := newPoliced(t)
	p.deny(denyIngress)
	p.link("veth1", "10.42.0.2")
	p.enforcer.sync()
	p.places("veth1 filter")
	if err := os.WriteFile(filepath.Join(string(p.links), "veth1"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.policies = nil
	expect(t, "it is told", strings.Contains(fmt.Sprint(p.enforcer.sync()), "veth1: "), true)
	p.link("veth1", "10.42.0.2")
	expect(t, "it is tried again", p.enforcer.sync(), nil)
	p.places("veth1 bridge")
}

// One pod whose link is not told of well does not keep a policy from being enforced for the others.
func TestUnreadableLink(t *testing.T) {
	p := newPoliced(t)
	p.deny(`{"podSelector":{"matchLabels":{"none":"has"}}}`)
	p.link("veth1", "10.42.0.2")
	p.link("veth2", "10.42.0.3")
	p.enforcer.sync()
	if err := os.WriteFile(filepath.Join(string(p.links), "veth3"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.deny(denyIngress)
	expect(t, "it is told", strings.Contains(fmt.Sprint(p.enforcer.sync()), "veth3: "), true)
	client, endpoint := netip.MustParseAddr("10.42.0.2"), netip.MustParseAddrPort("10.42.0.3:80")
	expect(t, "the new policy holds", p.allowsEndpoint("TCP", client, endpoint), false)
	p.places("veth1 filter, veth2 filter")
}
