package kube

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/klog/v2"
)

func TestMain(m *testing.M) {
	// What is not there appears at once in these tests, or never.
	firstContact.Duration, notYet.Duration = time.Millisecond, 10*time.Millisecond
	klog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

const configMap = "kubernetes:core/v1:ConfigMap"

const podInputs = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}"

// setStatus gives an object a status, as a controller does.
func setStatus(t *testing.T, object *unstructured.Unstructured, status string) {
	t.Helper()
	object.Object["status"] = fromYAML(t, status).Object
}

func TestLifeOfAConfigMap(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig(), "enableConfigMapMutable", "true")
	r := e.create(configMap, "settings", "{apiVersion: v1, kind: ConfigMap, data: {a: x, b: 'y'}}")
	name := e.field(r.output, "metadata.name")
	if !strings.HasPrefix(name, "settings-") || len(name) != len("settings-")+8 || r.id != "default/"+name {
		t.Errorf("name %s, ID %s", name, r.id)
	}
	for path, want := range map[string]string{
		"__inputs.data.a": "x", "__initialApiVersion": "v1", "metadata.annotations[\"pulumi.com/autonamed\"]": "true",
		"metadata.uid": "uid-/api/v1/namespaces/default/configmaps/" + name,
	} {
		if got := e.field(r.output, path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if manager := e.field(r.output, "__fieldManager"); !strings.HasPrefix(manager, "pulumi-kubernetes-") {
		t.Errorf("field manager %s", manager)
	}

	same, _ := e.change(r, "{apiVersion: v1, kind: ConfigMap, data: {a: x, b: 'y'}}")
	if same.GetChanges() != pulumirpc.DiffResponse_DIFF_NONE {
		t.Errorf("a difference where there is none: %v", same)
	}
	diff, req := e.change(r, "{apiVersion: v1, kind: ConfigMap, data: {a: z, b: 'y'}}")
	if diff.GetDetailedDiff()["data.a"].GetKind() != pulumirpc.PropertyDiff_UPDATE || len(diff.GetReplaces()) > 0 {
		t.Errorf("diff %v", diff)
	}
	r, err := e.update(r, req)
	if err != nil || e.field(r.output, "data.a") != "z" || e.field(r.output, "metadata.name") != name {
		t.Errorf("update: %v, %v", err, r.output)
	}

	server.change(t, "/api/v1/namespaces/default/configmaps/"+name, func(object *unstructured.Unstructured) {
		_ = unstructured.SetNestedField(object.Object, "drifted", "data", "b")
	})
	read, err := e.read(r)
	if err != nil || e.field(read.GetInputs(), "data.b") != "drifted" {
		t.Errorf("refresh: %v, %v", err, read)
	}
	if err := e.remove(r); err != nil {
		t.Fatal(err)
	}
	if err := e.remove(r); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
	if read, err := e.read(r); err != nil || read.GetId() != "" {
		t.Errorf("reading what is gone: %v, %v", read, err)
	}
	if discoveries := server.seen("GET /api/v1"); discoveries != 1 {
		t.Errorf("%d discoveries of one group", discoveries)
	}
}

func TestCreateNeverTakesOverAnObject(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	inputs := "{apiVersion: v1, kind: ConfigMap, metadata: {name: there}}"
	e.create(configMap, "one", inputs)
	_, err := e.tryCreate(e.check(configMap, "two", inputs), 0)
	if err == nil || !strings.Contains(err.Error(), "already exists") ||
		!strings.Contains(err.Error(), "upsertExistingObjects") {
		t.Errorf("error %v", err)
	}
	upsert := start(t, "kubeconfig", server.kubeconfig(), "upsertExistingObjects", "true")
	upsert.create(configMap, "two", inputs)
}

func TestReplacementKeepsAFixedNameFree(t *testing.T) {
	e := start(t, "kubeconfig", newAPIServer(t).kubeconfig())
	named := e.create(configMap, "named", "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {k: x}}")
	diff, _ := e.change(named, "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {k: 'y'}}")
	if !slices.Equal(diff.GetReplaces(), []string{"data.k"}) || !diff.GetDeleteBeforeReplace() {
		t.Errorf("named: %v", diff)
	}
	unnamed := e.create(configMap, "unnamed", "{apiVersion: v1, kind: ConfigMap, data: {k: x}}")
	diff, _ = e.change(unnamed, "{apiVersion: v1, kind: ConfigMap, data: {k: 'y'}}")
	if !slices.Equal(diff.GetReplaces(), []string{"data.k"}) || diff.GetDeleteBeforeReplace() {
		t.Errorf("unnamed: %v", diff)
	}
	moved, _ := e.change(named, "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: other}, data: {k: x}}")
	if !slices.Equal(moved.GetReplaces(), []string{"metadata.namespace"}) || moved.GetDeleteBeforeReplace() {
		t.Errorf("moved: %v", moved)
	}
	ignored, _ := e.change(named, "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {k: 'y'}}", "data")
	if ignored.GetChanges() != pulumirpc.DiffResponse_DIFF_NONE {
		t.Errorf("ignored: %v", ignored)
	}
}

func TestDryRunFindsImmutableFields(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	r := e.create("kubernetes:core/v1:Service", "s",
		"{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: None, ipFamilyPolicy: a}}")
	server.refuse = func(method string, object *unstructured.Unstructured) *metav1.Status {
		refused := statusOf(422, metav1.StatusReasonInvalid, "no")
		refused.Details = &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Field: "spec.ipFamilyPolicy", Message: "Invalid value: field is immutable"}},
		}
		return refused
	}
	diff, _ := e.change(r,
		"{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: None, ipFamilyPolicy: b}}")
	if !slices.Equal(diff.GetReplaces(), []string{"spec.ipFamilyPolicy"}) {
		t.Errorf("diff %v", diff)
	}
}

