package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gvisor-k3s/node/server/service-proxy/filter"
	"gvisor-k3s/node/server/service-proxy/policy"

	v1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
)

// network is where the pods' ports are; see [portNetwork].
type network interface {
	toBridge(port string) error
	toFilter(port string, mtu int) (*os.File, error)
	openFilter() (tap *os.File, mtu int, err error)
	// prune removes what was there for other ports than these.
	prune(links map[string]podLink) error
}

// enforcer has every pod's port where it belongs: on the bridge with the node, and on the filter while there are
// network policies. All of them, as one that is not isolated may ask one that is, through a Service too.
type enforcer struct {
	changes

	network  network
	links    podLinks
	recorder events.EventRecorder
	// serves are the endpoints of what the node serves at an address, and whether it serves there.
	serves func(v1.Protocol, netip.AddrPort) ([]netip.AddrPort, bool)
	// node is the node's name, and otherNode tells the addresses of others.
	node      string
	otherNode func(netip.Addr) bool
	// nodeAddresses are the node's own, beside those that pods have for their gateways.
	nodeAddresses []netip.Addr
	// applied is called after each change of the rules.
	applied func()

	// What there is; known is false until all of it has been heard.
	listed func() (policies []*networkingv1.NetworkPolicy, pods []*v1.Pod, namespaces []*v1.Namespace, known bool)

	// rules are nil while there are no policies.
	rules atomic.Pointer[policy.Rules]

	mutex    sync.Mutex
	filter   *filter.Filter
	tap      *os.File
	mtu      int
	filtered map[string]*member
	// opening tells that every port is to be on the bridge, open that all of them are.
	opening, open bool
	// pruned tells that nothing is left of ports that are gone, as after a process before this one.
	pruned bool
}

// member is a pod on the filter.
type member struct {
	pod *filter.Pod
	tap *os.File
}

// allows decides on a flow, by the rules of now. One to a Service is allowed if one to any of its endpoints is: those
// are then the only ones that it gets.
func (e *enforcer) allows(flow policy.Flow) bool {
	rules := e.rules.Load()
	if rules == nil {
		return true
	}
	endpoints, served := e.serves(flow.Protocol, netip.AddrPortFrom(flow.Destination, flow.Port))
	if !served {
		return rules.Allows(flow)
	}
	for _, endpoint := range endpoints {
		flow.Destination, flow.Port = endpoint.Addr(), endpoint.Port()
		if rules.Allows(flow) {
			return true
		}
	}
	return false
}

func (e *enforcer) inside(address netip.Addr) bool {
	rules := e.rules.Load()
	return rules != nil && rules.Inside(address)
}

// allowsEndpoint tells whether a Service may pass a client on to an endpoint.
func (e *enforcer) allowsEndpoint(protocol v1.Protocol, client netip.Addr, endpoint netip.AddrPort) bool {
	rules := e.rules.Load()
	return rules == nil || rules.Allows(policy.Flow{
		Source: client, Destination: endpoint.Addr(), Protocol: protocol, Port: endpoint.Port(),
	})
}

// enforce has policies enforced, until the context ends; it returns once each new pod's port is put in its place. Where
// the sandbox has no taps, its policies are told of only.
func enforce(ctx context.Context, o options, client kubernetes.Interface, proxy *proxy) error {
	watched := newWatched(client)
	e := &enforcer{
		network: portNetwork{o.link}, links: podLinks(filepath.Join(o.policies, "links")),
		recorder: proxy.recorder, serves: proxy.serves, node: proxy.node, otherNode: proxy.nodes.has,
		nodeAddresses: proxy.nodeAddresses, applied: proxy.wake, listed: watched.listed, changes: newChanges(),
		filtered: map[string]*member{},
	}
	proxy.allows = e.allowsEndpoint
	if o.noFilter {
		cannot := errors.New("this sandbox's gVisor cannot filter what pods send, and every pod reaches every other")
		watched.tell = func(one *networkingv1.NetworkPolicy) { e.tell(cannot, []*networkingv1.NetworkPolicy{one}) }
		e.listed = noPolicies
	}
	if err := mayReadPolicies(ctx, client); err != nil {
		return err
	}
	if err := watched.start(ctx, e.wake); err != nil {
		return err
	}
	if err := watchFolder(ctx, string(e.links), e.wake); err != nil {
		return fmt.Errorf("the pods' links: %w", err)
	}
	if err := e.answer(ctx, filepath.Join(o.policies, "socket")); err != nil {
		return err
	}
	go e.loop(ctx)
	return nil
}

// mayReadPolicies waits until the server has given this program the right to, soon after its own start.
func mayReadPolicies(ctx context.Context, client kubernetes.Interface) error {
	for {
		_, err := client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		klog.V(1).InfoS("network policies cannot be read yet", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(lookForLink):
		}
	}
}

// answer puts the ports in place that the CNI plugin names, a line each, on a Unix socket; it answers with an empty
// line or with what is wrong.
func (e *enforcer) answer(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // such as too many open files, which passes
				klog.ErrorS(err, "accepting", "address", socket)
				time.Sleep(10 * time.Millisecond)
				continue
			}
			go e.answerOne(conn)
		}
	}()
	return nil
}

