package kube

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
)

const insideNamespace = "GVISOR_K3S_TEST_IN_NETNS"

// TestAgainstANode runs the provider against a real control plane: that of the node binary in GVISOR_K3S_NODE_BINARY.
// It runs in a network namespace of its own, so the node's ports and addresses are free there and go with it.
func TestAgainstANode(t *testing.T) {
	binary := os.Getenv("GVISOR_K3S_NODE_BINARY")
	if binary == "" {
		t.Skip("GVISOR_K3S_NODE_BINARY is not set: give the path of gvisor-k3s-node")
	}
	if os.Getenv(insideNamespace) == "" {
		again := exec.CommandContext(t.Context(), "unshare", "--net",
			os.Args[0], "-test.run", "^TestAgainstANode$", "-test.v")
		again.Env = append(os.Environ(), insideNamespace+"=1")
		output, err := again.CombinedOutput()
		t.Logf("%s", output)
		if err != nil || !strings.Contains(string(output), "--- PASS: TestAgainstANode") {
			t.Fatalf("in a network namespace of its own: %v", err)
		}
		return
	}
	kubeconfig := startNode(t, binary)
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	configMaps := cluster.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("default")
	e := start(t, "kubeconfig", kubeconfig, "enableConfigMapMutable", "true")

	t.Run("what leaves the inputs leaves the object", func(t *testing.T) {
		r := e.create(configMap, "c",
			"{apiVersion: v1, kind: ConfigMap, metadata: {name: c, labels: {a: x, b: x}}, data: {a: x, b: x}}")
		diff, req := e.change(r, "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, labels: {a: x}}, data: {a: x}}")
		if diff.GetDetailedDiff()["data.b"].GetKind() != pulumirpc.PropertyDiff_DELETE {
			t.Errorf("diff %v", diff)
		}
		if r, err = e.update(r, req); err != nil {
			t.Fatal(err)
		}
		if got := e.field(r.output, "data.b") + e.field(r.output, "metadata.labels.b"); got != "nonenone" {
			t.Errorf("still there: %s", got)
		}
		live, err := configMaps.Get(t.Context(), "c", metav1.GetOptions{})
		if err != nil || len(live.GetManagedFields()) != 1 ||
			live.GetManagedFields()[0].Manager != e.field(r.output, "__fieldManager") {
			t.Errorf("managers %v, %v", live.GetManagedFields(), err)
		}
	})

	t.Run("a conflict names the other manager", func(t *testing.T) {
		r := e.create(configMap, "shared", "{apiVersion: v1, kind: ConfigMap, metadata: {name: shared}, data: {a: x}}")
		other := []byte(`{"apiVersion":"v1","kind":"ConfigMap","data":{"a":"other"}}`)
		_, err := configMaps.Patch(t.Context(), "shared", types.ApplyPatchType, other,
			metav1.PatchOptions{FieldManager: "helm", Force: ptr(true)})
		if err != nil {
			t.Fatal(err)
		}
		_, req := e.change(r, "{apiVersion: v1, kind: ConfigMap, metadata: {name: shared}, data: {a: mine}}")
		if _, err := e.update(r, req); err == nil || !strings.Contains(err.Error(), `"helm"`) ||
			!strings.Contains(err.Error(), "patchForce") {
			t.Errorf("error %v", err)
		}
		_, req = e.change(r, "{apiVersion: v1, kind: ConfigMap, data: {a: mine}, "+
			"metadata: {name: shared, annotations: {pulumi.com/patchForce: 'true'}}}")
		if r, err = e.update(r, req); err != nil || e.field(r.output, "data.a") != "mine" {
			t.Errorf("forced: %v", err)
		}
	})

	t.Run("a definition and its first object", func(t *testing.T) {
		const crd = "kubernetes:apiextensions.k8s.io/v1:CustomResourceDefinition"
		const thing = "kubernetes:example.com/v1:Thing"
		definition := e.create(crd, "things", `{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition,
			metadata: {name: things.example.com},
			spec: {group: example.com, scope: Cluster, names: {plural: things, kind: Thing},
			versions: [{name: v1, served: true, storage: true,
			schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer,
			x_kubernetes_validations: [{rule: self == oldSelf, message: "size is immutable"}]}}}}}}}]}}`)
		// The garbage collector, which deletes what an object owns first, learns of a new kind only every 30 s.
		r := e.create(thing, "t", `{apiVersion: example.com/v1, kind: Thing, spec: {size: 1},
			metadata: {name: t, annotations: {pulumi.com/deletionPropagationPolicy: background}}}`)
		if r.id != "t" {
			t.Errorf("ID %s", r.id)
		}
		diff, _ := e.change(r, `{apiVersion: example.com/v1, kind: Thing, spec: {size: 2},
			metadata: {name: t, annotations: {pulumi.com/deletionPropagationPolicy: background}}}`)
		if !slices.Equal(diff.GetReplaces(), []string{"spec.size"}) {
			t.Errorf("diff %v", diff)
		}
		for _, gone := range []resourceState{r, definition} {
			if err := e.remove(gone); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("a pod that nothing can run", func(t *testing.T) {
		r, err := e.tryCreate(e.check("kubernetes:core/v1:Pod", "p",
			"{apiVersion: v1, kind: Pod, metadata: {name: p}, "+
				"spec: {automountServiceAccountToken: false, containers: [{name: c, image: i}]}}"), 3)
		if failure := initFailure(err); failure == nil ||
			!strings.Contains(strings.Join(failure.GetReasons(), "\n"), "not scheduled: [Unschedulable]") {
			t.Fatalf("error %v", err)
		}
		if err := e.remove(r); err != nil {
			t.Error(err)
		}
	})

	t.Run("a service knows its endpoints", func(t *testing.T) {
		r := e.create("kubernetes:core/v1:Service", "s",
			"{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {a: b}, ports: [{port: 80}]}}")
		if err := e.remove(r); err != nil {
			t.Error(err)
		}
	})

	t.Run("an object made elsewhere", func(t *testing.T) {
		found := fromYAML(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: found}, data: {a: x}}")
		if _, err := configMaps.Create(t.Context(), found, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		read, err := e.Read(t.Context(), &pulumirpc.ReadRequest{Id: "default/found", Urn: urnOf(configMap, "found")})
		if err != nil {
			t.Fatal(err)
		}
		r := resourceState{
			id: read.GetId(), urn: urnOf(configMap, "found"), inputs: read.GetInputs(), output: read.GetProperties(),
		}
		diff, _ := e.change(r, "{apiVersion: v1, kind: ConfigMap, metadata: {name: found, namespace: default}, data: {a: x}}")
		if diff.GetChanges() != pulumirpc.DiffResponse_DIFF_NONE {
			t.Errorf("diff %v", diff)
		}
	})
}

// startNode starts a control plane in the namespace that the test is in and returns its kubeconfig's path.
func startNode(t *testing.T, binary string) string {
	t.Helper()
	for _, command := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"ip", "address", "add", "10.99.0.1/32", "dev", "lo"},
	} {
		if output, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", command, err, output)
		}
	}
	directory := t.TempDir()
	kubeconfig, config := filepath.Join(directory, "kubeconfig.yaml"), filepath.Join(directory, "config.yaml")
	content := "data-dir: " + filepath.Join(directory, "data") + "\nwrite-kubeconfig: " + kubeconfig +
		"\nnode-name: test\nnode-ip: 10.99.0.1\n" +
		"disable-agent: true\nflannel-backend: none\ndisable-kube-proxy: true\ndisable-network-policy: true\n" +
		"disable-helm-controller: true\ndisable-cloud-controller: true\n"
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(directory, "log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	node := exec.CommandContext(ctx, binary, "server", "--config", config)
	node.Stdout, node.Stderr = log, log
	node.Cancel = func() error { return node.Process.Signal(syscall.SIGTERM) }
	node.WaitDelay = 20 * time.Second
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- node.Wait() }()
	t.Cleanup(func() {
		stop()
		<-ended
		log.Close()
		if t.Failed() {
			lines, _ := os.ReadFile(log.Name())
			t.Logf("the node's log ends with:\n%s", lines[max(0, len(lines)-4000):])
		}
	})
	ready := func(ctx context.Context) (bool, error) {
		select {
		case err := <-ended:
			ended <- err
			return false, errors.Join(errors.New("the node ended"), err)
		default:
		}
		return controlPlaneReady(ctx, kubeconfig), nil
	}
	err = wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, time.Minute, true, ready)
	if err != nil {
		t.Fatalf("the control plane is not ready: %v", err)
	}
	return kubeconfig
}

// controlPlaneReady reports whether the API server has its own service, and the controllers have made a namespace's
// service account.
func controlPlaneReady(ctx context.Context, kubeconfig string) bool {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return false
	}
	cluster, err := dynamic.NewForConfig(config)
	if err != nil {
		return false
	}
	_, account := cluster.Resource(schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}).
		Namespace("default").Get(ctx, "default", metav1.GetOptions{})
	_, service := cluster.Resource(schema.GroupVersionResource{Version: "v1", Resource: "services"}).
		Namespace("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	return account == nil && service == nil
}