func TestConflictNamesTheOtherManager(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig(), "enableConfigMapMutable", "true")
	r := e.create(configMap, "c", "{apiVersion: v1, kind: ConfigMap, data: {a: x}}")
	server.refuse = func(string, *unstructured.Unstructured) *metav1.Status {
		return statusOf(409, metav1.StatusReasonConflict, `Apply failed with 1 conflict: conflict with "helm": .data.a`)
	}
	_, req := e.change(r, "{apiVersion: v1, kind: ConfigMap, data: {a: 'y'}}")
	_, err := e.update(r, req)
	for _, part := range []string{`conflict with "helm": .data.a`, "pulumi.com/patchForce", "pulumi-kubernetes-"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in %v", part, err)
		}
	}
}

func TestPodIsAwaited(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	path := "/api/v1/namespaces/default/pods/p"
	steps := []string{ // each comes once the status of the one before is shown
		`{phase: Pending, conditions: [{type: PodScheduled, status: "True"}], ` +
			`containerStatuses: [{name: c, state: {waiting: {reason: ErrImagePull, message: "manifest unknown"}}}]}`,
		`{phase: Running, podIP: 10.0.0.9, conditions: [{type: Ready, status: "True"}]}`,
	}
	e.onStatus = func(text string) {
		if strings.HasPrefix(text, "Waiting for Pod default/p") && len(steps) > 0 {
			step := steps[0]
			steps = steps[1:]
			server.change(t, path, func(pod *unstructured.Unstructured) { setStatus(t, pod, step) })
		}
	}
	r := e.create("kubernetes:core/v1:Pod", "p", podInputs)
	if got := e.field(r.output, "status.podIP"); got != "10.0.0.9" {
		t.Errorf("podIP %s", got)
	}
	if !e.said(`container "c": [ErrImagePull] manifest unknown`) {
		t.Errorf("the pull error was not shown: %q", e.messages)
	}
}

