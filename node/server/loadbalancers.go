package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
)

// loadBalancers gives Services of type LoadBalancer the node's address, as k3s's servicelb does: Services with
// different ports share it, and one whose port somebody else has waits until it is free. The service proxy serves them
// then.
type loadBalancers struct {
	client   kubernetes.Interface
	node     string // whose address it is
	address  string
	ports    map[nodePort]string // what the node itself has, by who has it
	recorder events.EventRecorder
	services corelisters.ServiceLister
	pods     corelisters.PodLister
	changed  chan struct{}
	told     map[types.UID]string
}

// nodePort is a port of the node's address.
type nodePort struct {
	port     int32
	protocol corev1.Protocol
}

func (p nodePort) String() string { return fmt.Sprintf("%d/%s", p.port, p.protocol) }

// loadBalancers has them served, and tells pods what they do not get (see wishes): both look at the same pods.
func (c *components) loadBalancers(ctx context.Context) error {
	client, err := adminClient(c.config)
	if err != nil {
		return err
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	defer broadcaster.Shutdown()
	recorder := broadcaster.NewRecorder(scheme.Scheme, "gvisor-k3s")
	kubelet := argument(c.config.KubeletArgs, "port", "10250")
	return serveWishes(ctx, client, newWishes(c.config.NodeName, askKernel(), recorder), &loadBalancers{
		client:  client,
		node:    c.config.NodeName,
		address: c.config.NodeIP,
		ports: map[nodePort]string{
			{int32(c.config.HTTPSListenPort), corev1.ProtocolTCP}: "the API server",
			{int32(portNumber(kubelet)), corev1.ProtocolTCP}:      "the kubelet",
		},
		recorder: recorder,
	})
}

func serveWishes(ctx context.Context, client kubernetes.Interface, wishes *wishes, l *loadBalancers) error {
	slim := informers.WithTransform(func(object any) (any, error) {
		if meta, ok := object.(metav1.Object); ok {
			meta.SetManagedFields(nil)
		}
		return object, nil
	})
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, slim)
	pods, services := factory.Core().V1().Pods(), factory.Core().V1().Services()
	if _, err := pods.Informer().AddEventHandler(wishes.handler()); err != nil {
		return err
	}
	l.pods, l.services = pods.Lister(), services.Lister()
	l.changed, l.told = make(chan struct{}, 1), map[types.UID]string{}
	wake := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { l.wake() },
		UpdateFunc: func(any, any) { l.wake() },
		DeleteFunc: func(any) { l.wake() },
	}
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), services.Informer()} {
		if _, err := informer.AddEventHandler(wake); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.changed:
			if err := l.sync(ctx); err != nil {
				klog.ErrorS(err, "load balancers", "retryIn", time.Second)
				time.AfterFunc(time.Second, l.wake)
			}
		}
	}
}

func (l *loadBalancers) wake() {
	select {
	case l.changed <- struct{}{}:
	default: // it is about to look anyway
	}
}

// sync gives each Service its address, or tells why it has none. Who has an address keeps it; else the oldest is first.
func (l *loadBalancers) sync(ctx context.Context) error {
	services, err := l.services.List(labels.Everything())
	if err != nil {
		return err
	}
	pods, err := l.pods.List(labels.Everything())
	if err != nil {
		return err
	}
	taken := l.taken(services, pods)
	wanting := slices.DeleteFunc(slices.Clone(services), func(s *corev1.Service) bool { return !isOurs(s) })
	slices.SortFunc(wanting, func(a, b *corev1.Service) int {
		return cmp.Or(-compareBool(l.has(a), l.has(b)),
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(string(a.UID), string(b.UID)))
	})
	seen := map[types.UID]bool{}
	for _, service := range wanting {
		seen[service.UID] = true
		why := l.claim(service, taken)
		var status corev1.LoadBalancerStatus
		if why == "" {
			mode := corev1.LoadBalancerIPModeVIP
			status.Ingress = []corev1.LoadBalancerIngress{{IP: l.address, IPMode: &mode}}
		}
		if !equality.Semantic.DeepEqual(service.Status.LoadBalancer, status) {
			if err := l.write(ctx, service, status); err != nil {
				return fmt.Errorf("%s/%s: %w", service.Namespace, service.Name, err)
			}
		}
		if why != "" && l.told[service.UID] != why {
			l.recorder.Eventf(service, nil, corev1.EventTypeWarning, "PortTaken", "Serving", "%s", why)
		}
		l.told[service.UID] = why
	}
	for uid := range l.told {
		if !seen[uid] {
			delete(l.told, uid)
		}
	}
	return nil
}

