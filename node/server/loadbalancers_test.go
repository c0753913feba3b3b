package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
)

const balancerAddress = "10.107.0.2"

// wishing is a cluster whose pods and load balancers are looked after.
type wishing struct {
	*testing.T
	ctx    context.Context
	client kubernetes.Interface
	count  int
}

func startWishing(t *testing.T, kernel kernel) *wishing {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	client, watched := watchedClient(t, "pods", "services")
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	recorder := broadcaster.NewRecorder(scheme.Scheme, "gvisor-k3s")
	ended := make(chan error)
	go func() {
		ended <- serveWishes(ctx, client, newWishes("n", kernel, recorder), &loadBalancers{
			client: client, node: "n", address: balancerAddress, recorder: recorder,
			ports: map[nodePort]string{{6443, corev1.ProtocolTCP}: "the API server"},
		})
	}()
	t.Cleanup(func() {
		cancel()
		broadcaster.Shutdown()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	watched()
	return &wishing{T: t, ctx: ctx, client: client}
}

// service makes a Service of type LoadBalancer; each is younger than the one before.
func (w *wishing) service(name string, protocol corev1.Protocol, port int32, change func(*corev1.Service)) {
	w.Helper()
	w.count++
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID(name), CreationTimestamp: metav1.Unix(int64(w.count), 0),
		},
		Spec: corev1.ServiceSpec{
			Type:  corev1.ServiceTypeLoadBalancer,
			Ports: []corev1.ServicePort{{Port: port, Protocol: protocol, TargetPort: intstr.FromInt32(80)}},
		},
	}
	if change != nil {
		change(service)
	}
	if _, err := w.client.CoreV1().Services("default").Create(w.ctx, service, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func (w *wishing) pod(name string, change func(*corev1.Pod)) {
	w.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
	change(pod)
	if _, err := w.client.CoreV1().Pods("default").Create(w.ctx, pod, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func (w *wishing) await(what string, condition func() bool) {
	w.Helper()
	err := wait.PollUntilContextCancel(w.ctx, time.Millisecond, true, func(context.Context) (bool, error) {
		return condition(), nil
	})
	if err != nil {
		w.Errorf("%s: it never came to that", what)
	}
}

func (w *wishing) addressOf(name string) string {
	service, err := w.client.CoreV1().Services("default").Get(w.ctx, name, metav1.GetOptions{})
	if err != nil || len(service.Status.LoadBalancer.Ingress) == 0 {
		return ""
	}
	return service.Status.LoadBalancer.Ingress[0].IP
}

// told tells whether there is an event of an object with these words.
func (w *wishing) told(name, words string) bool {
	list, err := w.client.EventsV1().Events("default").List(w.ctx, metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	for _, event := range list.Items {
		if event.Regarding.Name == name && strings.Contains(event.Note, words) {
			return true
		}
	}
	return false
}

func TestLoadBalancersShareTheAddress(t *testing.T) {
	w := startWishing(t, kernel{})
	w.service("a", corev1.ProtocolTCP, 80, nil)
	w.service("b", corev1.ProtocolTCP, 81, nil)
	w.service("c", corev1.ProtocolUDP, 80, nil)
	for _, name := range []string{"a", "b", "c"} {
		w.await(name+" has the node's address", func() bool { return w.addressOf(name) == balancerAddress })
	}
	w.service("second", corev1.ProtocolTCP, 80, nil)
	w.await("the second is told why it waits", func() bool {
		return w.told("second", "the port 80/TCP of the node's address 10.107.0.2 is taken by the Service default/a")
	})
	if w.addressOf("second") != "" {
		t.Error("two Services have one port")
	}
	if err := w.client.CoreV1().Services("default").Delete(w.ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("the second has the address", func() bool { return w.addressOf("second") == balancerAddress })
}

func TestLoadBalancersTakeNothingFromOthers(t *testing.T) {
	w := startWishing(t, kernel{})
	w.pod("host", func(pod *corev1.Pod) {
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{
			{HostPort: 82, Protocol: corev1.ProtocolTCP}, {HostPort: 83, HostIP: "127.0.0.1", Protocol: corev1.ProtocolTCP},
		}
	})
	w.service("node", corev1.ProtocolTCP, 1, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = 30000
	})
	w.service("api", corev1.ProtocolTCP, 6443, nil)
	w.service("pod", corev1.ProtocolTCP, 82, nil)
	w.service("beside", corev1.ProtocolTCP, 83, nil)
	w.service("own", corev1.ProtocolTCP, 30001, func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30001 })
	w.service("port", corev1.ProtocolTCP, 30000, nil)
	w.service("sctp", corev1.ProtocolSCTP, 90, nil)
	w.service("other", corev1.ProtocolTCP, 91, func(s *corev1.Service) {
		class := "example.com/other"
		s.Spec.LoadBalancerClass = &class
	})
	for name, words := range map[string]string{
		"api": "the API server", "pod": "the pod default/host", "port": "a node port of the Service default/node",
		"sctp": "gVisor has no SCTP",
	} {
		w.await(name+" is told why it has no address", func() bool { return w.told(name, words) })
		if got := w.addressOf(name); got != "" {
			t.Errorf("%s has %s", name, got)
		}
	}
	for _, name := range []string{"beside", "own"} {
		w.await(name+" has the address", func() bool { return w.addressOf(name) == balancerAddress })
	}
	if got := w.addressOf("other"); got != "" {
		t.Errorf("another controller's Service has %s", got)
	}
}

func TestTellsPodsWhatTheyDoNotGet(t *testing.T) {
	no := false
	wish := func(node string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			pod.Spec.NodeName = node
			pod.Spec.HostUsers = &no
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{
				Sysctls: []corev1.Sysctl{{Name: "kernel.shm_rmid_forced", Value: "1"}},
			}
		}
	}
	w := startWishing(t, kernel{})
	w.pod("later", wish(""))
	later, err := w.client.CoreV1().Pods("default").Get(w.ctx, "later", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	later.Spec.NodeName = "n"
	if _, err := w.client.CoreV1().Pods("default").Update(w.ctx, later, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("sysctls", func() bool { return w.told("later", "has no kernel.shm_rmid_forced of a pod's own") })
	w.await("user namespaces", func() bool { return w.told("later", "quirk no-user-namespaces") })
	w.pod("elsewhere", wish("other"))

	able := startWishing(t, kernel{podTunables: true, userNamespaces: true})
	able.pod("served", wish("n"))
	able.service("after", corev1.ProtocolTCP, 80, nil) // which is seen after the pod
	able.await("the Service is served", func() bool { return able.addressOf("after") != "" })
	for _, at := range []struct {
		w    *wishing
		name string
	}{{w, "elsewhere"}, {able, "served"}} {
		if at.w.told(at.name, "quirk") {
			t.Errorf("the pod %s is told of what it does not lack", at.name)
		}
	}
}