func (e *enforcer) answerOne(conn net.Conn) {
	defer conn.Close()
	port, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	answer := ""
	if err := e.place(strings.TrimSpace(port)); err != nil {
		answer = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	fmt.Fprintln(conn, answer)
}

// loop keeps in step until the context ends. What fails is tried again, and told where somebody relies on it.
func (e *enforcer) loop(ctx context.Context) {
	told := ""
	e.follow(ctx, func() (again time.Duration) {
		e.mutex.Lock()
		err := e.sync()
		e.mutex.Unlock()
		if now := fmt.Sprint(err); now != told {
			told = now
			policies, _, _, _ := e.listed()
			e.tell(err, policies)
		}
		if err != nil {
			return retry
		}
		return 0
	})
}

// tell says at each policy that it is not enforced, lest somebody relies on it.
func (e *enforcer) tell(err error, policies []*networkingv1.NetworkPolicy) {
	if err == nil {
		return
	}
	klog.ErrorS(err, "network policies")
	for _, one := range policies {
		e.recorder.Eventf(one, nil, v1.EventTypeWarning, "NotEnforced", "Serving", "This policy is not enforced: %v", err)
	}
}

// place puts a new pod's port where it belongs, before the pod can send anything.
func (e *enforcer) place(port string) error {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	err := e.sync()
	switch {
	case e.filtered[port] != nil:
		return nil
	case e.open || e.opening: // where another pod's port cannot be moved this one's can
		return e.network.toBridge(port)
	case err == nil:
		err = fmt.Errorf("nothing is told of a pod at %q", port)
	}
	return err
}

// sync compiles the rules, and has every port where it belongs. One that cannot be moved is left where its pod talks to
// nobody. The caller holds the mutex.
func (e *enforcer) sync() error {
	policies, pods, namespaces, known := e.listed()
	if !known {
		return errors.New("not all pods and namespaces are known yet")
	}
	if len(policies) == 0 && e.open {
		return nil // the plugin has each new port placed, and removes those of pods that end
	}
	links, err := e.links.read()
	if len(policies) == 0 {
		if err != nil {
			return err // and tried again: once all are open nobody looks at what could not be read
		}
		return e.openAll(links)
	}
	// From here on nothing that fails leaves the rules of before, which may allow what a new policy forbids.
	node := map[netip.Addr]bool{}
	for _, address := range e.nodeAddresses {
		node[address] = true
	}
	addresses := elsewhere(e.node, pods)
	for _, link := range links {
		addresses[link.Address] = link.pod()
		node[link.Gateway] = true
	}
	e.open, e.opening = false, false
	e.rules.Store(policy.NewRules(policies, pods, namespaces, addresses, node, e.otherNode))
	err = errors.Join(err, e.forgetOthers(links), e.filterAll(links))
	e.announce()
	return err
}

// elsewhere are the addresses of pods on other nodes, whose links nobody tells of here.
func elsewhere(node string, pods []*v1.Pod) map[netip.Addr]types.NamespacedName {
	addresses := map[netip.Addr]types.NamespacedName{}
	for _, pod := range pods {
		ended := pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed // another may have its address
		address, err := netip.ParseAddr(pod.Status.PodIP)
		if err == nil && !ended && !pod.Spec.HostNetwork && pod.Spec.NodeName != node {
			addresses[address] = types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
		}
	}
	return addresses
}

func (e *enforcer) announce() {
	if e.filter != nil {
		e.filter.RulesChanged()
	}
	e.applied()
}

// forgetOthers forgets the pods that are gone.
func (e *enforcer) forgetOthers(links map[string]podLink) error {
	gone := !e.pruned
	for port, member := range e.filtered {
		if link := links[port]; link.Address != member.pod.Address || link.MAC != member.pod.MAC.String() {
			e.leave(port)
			gone = true
		}
	}
	if !gone {
		return nil
	}
	err := e.network.prune(links)
	e.pruned = err == nil
	return err
}

// leave takes a pod from the filter.
func (e *enforcer) leave(port string) {
	if member := e.filtered[port]; member != nil {
		e.filter.Remove(member.pod)
		member.tap.Close()
		delete(e.filtered, port)
	}
}

// openAll puts every port on the bridge, and ends the filter.
func (e *enforcer) openAll(links map[string]podLink) error {
	if e.rules.Swap(nil) != nil {
		e.announce()
	}
	// First the filter's own port: the bridge would send to it what is for the pods that it knows there.
	if e.tap != nil {
		e.tap.Close()
		e.tap = nil
	}
	e.opening = true
	var problems []error
	for port := range links {
		e.leave(port)
		problems = append(problems, e.network.toBridge(port))
	}
	problems = append(problems, e.forgetOthers(links))
	e.filter = nil
	err := errors.Join(problems...)
	e.open = err == nil
	return err
}

// filterAll puts every port on the filter.
func (e *enforcer) filterAll(links map[string]podLink) error {
	if len(links) > 0 && e.tap == nil {
		tap, mtu, err := e.network.openFilter()
		if err != nil {
			return err
		}
		e.tap, e.mtu = tap, mtu
		e.filter = filter.New(tap, e.allows, e.inside)
	}
	var problems []error
	for port, link := range links {
		if e.filtered[port] == nil {
			problems = append(problems, e.join(link))
		}
	}
	return errors.Join(problems...)
}

func (e *enforcer) join(link podLink) error {
	hardware, err := link.hardware()
	if err != nil {
		return err
	}
	tap, err := e.network.toFilter(link.port, e.mtu)
	if err != nil {
		return err
	}
	pod := &filter.Pod{Address: link.Address, MAC: hardware, Link: tap}
	e.filtered[link.port] = &member{pod, tap}
	e.filter.Add(pod)
	return nil
}

// watched hears of policies, and, from the first of them on, of pods and namespaces: most clusters have none, and need
// not keep all pods in memory.
type watched struct {
	policies informers.SharedInformerFactory
	others   informers.SharedInformerFactory
	began    atomic.Bool
	// tell is called for each policy where none can be enforced.
	tell func(*networkingv1.NetworkPolicy)
}

func newWatched(client kubernetes.Interface) *watched {
	return &watched{
		policies: informers.NewSharedInformerFactory(client, 0),
		others:   informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(onlyWhatRulesNeed)),
	}
}

