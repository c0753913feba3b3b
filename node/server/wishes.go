package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
)

// kernel is what this node's kernel has of what a pod can ask for.
type kernel struct {
	// Tunables of a pod's own, not of the whole node.
	podTunables bool
	// User namespaces, as containerd takes them.
	userNamespaces bool
}

// askKernel tries the things themselves; see the quirks no-pod-sysctls and no-user-namespaces in config/quirks.ts.
func askKernel() kernel { return kernel{hasPodTunables(), hasUserNamespaces()} }

// hasPodTunables changes a tunable in a network namespace of its own, and looks whether the node's is another then. It
// puts that back.
func hasPodTunables() bool {
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	before, err := os.ReadFile(file)
	ports := strings.Fields(string(before))
	if err != nil || len(ports) != 2 {
		return false
	}
	first, _ := strconv.Atoi(ports[0])
	changed := fmt.Sprintf("%d %s", first+2, ports[1])
	written := make(chan error)
	go func() {
		runtime.LockOSThread() // and never let go of: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = os.WriteFile("/proc/thread-self/root"+file, []byte(changed), 0)
		}
		written <- err
	}()
	if <-written != nil {
		return false
	}
	after, err := os.ReadFile(file)
	if err != nil || string(after) == string(before) {
		return err == nil
	}
	_ = os.WriteFile(file, before, 0)
	return false
}

// hasUserNamespaces asks what containerd asks when it makes a pod with a user namespace.
func hasUserNamespaces() bool {
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return false
	}
	defer file.Close()
	owner, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_USERNS)
	if err == nil {
		unix.Close(owner)
	}
	return err == nil
}

// wishes tells at a pod what it asks for and does not get from this kernel.
type wishes struct {
	node     string
	kernel   kernel
	recorder events.EventRecorder

	mutex sync.Mutex
	told  map[types.UID]bool
}

func newWishes(node string, kernel kernel, recorder events.EventRecorder) *wishes {
	return &wishes{node: node, kernel: kernel, recorder: recorder, told: map[types.UID]bool{}}
}

func (w *wishes) handler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    w.see,
		UpdateFunc: func(_, after any) { w.see(after) },
		DeleteFunc: func(object any) {
			if pod, ok := lastKnown(object).(*corev1.Pod); ok {
				w.mutex.Lock()
				defer w.mutex.Unlock()
				delete(w.told, pod.UID)
			}
		},
	}
}

// lastKnown is an object that an informer tells the end of; one whose end was missed comes wrapped.
func lastKnown(object any) any {
	if missed, ok := object.(cache.DeletedFinalStateUnknown); ok {
		return missed.Obj
	}
	return object
}

// see tells once of a pod that is about to start. One that has started was told of.
func (w *wishes) see(object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName != w.node || pod.Status.Phase != corev1.PodPending {
		return
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.told[pod.UID] {
		return
	}
	w.told[pod.UID] = true
	tell := func(reason, note string) {
		w.recorder.Eventf(pod, nil, corev1.EventTypeWarning, reason, "Starting", "%s", note)
	}
	if names := sysctlsOf(pod); len(names) > 0 && !w.kernel.podTunables {
		tell("SysctlsWithoutEffect", fmt.Sprintf("gVisor's kernel has no %s of a pod's own (quirk no-pod-sysctls): "+
			"the pod reads what it asks for, and it has no effect.", strings.Join(names, ", ")))
	}
	if users := pod.Spec.HostUsers; users != nil && !*users && !w.kernel.userNamespaces {
		tell("NoUserNamespaces", "gVisor's kernel has no user namespaces that containerd could use "+
			"(quirk no-user-namespaces): this pod cannot start. Leave out hostUsers: false; the node's own kernel is "+
			"gVisor's, which keeps a pod's root from the host.")
	}
}

func sysctlsOf(pod *corev1.Pod) (names []string) {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	for _, sysctl := range pod.Spec.SecurityContext.Sysctls {
		names = append(names, sysctl.Name)
	}
	return names
}
