package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/pkg/features"
	kubeletcertificate "k8s.io/kubernetes/pkg/kubelet/certificate"
)

// A problem is told when it comes up and when it comes again, and not at every look.
func TestTeller(t *testing.T) {
	var told teller
	steps := []struct {
		problem error
		age     time.Duration // how long ago it was told the last time
		want    bool
	}{
		{nil, 0, false},
		{errors.New("one"), 0, true},
		{errors.New("one"), time.Minute, false},
		{errors.New("another"), time.Minute, true},
		{errors.New("another"), repeatEvery + time.Minute, true},
		{nil, 0, false},
		{errors.New("another"), 0, true},
	}
	for i, step := range steps {
		told.at = told.at.Add(-step.age)
		before := told.at
		told.tell(step.problem)
		if got := told.problem != "" && told.at != before; got != step.want {
			t.Errorf("step %d: told: %v, want %v", i, got, step.want)
		}
	}
}

func TestEndBefore(t *testing.T) {
	if err := endBefore(t.Context(), time.Now().Add(startAgainBefore-time.Hour)); err == nil {
		t.Error("a certificate that is about to end asks for no new start")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- endBefore(ctx, time.Now().Add(startAgainBefore+time.Hour)) }()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the server's end: %v", err)
	}
}

// inOwnNetwork runs the test in a network of its own, in which the node's address is this machine's.
func inOwnNetwork(t *testing.T, address string) (inside bool) {
	t.Helper()
	const marker = "GVISOR_K3S_NODE_TEST_OWN_NETWORK"
	if os.Getenv(marker) == "" {
		command := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.timeout=5m", "-test.v")
		command.Env = append(os.Environ(), marker+"=1")
		command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if id := os.Geteuid(); id != 0 {
			own := func(id int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: id, Size: 1}} }
			command.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			command.SysProcAttr.UidMappings = own(id)
			command.SysProcAttr.GidMappings = own(os.Getegid())
		}
		if output, err := command.CombinedOutput(); err != nil {
			t.Errorf("%v:\n%s", err, output)
		}
		return false
	}
	link, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := netlink.ParseAddr(address + "/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkSetUp(link), netlink.AddrAdd(link, parsed)); err != nil {
		t.Fatal(err)
	}
	return true
}

// seen collects the certificates that somebody showed, by their serial numbers.
type seen struct {
	mu           sync.Mutex
	certificates map[string]*x509.Certificate
}

func (s *seen) add(certificate *x509.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.certificates == nil {
		s.certificates = map[string]*x509.Certificate{}
	}
	s.certificates[certificate.SerialNumber.String()] = certificate
}

func (s *seen) all() []*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.certificates), func(a, b *x509.Certificate) int {
		return a.NotAfter.Compare(b.NotAfter)
	})
}

func pool(t *testing.T, p *pki, ca string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(certificate(t, p.cert(ca)))
	return pool
}

// serve is a server that the API server calls, at the node's address, and that refuses who has no good certificate.
func serve(
	t *testing.T, address string, settings *tls.Config, callers *seen, answer http.HandlerFunc,
) (port int32) {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	settings.ClientAuth = tls.RequireAndVerifyClientCert
	server := &http.Server{TLSConfig: settings, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		callers.add(r.TLS.PeerCertificates[0])
		answer(w, r)
	})}
	go server.ServeTLS(listener, "", "")
	t.Cleanup(func() { server.Close() })
	return int32(netip.MustParseAddrPort(listener.Addr().String()).Port())
}

// clientOf calls as one of the components does, by its kubeconfig.
func clientOf(t *testing.T, kubeconfig string) *kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// renewals is a real control plane whose certificates live for seconds, and everybody who uses one of them: a kubelet
// and an aggregated API server that look at who calls them, and clients that keep their connections open.
type renewals struct {
	*testing.T
	ctx            context.Context
	config         *Config
	pki            *pki
	admin          *kubernetes.Clientset // by a copy of the kubeconfig that leaves the machine
	kubelet        *kubernetes.Clientset
	proxy          *kubernetes.Clientset
	kubeletAddress string
	pod            string           // whose log is asked for
	served         map[string]*seen // by who shows them
	unserved       error            // why the last call to one of them failed
}

const nodeAddress = "192.0.2.7"