// onlyWhatRulesNeed leaves out the rest of a pod or namespace.
func onlyWhatRulesNeed(object any) (any, error) {
	about := func(meta metav1.ObjectMeta) metav1.ObjectMeta {
		return metav1.ObjectMeta{
			Namespace: meta.Namespace, Name: meta.Name, Labels: meta.Labels, ResourceVersion: meta.ResourceVersion,
		}
	}
	switch object := object.(type) {
	case *v1.Pod:
		pod := &v1.Pod{
			ObjectMeta: about(object.ObjectMeta),
			Spec:       v1.PodSpec{NodeName: object.Spec.NodeName, HostNetwork: object.Spec.HostNetwork},
			Status:     v1.PodStatus{Phase: object.Status.Phase, PodIP: object.Status.PodIP},
		}
		for _, container := range append(object.Spec.InitContainers, object.Spec.Containers...) {
			pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Ports: container.Ports})
		}
		return pod, nil
	case *v1.Namespace:
		return &v1.Namespace{ObjectMeta: about(object.ObjectMeta)}, nil
	}
	return object, nil
}

// start hears of policies until the context ends, and returns once it has heard of all that there are.
func (w *watched) start(ctx context.Context, changed func()) error {
	handlers := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed() },
		UpdateFunc: func(before, after any) {
			if matters(before, after) {
				changed()
			}
		},
		DeleteFunc: func(any) { changed() },
	}
	policies := w.policies.Networking().V1().NetworkPolicies().Informer()
	begin := func(object any) {
		if w.tell != nil {
			w.tell(as[networkingv1.NetworkPolicy](object))
			return
		}
		if !w.began.Swap(true) {
			w.others.Start(ctx.Done())
		}
		changed()
	}
	first := handlers
	first.AddFunc = begin
	watching, err := policies.AddEventHandler(first)
	if err != nil {
		return err
	}
	others := w.others.Core().V1()
	for _, informer := range []cache.SharedIndexInformer{others.Pods().Informer(), others.Namespaces().Informer()} {
		if _, err := informer.AddEventHandler(handlers); err != nil {
			return err
		}
	}
	w.policies.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), watching.HasSynced) {
		return ctx.Err()
	}
	return nil
}

// matters tells whether rules depend on a change.
func matters(before, after any) bool {
	switch before := before.(type) {
	case *v1.Pod:
		after := after.(*v1.Pod)
		return !maps.Equal(before.Labels, after.Labels) || !equality.Semantic.DeepEqual(before.Spec, after.Spec) ||
			before.Status.PodIP != after.Status.PodIP || before.Status.Phase != after.Status.Phase
	case *v1.Namespace:
		return !maps.Equal(before.Labels, after.(*v1.Namespace).Labels)
	case *networkingv1.NetworkPolicy:
		return before.Generation != after.(*networkingv1.NetworkPolicy).Generation
	}
	return true
}

func noPolicies() ([]*networkingv1.NetworkPolicy, []*v1.Pod, []*v1.Namespace, bool) {
	return nil, nil, nil, true
}

func (w *watched) listed() ([]*networkingv1.NetworkPolicy, []*v1.Pod, []*v1.Namespace, bool) {
	everything := labels.Everything()
	policies, _ := w.policies.Networking().V1().NetworkPolicies().Lister().List(everything)
	if len(policies) == 0 {
		return nil, nil, nil, true
	}
	others := w.others.Core().V1()
	known := others.Pods().Informer().HasSynced() && others.Namespaces().Informer().HasSynced()
	pods, _ := others.Pods().Lister().List(everything)
	namespaces, _ := others.Namespaces().Lister().List(everything)
	return policies, pods, namespaces, known
}