func TestFailedPodStaysInTheState(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	server.written = func(object *unstructured.Unstructured) {
		if object.GetKind() == "Pod" {
			setStatus(t, object, `{phase: Failed, conditions: [{type: PodScheduled, status: "True"}], `+
				`containerStatuses: [{name: c, state: {terminated: {exitCode: 3, reason: Error}}}]}`)
		}
	}
	event := fromYAML(t, `{apiVersion: v1, kind: Event, metadata: {name: e, namespace: default},
		type: Warning, reason: BackOff, message: "restarting failed container",
		involvedObject: {uid: uid-/api/v1/namespaces/default/pods/p}}`)
	for _, name := range []string{"e", "f"} {
		server.objects["/api/v1/namespaces/default/events/"+name] = event.Object
	}
	r, err := e.tryCreate(e.check("kubernetes:core/v1:Pod", "p", podInputs), 60)
	failure := initFailure(err)
	if failure == nil || failure.GetId() != "default/p" {
		t.Fatalf("error %v", err)
	}
	reasons := strings.Join(failure.GetReasons(), "\n")
	for _, part := range []string{"exit code 3", "[BackOff] restarting failed container"} {
		if !strings.Contains(reasons, part) {
			t.Errorf("%q is missing in %s", part, reasons)
		}
	}
	if strings.Count(reasons, "restarting") != 1 {
		t.Errorf("the same warning twice: %s", reasons)
	}
	if got := e.field(failure.GetProperties(), "status.phase"); got != "Failed" {
		t.Errorf("state: %s", got)
	}
	if _, err := e.read(r); initFailure(err) == nil {
		t.Errorf("a refresh calls it up: %v", err)
	}
}

