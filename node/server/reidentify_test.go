package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
)

// A server that is given another cluster's data has its objects, and lets in nobody who has credentials of that one.
func TestReidentify(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes three starts of a control plane")
	}
	source := configFor(t, fmt.Sprintf(alone, freePort(t)))
	ctx, stop := startServer(t, source)
	client, err := adminClient(source)
	if err != nil {
		t.Fatal(err)
	}
	makeObjects(ctx, t, client)
	token := awaitToken(ctx, t, client, "")
	secrets, err := client.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	awaitControllers(ctx, t, source)
	stop()

	fork := configFor(t, fmt.Sprintf(alone, freePort(t)))
	content, err := os.ReadFile(fork.path("config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	content = bytes.Replace(content, []byte("node-name: node-1"), []byte("node-name: other"), 1)
	if err := os.WriteFile(fork.path("config.yaml"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(source.datastoreSocket()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(fork.path("server"), os.DirFS(source.path("server"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fork.path("server", seedFile), []byte("a snapshot"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop = startServer(t, fork)
	client, err = adminClient(fork)
	if err != nil {
		t.Fatal(err)
	}
	checkObjects(ctx, t, client, readFile(t, fork.path("server", "tls", serverCA+".crt")))
	for _, name := range []string{serverCA, clientCA, requestHeaderCA} {
		made, before := pki{config: fork}.cert(name), pki{config: source}.cert(name)
		if bytes.Equal(readFile(t, made), readFile(t, before)) {
			t.Errorf("%s is that of the other cluster", name)
		}
	}
	pair, err := tls.LoadX509KeyPair(pki{config: source}.cert(admin), pki{config: source}.key(admin))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, fork, "who has the other cluster's certificate", []tls.Certificate{pair}, "")
	refused(t, fork, "who has the other cluster's token", nil, token)
	if now := awaitToken(ctx, t, client, token); now == token {
		t.Error("the token of a service account is that of the other cluster")
	}
	then := metav1.ListOptions{
		ResourceVersion:      secrets.ResourceVersion,
		ResourceVersionMatch: metav1.ResourceVersionMatchExact,
		Limit:                10,
	}
	if found, err := client.CoreV1().Secrets("default").List(ctx, then); !apierrors.IsResourceExpired(err) {
		t.Errorf("what there was in the other cluster is told: %d Secrets, %v", len(found.Items), err)
	}
	trusted, err := client.CoreV1().ConfigMaps("kube-system").
		Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil || trusted.Data["client-ca-file"] != string(readFile(t, fork.path("server", "tls", clientCA+".crt"))) {
		t.Errorf("aggregated API servers trust others than this cluster's: %v, %v", trusted.Data, err)
	}
	stop()
	// Before a start that tidies it up.
	stored := readFile(t, fork.path("server", "db", "state.db"))
	log, _ := os.ReadFile(fork.path("server", "db", "state.db-wal")) // there may be none
	if bytes.Contains(stored, []byte(token)) || bytes.Contains(log, []byte(token)) {
		t.Error("the datastore has a token of the other cluster")
	}

	authority := readFile(t, fork.path("server", "tls", serverCA+".crt"))
	_, stop = startServer(t, fork)
	if !bytes.Equal(authority, readFile(t, fork.path("server", "tls", serverCA+".crt"))) {
		t.Error("its identity is another one after each start")
	}
	stop()
}

// A node has what its administrator has left it, which may be nothing.
func TestRenamedNodeWithoutLabels(t *testing.T) {
	ctx, store, stop := openDatastore(t, configFor(t, ""))
	defer stop()
	r := &renaming{backend: store, name: "other"}
	if err := r.renamed(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "before"}}, "other"); err != nil {
		t.Fatal(err)
	}
	if _, found, err := store.Get(ctx, storageKey("minions", "", "other"), 0, false); err != nil || found == nil {
		t.Errorf("it has no node of its name: %v", err)
	}
}

// What the node was called is found out also where it is not alone, or where the renaming was interrupted.
func TestFindNode(t *testing.T) {
	ctx, store, stop := openDatastore(t, configFor(t, ""))
	defer stop()
	registered := func(name string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{ProviderID: providerID(name)}}
	}
	plain := func(name string, labels ...string) *corev1.Node {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		for _, label := range labels {
			node.Labels[label] = "true"
		}
		return node
	}
	for _, c := range []struct {
		what    string
		nodes   []*corev1.Node
		hasNode bool
		want    string // "error" for one
	}{
		{"the only one", []*corev1.Node{plain("dev")}, true, "dev"},
		{"by its id", []*corev1.Node{registered("dev"), plain("zz")}, true, "dev"},
		{"interrupted", []*corev1.Node{registered("dev"), registered("dev2"), plain("zz")}, true, "dev"},
		{"done", []*corev1.Node{registered("dev2"), plain("zz")}, true, ""},
		{"by its role", []*corev1.Node{plain("dev", controlPlaneRole), plain("zz")}, true, "dev"},
		{"which of two", []*corev1.Node{plain("dev"), plain("zz")}, true, "error"},
		{"a control plane alone", []*corev1.Node{plain("dev")}, false, ""},
		{"none", nil, true, ""},
	} {
		for _, node := range c.nodes {
			value, err := encodeStored(node, corev1.SchemeGroupVersion)
			if err == nil {
				_, err = store.Create(ctx, storageKey("minions", "", node.Name), value, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		r := &renaming{backend: store, name: "dev2", hasNode: c.hasNode, names: map[string]string{}}
		want := map[string]string{}
		if c.want != "" {
			want[c.want] = "dev2"
		}
		if err := r.findNode(ctx); (err != nil) != (c.want == "error") || err == nil && !maps.Equal(r.names, want) {
			t.Errorf("%s: %q, %v", c.what, r.names, err)
		}
		for _, node := range c.nodes {
			if err := r.remove(ctx, storageKey("minions", "", node.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A renaming that is interrupted goes on with the names that it began with: a new one may look like a former one.
func TestInterruptedRenaming(t *testing.T) {
	config := configFor(t, "")
	ctx, store, stop := openDatastore(t, config)
	defer stop()
	for name, id := range map[string]string{"dev": providerID("dev"), "dev-w-1": joinedID("dev-w-1")} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{ProviderID: id}}
		value, err := encodeStored(node, corev1.SchemeGroupVersion)
		if err == nil {
			_, err = store.Create(ctx, storageKey("minions", "", name), value, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	begin := func() *renaming {
		t.Helper()
		r := &renaming{backend: store, name: "dev-2", hasNode: true, names: map[string]string{}}
		r.noted = config.path("server", renamesFile)
		if err := r.findNodes(ctx); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if err := os.MkdirAll(config.path("server"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := begin()
	want := map[string]string{"dev": "dev-2", "dev-w-1": "dev-2-w-1"}
	if !maps.Equal(r.names, want) {
		t.Errorf("the names are %q", r.names)
	}
	joined := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "dev-w-1"}}
	if err := r.renamed(ctx, joined, "dev-2-w-1"); err != nil {
		t.Fatal(err)
	}
	if err := r.remove(ctx, storageKey("minions", "", "dev-w-1")); err != nil {
		t.Fatal(err)
	}
	if again := begin().names; !maps.Equal(again, want) {
		t.Errorf("then they are %q", again)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// makeObjects makes what a node named "before" has.
func makeObjects(ctx context.Context, t *testing.T, client kubernetes.Interface) {
	t.Helper()
	none := metav1.CreateOptions{}
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	node := &corev1.Node{ObjectMeta: named("before"), Spec: corev1.NodeSpec{ProviderID: providerID("before")}}
	node.Labels = map[string]string{"disk": "ssd", hostnameLabel: "before"}
	node.Spec.Taints = []corev1.Taint{{Key: "mine", Effect: corev1.TaintEffectNoSchedule}}
	_, err := client.CoreV1().Nodes().Create(ctx, node, none)
	must(err)
	joined := &corev1.Node{ObjectMeta: named("before-w-1"), Spec: corev1.NodeSpec{ProviderID: joinedID("before-w-1")}}
	joined.Spec.PodCIDR, joined.Spec.PodCIDRs = "10.42.9.0/24", []string{"10.42.9.0/24"}
	_, err = client.CoreV1().Nodes().Create(ctx, joined, none)
	must(err)
	for _, stranger := range []string{"zz-somebody-s", "before-somebody-s"} {
		_, err = client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: named(stranger)}, none)
		must(err)
	}
	must(applyToken(ctx, client, "before-w-1", newMember()))
	slice := &discoveryv1.EndpointSlice{ObjectMeta: named("kubernetes-mine"), AddressType: discoveryv1.AddressTypeIPv4}
	slice.Endpoints = []discoveryv1.Endpoint{}
	_, err = client.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, none)
	must(err)
	containers := []corev1.Container{{Name: "main", Image: "example.test/image:1"}}
	for name, node := range map[string]string{"bound": "before", "joined": "before-w-1", "elsewhere": "third"} {
		pod := &corev1.Pod{ObjectMeta: named(name), Spec: corev1.PodSpec{NodeName: node, Containers: containers}}
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{ // as a DaemonSet's has it
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
					{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node}},
				}}},
			},
		}}
		pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		_, err = client.CoreV1().Pods("default").Create(ctx, pod, none)
		must(err)
	}
	volume := &corev1.PersistentVolume{ObjectMeta: named("folder"), Spec: corev1.PersistentVolumeSpec{
		Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/data"}},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: hostnameLabel, Operator: corev1.NodeSelectorOpIn, Values: []string{"before"}},
			}}},
		}},
	}}
	_, err = client.CoreV1().PersistentVolumes().Create(ctx, volume, none)
	must(err)
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "claim", Annotations: map[string]string{selectedNode: "before"}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: volume.Spec.AccessModes,
			Resources:   corev1.VolumeResourceRequirements{Requests: volume.Spec.Capacity},
		},
	}
	_, err = client.CoreV1().PersistentVolumeClaims("default").Create(ctx, claim, none)
	must(err)
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name:        "token",
			Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"},
		},
		Type: corev1.SecretTypeServiceAccountToken,
	}
	_, err = client.CoreV1().Secrets("default").Create(ctx, secret, none)
	must(err)
	_, err = client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: named("data")}, none)
	must(err)
}