// isOurs leaves a Service alone that another controller is asked for.
func isOurs(service *corev1.Service) bool {
	return service.Spec.Type == corev1.ServiceTypeLoadBalancer && service.Spec.LoadBalancerClass == nil &&
		service.DeletionTimestamp == nil
}

func (l *loadBalancers) has(service *corev1.Service) bool {
	return slices.ContainsFunc(service.Status.LoadBalancer.Ingress, func(ingress corev1.LoadBalancerIngress) bool {
		return ingress.IP == l.address
	})
}

// taken are the ports of the node's address that are not free, by who has them.
func (l *loadBalancers) taken(services []*corev1.Service, pods []*corev1.Pod) map[nodePort]holder {
	taken := map[nodePort]holder{}
	for port, who := range l.ports {
		taken[port] = holder{who: who}
	}
	for _, service := range services {
		for _, port := range service.Spec.Ports {
			if port.NodePort != 0 {
				taken[nodePort{port.NodePort, port.Protocol}] =
					holder{"a node port of the Service " + service.Namespace + "/" + service.Name, service.UID}
			}
		}
	}
	for _, pod := range pods {
		if pod.Spec.NodeName != l.node || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			for _, port := range container.Ports {
				if port.HostPort != 0 && slices.Contains([]string{"", "0.0.0.0", l.address}, port.HostIP) {
					taken[nodePort{port.HostPort, port.Protocol}] =
						holder{who: "a host port of the pod " + pod.Namespace + "/" + pod.Name}
				}
			}
		}
	}
	return taken
}

// holder is who has a port; a Service may have one twice.
type holder struct {
	who string
	uid types.UID
}

// claim takes a Service's ports, all or none of them, and tells why if it is none.
func (l *loadBalancers) claim(service *corev1.Service, taken map[nodePort]holder) string {
	for _, port := range service.Spec.Ports {
		wanted := nodePort{port.Port, port.Protocol}
		if port.Protocol == corev1.ProtocolSCTP {
			return fmt.Sprintf("the port %s is not served: gVisor has no SCTP", wanted)
		}
		if holder, held := taken[wanted]; held && holder.uid != service.UID {
			return fmt.Sprintf("the port %s of the node's address %s is taken by %s; the Service gets the address when it "+
				"is free", wanted, l.address, holder.who)
		}
	}
	for _, port := range service.Spec.Ports {
		taken[nodePort{port.Port, port.Protocol}] =
			holder{"the Service " + service.Namespace + "/" + service.Name, service.UID}
	}
	return ""
}

func (l *loadBalancers) write(ctx context.Context, s *corev1.Service, status corev1.LoadBalancerStatus) error {
	ingress := status.Ingress
	if ingress == nil {
		ingress = []corev1.LoadBalancerIngress{}
	}
	balancer := map[string]any{"loadBalancer": map[string]any{"ingress": ingress}}
	patch, err := json.Marshal(map[string]any{"status": balancer})
	if err != nil {
		return err
	}
	_, err = l.client.CoreV1().Services(s.Namespace).
		Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func portNumber(text string) int {
	var port int
	_, _ = fmt.Sscan(text, &port) // what is none was refused by who listens there
	return port
}