func TestTimeoutAndCancelKeepTheObject(t *testing.T) {
	for name, ended := range map[string]string{"timeout": "timed out after 50ms", "cancel": "cancelled"} {
		t.Run(name, func(t *testing.T) {
			e := start(t, "kubeconfig", newAPIServer(t).kubeconfig())
			limit := 0.05
			if name == "cancel" {
				limit = 600
				e.onStatus = func(text string) {
					if strings.HasPrefix(text, "Waiting") {
						_, _ = e.Cancel(t.Context(), &emptypb.Empty{})
					}
				}
			}
			_, err := e.tryCreate(e.check("kubernetes:core/v1:Pod", "p", podInputs), limit)
			if failure := initFailure(err); failure == nil || failure.GetId() != "default/p" ||
				!strings.Contains(err.Error(), ended) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestSkipAwait(t *testing.T) {
	e := start(t, "kubeconfig", newAPIServer(t).kubeconfig())
	e.create("kubernetes:core/v1:Pod", "p", "{apiVersion: v1, kind: Pod, spec: {containers: [{name: c, image: i}]}, "+
		"metadata: {name: p, annotations: {pulumi.com/skipAwait: 'true'}}}")
}

func TestDeleteWaitsForFinalizers(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	r := e.create(configMap, "c", "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, finalizers: [example.com/hold]}}")
	path := "/api/v1/namespaces/default/configmaps/c"
	e.onStatus = func(text string) {
		if strings.Contains(text, "example.com/hold") {
			server.mutex.Lock()
			server.drop(path)
			server.mutex.Unlock()
		}
	}
	if err := e.remove(r); err != nil {
		t.Error(err)
	}
	if !e.said("its finalizers example.com/hold") || server.object(path) != nil {
		t.Errorf("messages %q", e.messages)
	}
}

func TestAnotherObjectOfTheSameNameIsNotTheDeletedOne(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	r := e.create(configMap, "c", "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, finalizers: [example.com/hold]}}")
	e.onStatus = func(text string) {
		if strings.Contains(text, "example.com/hold") {
			server.change(t, "/api/v1/namespaces/default/configmaps/c", func(object *unstructured.Unstructured) {
				object.SetUID("another")
				object.SetFinalizers(nil)
			})
		}
	}
	if err := e.remove(r); err != nil {
		t.Error(err)
	}
}

func TestNamespaces(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig(), "namespace", "team")
	if r := e.create(configMap, "c", "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}"); r.id != "team/c" {
		t.Errorf("ID %s", r.id)
	}
	namespace := e.create("kubernetes:core/v1:Namespace", "ns",
		"{apiVersion: v1, kind: Namespace, metadata: {name: apart}}")
	if namespace.id != "apart" {
		t.Errorf("ID %s", namespace.id)
	}
}

func TestKindThatComesLater(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	inputs := "{apiVersion: example.com/v1, kind: Thing, metadata: {name: a}}"
	checked := e.check("kubernetes:example.com/v1:Thing", "a", inputs)
	planned, err := e.Create(t.Context(), &pulumirpc.CreateRequest{
		Urn: checked.urn, Properties: checked.inputs, Preview: true,
	})
	if err != nil || e.field(planned.GetProperties(), "metadata.name") != "a" {
		t.Errorf("preview: %v, %v", planned, err)
	}
	e.onStatus = func(text string) {
		if strings.Contains(text, "Waiting for what it needs") {
			server.mutex.Lock()
			server.kinds["example.com/v1"] = []metav1.APIResource{{Name: "things", Kind: "Thing"}}
			server.mutex.Unlock()
		}
	}
	r, err := e.tryCreate(checked, 60)
	if err != nil || r.id != "a" {
		t.Errorf("ID %s, %v", r.id, err)
	}
}

func TestPreviewOfCreate(t *testing.T) {
	server := newAPIServer(t)
	server.written = func(object *unstructured.Unstructured) {
		_ = unstructured.SetNestedField(object.Object, "Always", "spec", "restartPolicy")
		setStatus(t, object, "{phase: Pending}")
	}
	e := start(t, "kubeconfig", server.kubeconfig())
	r := e.check("kubernetes:core/v1:Pod", "p", podInputs)
	planned, err := e.Create(t.Context(), &pulumirpc.CreateRequest{Urn: r.urn, Properties: r.inputs, Preview: true})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"spec.restartPolicy": "Always", "metadata.name": "p", "metadata.uid": "unknown", "status": "unknown",
	} {
		if got := e.field(planned.GetProperties(), path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if server.object("/api/v1/namespaces/default/pods/p") != nil {
		t.Error("the preview created it")
	}
	unknown := e.check("kubernetes:core/v1:Pod", "q",
		"{apiVersion: v1, kind: Pod, metadata: {name: q}, spec: {nodeName: '?'}}")
	planned, err = e.Create(t.Context(), &pulumirpc.CreateRequest{
		Urn: unknown.urn, Properties: unknown.inputs, Preview: true,
	})
	if err != nil || e.field(planned.GetProperties(), "spec.nodeName") != "unknown" ||
		e.field(planned.GetProperties(), "metadata.name") != "q" {
		t.Errorf("with an unknown value: %v, %v", planned, err)
	}
}

func TestImport(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	e.create("kubernetes:core/v1:Secret", "s", "{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {a: x}}")
	read, err := e.Read(t.Context(), &pulumirpc.ReadRequest{Id: "default/s", Urn: urnOf("kubernetes:core/v1:Secret", "s")})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"metadata.name": "s", "metadata.namespace": "default", "metadata.uid": "none", "data": "secret(map[a:{eA==}])",
	} {
		if got := e.field(read.GetInputs(), path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if _, err := e.Read(t.Context(), &pulumirpc.ReadRequest{Id: "a/b/c", Urn: urnOf(configMap, "s")}); err == nil ||
		!strings.Contains(err.Error(), "namespace/name") {
		t.Errorf("a wrong ID: %v", err)
	}
}

func TestUnreachableCluster(t *testing.T) {
	server := newAPIServer(t)
	kubeconfig := server.kubeconfig()
	e := start(t, "kubeconfig", kubeconfig)
	r := e.create(configMap, "c", "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}")
	server.CloseClientConnections()
	server.Close()

	plain := start(t, "kubeconfig", kubeconfig)
	_, check := plain.Check(t.Context(), &pulumirpc.CheckRequest{Urn: r.urn, News: r.inputs})
	_, read := plain.read(r)
	for what, err := range map[string]error{"check": check, "read": read, "delete": plain.remove(r)} {
		if err == nil || !strings.Contains(err.Error(), "the Kubernetes cluster at "+server.URL+" is unreachable") {
			t.Errorf("%s: %v", what, err)
		}
		if what != "check" && !strings.Contains(err.Error(), "PULUMI_K8S_DELETE_UNREACHABLE") {
			t.Errorf("%s names no way out: %v", what, err)
		}
	}
	dropping := start(t, "kubeconfig", kubeconfig, "deleteUnreachable", "true")
	if err := dropping.remove(r); err != nil || !dropping.said("deleteUnreachable is set") {
		t.Errorf("delete: %v, %q", err, dropping.messages)
	}
	if read, err := dropping.read(r); err != nil || read.GetId() != "" {
		t.Errorf("read: %v, %v", read, err)
	}
	skipping := start(t, "kubeconfig", kubeconfig, "skipUpdateUnreachable", "true")
	if read, err := skipping.read(r); err != nil || read.GetId() != r.id {
		t.Errorf("read: %v, %v", read, err)
	}
	checked, err := skipping.Check(t.Context(), &pulumirpc.CheckRequest{Urn: r.urn, Olds: r.inputs, News: r.inputs})
	if err != nil || e.field(checked.GetInputs(), "metadata.name") != "c" {
		t.Errorf("check: %v, %v", checked, err)
	}
}

func TestRefusedLoginIsNoUnreachableCluster(t *testing.T) {
	server := newAPIServer(t)
	e := start(t, "kubeconfig", server.kubeconfig())
	r := e.create(configMap, "c", "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}")
	server.unauthorized = true
	dropping := start(t, "kubeconfig", server.kubeconfig(), "deleteUnreachable", "true")
	if err := dropping.remove(r); err == nil || strings.Contains(err.Error(), "unreachable") {
		t.Errorf("delete: %v", err)
	}
}

func TestWarningsOfTheAPIServerAreShownOnce(t *testing.T) {
	server := newAPIServer(t)
	server.warning = "v1 ConfigMap is old-fashioned"
	for suppress, want := range map[string]int{"false": 1, "true": 0} {
		e := start(t, "kubeconfig", server.kubeconfig(), "suppressDeprecationWarnings", suppress)
		r := e.create(configMap, "c"+suppress, "{apiVersion: v1, kind: ConfigMap}")
		if _, err := e.read(r); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(strings.Join(e.messages, "\n"), "warning: v1 ConfigMap is old-fashioned"); got != want {
			t.Errorf("suppress %s: shown %d times: %q", suppress, got, e.messages)
		}
	}
}

func TestRefusals(t *testing.T) {
	e := start(t, "kubeconfig", newAPIServer(t).kubeconfig())
	_, release := e.Check(t.Context(), &pulumirpc.CheckRequest{
		Urn: urnOf("kubernetes:helm.sh/v3:Release", "r"), News: e.properties("{}"),
	})
	_, list := e.Check(t.Context(), &pulumirpc.CheckRequest{
		Urn: urnOf("kubernetes:core/v1:PodList", "l"), News: e.properties("{apiVersion: v1, kind: PodList}"),
	})
	_, chart := e.Construct(t.Context(), &pulumirpc.ConstructRequest{Type: "kubernetes:helm.sh/v4:Chart"})
	_, template := e.Invoke(t.Context(), &pulumirpc.InvokeRequest{Tok: "kubernetes:helm:template"})
	_, generate := e.Check(t.Context(), &pulumirpc.CheckRequest{
		Urn: urnOf(configMap, "g"),
		News: e.properties("{apiVersion: v1, kind: ConfigMap, " +
			"metadata: {generateName: a-, annotations: {pulumi.com/waitFor: soon}}}"),
	})
	for want, err := range map[string]error{
		"helm.sh/v3:Release": release, "core/v1:PodList": list, "helm.sh/v4:Chart": chart,
		"kubernetes:helm:template": template, "metadata.generateName": generate,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if !strings.Contains(generate.Error(), "pulumi.com/waitFor") {
		t.Errorf("not all problems at once: %v", generate)
	}
}

func TestDecodeYAML(t *testing.T) {
	e := start(t, "kubeconfig", newAPIServer(t).kubeconfig())
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n# nothing\n---\n" +
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n"
	args, err := structpb.NewStruct(map[string]any{"text": text, "defaultNamespace": "team"})
	if err != nil {
		t.Fatal(err)
	}
	response, err := e.Invoke(t.Context(), &pulumirpc.InvokeRequest{Tok: "kubernetes:yaml:decode", Args: args})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"result[0].metadata.namespace": "team", "result[1].metadata.name": "b", "result[1].metadata.namespace": "none",
		"result[2]": "none",
	} {
		if got := e.field(response.GetReturn(), path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func kubeconfigWith(server, authority, user string) string {
	return "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n" +
		"users: [{name: u, user: {token: " + user + "}}]\n" +
		"clusters: [{name: c, cluster: {server: '" + server + "', certificate-authority-data: " + authority + "}}]\n"
}

func TestProviderIsReplacedForAnotherClusterOnly(t *testing.T) {
	one := kubeconfigWith("https://a:6443", "b25l", "t1")
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(kubeconfigWith("https://c:6443", "b25l", "t3")), 0o600); err != nil {
		t.Fatal(err)
	}
	type arguments map[string]any
	tests := map[string]struct {
		old, new arguments
		want     []string // nil for no difference at all
	}{
		"nothing": {old: arguments{"kubeconfig": one}, new: arguments{"kubeconfig": one}},
		"credentials": {
			old: arguments{"kubeconfig": one}, new: arguments{"kubeconfig": kubeconfigWith("https://a:6443", "b25l", "t2")},
			want: []string{},
		},
		"address": {
			old: arguments{"kubeconfig": one}, new: arguments{"kubeconfig": kubeconfigWith("https://b:6443", "b25l", "t1")},
			want: []string{},
		},
		"content to a path": {old: arguments{"kubeconfig": one}, new: arguments{"kubeconfig": path}, want: []string{}},
		"another cluster": {
			old: arguments{"kubeconfig": one}, new: arguments{"kubeconfig": kubeconfigWith("https://a:6443", "dHdv", "t1")},
			want: []string{"kubeconfig"},
		},
		"not known yet": {old: arguments{"kubeconfig": one}, new: arguments{"kubeconfig": "?"}, want: []string{}},
		"namespace": {
			old: arguments{"kubeconfig": one}, new: arguments{"kubeconfig": one, "namespace": "n"}, want: []string{},
		},
		"identifier the same": {
			old:  arguments{"kubeconfig": one, "clusterIdentifier": "i"},
			new:  arguments{"kubeconfig": kubeconfigWith("https://a:6443", "dHdv", "t1"), "clusterIdentifier": "i"},
			want: []string{},
		},
		"identifier changed": {
			old: arguments{"kubeconfig": one, "clusterIdentifier": "i"},
			new: arguments{"kubeconfig": one, "clusterIdentifier": "j"}, want: []string{"clusterIdentifier"},
		},
		"identifier added": {
			old: arguments{"kubeconfig": one}, new: arguments{"kubeconfig": one, "clusterIdentifier": "j"}, want: []string{},
		},
	}
	e := start(t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			text := func(values arguments) string {
				content, err := json.Marshal(values)
				if err != nil {
					t.Fatal(err)
				}
				return string(content)
			}
			diff, err := e.DiffConfig(t.Context(), &pulumirpc.DiffRequest{
				Olds: e.properties(text(test.old)), News: e.properties(text(test.new)),
			})
			if err != nil {
				t.Fatal(err)
			}
			if (diff.GetChanges() == pulumirpc.DiffResponse_DIFF_NONE) != (test.want == nil) ||
				!slices.Equal(diff.GetReplaces(), test.want) {
				t.Errorf("got %v, want %v", diff, test.want)
			}
		})
	}
}

func TestCheckConfigReportsAllProblems(t *testing.T) {
	e := start(t)
	response, err := e.CheckConfig(t.Context(), &pulumirpc.CheckRequest{News: e.properties(
		"{kubeconfig: 'a: [', kubeClientSettings: '{', renderYamlToDirectory: out, " +
			"enableServerSideApply: 'false', strictMode: 'true'}")})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, failure := range response.GetFailures() {
		got = append(got, failure.GetProperty())
	}
	slices.Sort(got)
	want := []string{"context", "enableServerSideApply", "kubeClientSettings", "kubeconfig", "renderYamlToDirectory"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	fine, err := e.CheckConfig(t.Context(), &pulumirpc.CheckRequest{
		News: e.properties("{kubeconfig: '?', strictMode: 'true', context: c}"),
	})
	if err != nil || len(fine.GetFailures()) > 0 {
		t.Errorf("%v, %v", fine, err)
	}
}

func TestNoKubeconfigErrorShowsItsContent(t *testing.T) {
	if _, err := loadKubeconfig("token: sesame\nusers: ["); err == nil || strings.Contains(err.Error(), "sesame") {
		t.Errorf("%v", err)
	}
}