func checkObjects(ctx context.Context, t *testing.T, client kubernetes.Interface, authority []byte) {
	t.Helper()
	get := metav1.GetOptions{}
	if _, err := client.CoreV1().Nodes().Get(ctx, "before", get); !apierrors.IsNotFound(err) {
		t.Errorf("the other cluster's node is there: %v", err)
	}
	renamed, err := client.CoreV1().Nodes().Get(ctx, "other", get)
	if err != nil || renamed.Labels["disk"] != "ssd" || renamed.Labels[hostnameLabel] != "other" ||
		!slices.ContainsFunc(renamed.Spec.Taints, func(taint corev1.Taint) bool { return taint.Key == "mine" }) {
		t.Errorf("the node has not what it was given: %+v, %v", renamed, err)
	}
	joined, err := client.CoreV1().Nodes().Get(ctx, "other-w-1", get)
	if err != nil || joined.Spec.ProviderID != joinedID("other-w-1") || joined.Spec.PodCIDR != "10.42.9.0/24" {
		t.Errorf("the node that had joined: %+v, %v", joined.Spec, err)
	}
	if _, err := client.CoreV1().Nodes().Get(ctx, "before-w-1", get); !apierrors.IsNotFound(err) {
		t.Errorf("the node that had joined is there by its former name: %v", err)
	}
	for _, stranger := range []string{"zz-somebody-s", "before-somebody-s"} {
		if _, err := client.CoreV1().Nodes().Get(ctx, stranger, get); err != nil {
			t.Error(err)
		}
	}
	ofNodes := metav1.ListOptions{FieldSelector: "type=" + string(corev1.SecretTypeBootstrapToken)}
	tokens, err := client.CoreV1().Secrets("kube-system").List(ctx, ofNodes)
	if err != nil || len(tokens.Items) > 0 {
		t.Errorf("nodes join by the other cluster's tokens: %v, %v", tokens.Items, err)
	}
	if _, err := client.DiscoveryV1().EndpointSlices("default").Get(ctx, "kubernetes-mine", get); err != nil {
		t.Error(err)
	}
	for name, node := range map[string]string{"bound": "other", "joined": "other-w-1", "elsewhere": "third"} {
		pod, err := client.CoreV1().Pods("default").Get(ctx, name, get)
		if err != nil || pod.Spec.NodeName != node {
			t.Errorf("the pod %s is on %q, not on %q: %v", name, pod.Spec.NodeName, node, err)
			continue
		}
		terms := pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
		if terms[0].MatchFields[0].Values[0] != node {
			t.Errorf("the pod %s is for another node: %+v", name, terms)
		}
	}
	volume, err := client.CoreV1().PersistentVolumes().Get(ctx, "folder", get)
	if err != nil || volume.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] != "other" {
		t.Errorf("the volume is not the node's: %+v, %v", volume.Spec.NodeAffinity, err)
	}
	claim, err := client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "claim", get)
	if err != nil || claim.Annotations[selectedNode] != "other" {
		t.Errorf("the claim's volume is made elsewhere: %v, %v", claim.Annotations, err)
	}
	root, err := client.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", get)
	if err != nil || root.Data["ca.crt"] != string(authority) {
		t.Errorf("pods trust another API server: %v, %v", root.Data, err)
	}
	if _, err := client.CoreV1().ConfigMaps("default").Get(ctx, "data", get); err != nil {
		t.Error(err)
	}
}

// awaitToken waits for the token in the Secret, another one than that of before.
func awaitToken(ctx context.Context, t *testing.T, client kubernetes.Interface, before string) string {
	t.Helper()
	var token string
	err := wait.PollUntilContextTimeout(ctx, pollEvery, time.Minute, true, func(ctx context.Context) (bool, error) {
		secret, err := client.CoreV1().Secrets("default").Get(ctx, "token", metav1.GetOptions{})
		token = string(secret.Data[corev1.ServiceAccountTokenKey])
		return err == nil && token != "" && token != before, nil
	})
	if err != nil {
		t.Fatalf("the Secret has no token of its own: %v", err)
	}
	return token
}

func refused(t *testing.T, config *Config, who string, certificates []tls.Certificate, token string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, Certificates: certificates},
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequest(http.MethodGet, config.localURL()+"/api", nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if response.Body.Close(); response.StatusCode != http.StatusUnauthorized {
		t.Errorf("%s is answered %s", who, response.Status)
	}
}
