// Command service-proxy serves a node's Services in userspace, where kube-proxy cannot run because the kernel has no
// netfilter. It has the Services' addresses on the pods' link, listens on them, and relays each connection and datagram
// to an endpoint.
//
// What Services and EndpointSlices mean (readiness, termination, traffic policies, topology) is decided by kube-proxy's
// own packages. What differs from kube-proxy: an endpoint sees the node's address as its client's, and a connection is
// open before an endpoint has accepted it; if none does, it is reset.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
)

type options struct {
	kubeconfig    string
	node          string
	link          string
	nodeAddresses []netip.Addr
	hostPorts     hostPorts
	policies      string
	noFilter      bool
	nodesLink     string
	status        string
}

func main() {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "a kubeconfig with the rights of system:kube-proxy")
	flag.StringVar(&o.node, "node", "", "the node's name")
	flag.StringVar(&o.link, "link", "",
		"the node's link to its pods, which gets the Services' addresses; it may be made later")
	addresses := flag.String("node-addresses", "",
		"the node's addresses at which node ports and host ports are served, with commas between")
	flag.StringVar((*string)(&o.hostPorts), "host-ports", "",
		"the folder where the CNI plugin tells of the pods' host ports; it may be made later")
	flag.StringVar(&o.policies, "policies", "",
		"the folder that is shared with the CNI plugin, which has each new pod's port put in its place; "+
			"without it network policies are not enforced")
	flag.BoolVar(&o.noFilter, "no-filter", false,
		"the sandbox cannot filter what pods send: each network policy gets an event that says so")
	flag.StringVar(&o.nodesLink, "nodes-link", "",
		"the node's link to the cluster's other nodes, which gets the routes to their pods; without it there are none")
	flag.StringVar(&o.status, "status", "", "a file for the process's id and the time when Services are served, as JSON")
	flag.Parse()
	for _, text := range strings.Split(*addresses, ",") {
		address, err := netip.ParseAddr(text)
		if err != nil {
			fail(fmt.Errorf("-node-addresses %q: %w", *addresses, err))
		}
		o.nodeAddresses = append(o.nodeAddresses, address)
	}
	debug.SetGCPercent(50) // as the server beside it: memory is what a sandbox is short of
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		fail(err)
	}
}

func fail(err error) {
	klog.Flush()
	fmt.Fprintln(os.Stderr, "service-proxy:", err)
	os.Exit(1)
}

func run(ctx context.Context, o options) error {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	link := &linkAddresses{link: o.link, own: o.nodeAddresses}
	proxy := newProxy(o.node, o.nodeAddresses, o.hostPorts, link, broadcaster.NewRecorder(scheme.Scheme, "service-proxy"))

	// The selector is kube-proxy's: a Service can name another proxy, and a headless one has no address to serve.
	ours := informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.LabelSelector = "!service.kubernetes.io/service-proxy-name,!" + v1.IsHeadlessService
	})
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, ours)
	services, slices := factory.Core().V1().Services().Informer(), factory.Discovery().V1().EndpointSlices().Informer()
	watchedServices, err := services.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { proxy.serviceChanged(nil, as[v1.Service](object)) },
		UpdateFunc: func(before, after any) { proxy.serviceChanged(as[v1.Service](before), as[v1.Service](after)) },
		DeleteFunc: func(object any) { proxy.serviceChanged(as[v1.Service](object), nil) },
	})
	if err != nil {
		return err
	}
	watchedSlices, err := slices.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { proxy.sliceChanged(as[discoveryv1.EndpointSlice](object), false) },
		UpdateFunc: func(_, after any) { proxy.sliceChanged(as[discoveryv1.EndpointSlice](after), false) },
		DeleteFunc: func(object any) { proxy.sliceChanged(as[discoveryv1.EndpointSlice](object), true) },
	})
	if err != nil {
		return err
	}
	if o.nodesLink != "" {
		if err := proxy.routeNodes(ctx, client, o.nodesLink); err != nil {
			return fmt.Errorf("the other nodes: %w", err)
		}
	}
	if o.hostPorts != "" {
		if err := watchFolder(ctx, string(o.hostPorts), proxy.wake); err != nil {
			return fmt.Errorf("the pods' host ports: %w", err)
		}
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), watchedServices.HasSynced, watchedSlices.HasSynced) {
		return nil
	}
	if o.policies != "" {
		if err := enforce(ctx, o, client, proxy); err != nil {
			return fmt.Errorf("network policies: %w", err)
		}
	}
	if o.status != "" {
		status := fmt.Sprintf(`{"pid":%d,"synced":%d}`+"\n", os.Getpid(), time.Now().UnixMilli())
		if err := os.WriteFile(o.status+".tmp", []byte(status), 0o644); err != nil {
			return err
		}
		if err := os.Rename(o.status+".tmp", o.status); err != nil {
			return err
		}
	}
	proxy.loop(ctx)
	return nil
}

// as takes an object from an informer; one whose deletion was missed comes wrapped.
func as[T any](object any) *T {
	if missed, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = missed.Obj
	}
	typed, _ := object.(*T)
	return typed
}