// Nobody is the worse for it when certificates end, and nothing is started again.
func TestCertificatesAreRenewedWhileTheServerRuns(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it awaits two renewals of certificates that live for half a minute")
	}
	if !inOwnNetwork(t, nodeAddress) {
		return
	}
	if !utilfeature.DefaultFeatureGate.Enabled(features.ReloadKubeletServerCertificateFile) {
		t.Error("the kubelet does not look for a renewed certificate by default any more")
	}
	const life = 30 * time.Second
	t.Setenv(lifeVariable, life.String())
	haveClientsLook(life)
	config := configFor(t, fmt.Sprintf("bind-address: %s\nhttps-listen-port: %d\n", nodeAddress, freePort(t)))
	ctx, stop := startServer(t, config)
	r := &renewals{T: t, ctx: ctx, config: config, pki: &pki{config: config, life: life}, served: map[string]*seen{}}
	r.prepare()

	before, first := privates(t, config), map[string]*x509.Certificate{}
	for _, leaf := range r.pki.leaves() {
		first[leaf.file] = certificate(t, r.pki.cert(leaf.file))
	}
	kubeconfig := r.read(config.WriteKubeconfig)
	r.workIsDone("before")
	r.await("everybody has shown three certificates, and the first ones have ended", func() bool {
		r.callEverybody()
		for _, seen := range r.served {
			if all := seen.all(); len(all) < 3 || time.Now().Before(all[0].NotAfter) {
				return false
			}
		}
		return true
	}, func() string {
		var states []string
		for _, who := range sortedKeys(r.served) {
			states = append(states, fmt.Sprintf("%s: %d", who, len(r.served[who].all())))
		}
		return fmt.Sprintf("%s; last error: %v", strings.Join(states, ", "), r.unserved)
	})
	r.await("the certificates of before have ended", func() bool {
		r.callEverybody()
		return !slices.ContainsFunc(slices.Collect(maps.Values(first)), func(c *x509.Certificate) bool {
			return c.Subject.CommonName != "system:admin" && time.Now().Before(c.NotAfter)
		})
	}, func() string { return "" })
	r.workIsDone("after")

	var changed []string
	for _, leaf := range r.pki.leaves() {
		if leaf.file != admin {
			changed = append(changed, leaf.file+".crt")
		}
	}
	slices.Sort(changed)
	if got := differing(before, privates(t, config)); !slices.Equal(got, changed) {
		t.Errorf("changed: %q, want %q", got, changed)
	}
	if !bytes.Equal(kubeconfig, r.read(config.WriteKubeconfig)) {
		t.Error("the admin's kubeconfig has changed")
	}
	// Two years without a start: of the API server's certificate for itself nobody can have another one.
	end, err := loopbackEnd(ctx, config)
	if left := time.Until(end) - startAgainBefore; err != nil || left < 2*365*24*time.Hour {
		t.Errorf("the API server's certificate for itself ends on %s, %v", end, err)
	}
	stop()
}

func (r *renewals) read(file string) []byte {
	r.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		r.Fatal(err)
	}
	return content
}

func (r *renewals) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// await fails when a client is refused, which a certificate that was not renewed in time would have it.
func (r *renewals) await(what string, done func() bool, state func() string) {
	r.Helper()
	err := wait.PollUntilContextTimeout(r.ctx, pollEvery, 3*time.Minute, true, func(context.Context) (bool, error) {
		return done() || r.Failed(), nil
	})
	if err != nil {
		r.Fatalf("never: %s; %v; %s", what, err, state())
	}
	if r.Failed() {
		r.FailNow()
	}
}

// called notes an error; to be refused is a failure.
func (r *renewals) called(who string, err error) {
	if err == nil {
		return
	}
	r.unserved = fmt.Errorf("%s: %w", who, err)
	if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) {
		r.Errorf("%v", r.unserved)
	}
}

// prepare makes the node, whose kubelet is played here, and an aggregated API.
func (r *renewals) prepare() {
	r.Helper()
	copied := r.TempDir() + "/kubeconfig" // as `up` and a user do
	r.must(os.WriteFile(copied, r.read(r.config.WriteKubeconfig), 0o600))
	r.admin = clientOf(r.T, copied)
	r.kubelet = clientOf(r.T, r.pki.kubeconfig("kubelet"))
	r.proxy = clientOf(r.T, r.pki.kubeconfig("kube-proxy"))
	for _, who := range []string{"API server", "kubelet", "API server to kubelet", "API server to aggregated API"} {
		r.served[who] = &seen{}
	}

	// The kubelet serves by this very manager (pkg/kubelet/kubelet.go).
	manager, err := kubeletcertificate.NewKubeletServerCertificateDynamicFileManager(
		r.pki.cert("kubelet-serving"), r.pki.key("kubelet-serving"))
	r.must(err)
	manager.Start()
	r.Cleanup(manager.Stop)
	current := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return manager.Current(), nil }
	kubelet := &tls.Config{ClientCAs: pool(r.T, r.pki, clientCA), GetCertificate: current}
	kubeletPort := serve(r.T, nodeAddress, kubelet, r.served["API server to kubelet"],
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "a line of the log\n") })
	r.kubeletAddress = net.JoinHostPort(nodeAddress, fmt.Sprint(kubeletPort))
	_, err = r.kubelet.CoreV1().Nodes().Create(r.ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: r.config.NodeName},
		Status: corev1.NodeStatus{
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddress}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: kubeletPort}},
			Capacity:        corev1.ResourceList{corev1.ResourcePods: resource.MustParse("10")},
			Allocatable:     corev1.ResourceList{corev1.ResourcePods: resource.MustParse("10")},
		},
	}, metav1.CreateOptions{})
	r.must(err)

	aggregated := &tls.Config{ClientCAs: pool(r.T, r.pki, requestHeaderCA), GetCertificate: current}
	port := serve(r.T, nodeAddress, aggregated, r.served["API server to aggregated API"],
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"example.test/v1","resources":[]}`)
		})
	services, slices := r.admin.CoreV1().Services("default"), r.admin.DiscoveryV1().EndpointSlices("default")
	_, err = services.Create(r.ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "aggregated"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443}}},
	}, metav1.CreateOptions{})
	r.must(err)
	name, yes := "https", true
	_, err = slices.Create(r.ctx, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name:   "aggregated",
			Labels: map[string]string{discoveryv1.LabelServiceName: "aggregated"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{nodeAddress},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes},
		}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}, metav1.CreateOptions{})
	r.must(err)
	registration, err := json.Marshal(map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1",
		"kind":       "APIService",
		"metadata":   map[string]any{"name": "v1.example.test"},
		"spec": map[string]any{
			"group": "example.test", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
			"insecureSkipTLSVerify": true,
			"service":               map[string]any{"namespace": "default", "name": "aggregated"},
		},
	})
	r.must(err)
	r.must(r.admin.RESTClient().Post().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices").
		SetHeader("Content-Type", "application/json").Body(registration).Do(r.ctx).Error())
}

// callEverybody has each user of a certificate show it, on connections that stay open where the user keeps them so.
func (r *renewals) callEverybody() {
	for who, address := range map[string]string{"API server": r.config.localAddress(), "kubelet": r.kubeletAddress} {
		settings := &tls.Config{
			RootCAs: pool(r.T, r.pki, serverCA),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				pair, err := tls.LoadX509KeyPair(r.pki.cert("apiserver-kubelet"), r.pki.key("apiserver-kubelet"))
				return &pair, err
			},
		}
		connection, err := tls.Dial("tcp", address, settings)
		if err != nil {
			r.Errorf("%s: %v", who, err) // such as a certificate that has ended
			continue
		}
		r.served[who].add(connection.ConnectionState().PeerCertificates[0])
		connection.Close()
	}
	_, err := r.admin.CoreV1().Pods("default").GetLogs(r.pod, &corev1.PodLogOptions{}).DoRaw(r.ctx)
	r.called("logs", err)
	r.called("aggregated API", r.admin.RESTClient().Get().AbsPath("/apis/example.test/v1").Do(r.ctx).Error())
	_, err = r.proxy.CoreV1().Services("default").List(r.ctx, metav1.ListOptions{})
	r.called("kube-proxy", err)
	r.called("kubelet", r.heartbeat())
}

func (r *renewals) heartbeat() error {
	leases, name := r.kubelet.CoordinationV1().Leases(corev1.NamespaceNodeLease), r.config.NodeName
	now, seconds := metav1.NowMicro(), int32(40)
	spec := coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now}
	lease, err := leases.Get(r.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
		_, err = leases.Create(r.ctx, lease, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec = spec
	_, err = leases.Update(r.ctx, lease, metav1.UpdateOptions{})
	return err
}

// workIsDone has the controllers make a pod of a deployment, the scheduler find its node, and this server apply a
// manifest.
func (r *renewals) workIsDone(name string) {
	r.Helper()
	replicas, labels := int32(1), map[string]string{"app": name}
	_, err := r.admin.AppsV1().Deployments("default").Create(r.ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Containers:  []corev1.Container{{Name: "main", Image: "none"}},
					Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, // the node is never Ready
				},
			},
		},
	}, metav1.CreateOptions{})
	r.must(err)
	r.must(os.WriteFile(r.config.path("server", "manifests", name+".yaml"), []byte(configMap(name)), 0o600))
	r.await("the deployment has a pod, and the pod a node; the manifest is applied", func() bool {
		pods, err := r.admin.CoreV1().Pods("default").List(r.ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		r.called("admin", err)
		_, missing := r.admin.CoreV1().ConfigMaps("default").Get(r.ctx, name, metav1.GetOptions{})
		if err != nil || missing != nil || len(pods.Items) != 1 || pods.Items[0].Spec.NodeName != r.config.NodeName {
			return false
		}
		r.pod = pods.Items[0].Name
		return true
	}, func() string { return fmt.Sprint(r.unserved) })
}
