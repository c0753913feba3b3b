package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func TestParseManifest(t *testing.T) {
	const a = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	const b = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: b, namespace: ns}\n"
	const missing = "apiVersion, kind and metadata.name are needed"
	cases := []struct {
		name, content string
		want          []string
		err           string
	}{
		{"nothing", "", nil, ""},
		{"comments and empty documents", "# a\n---\n---\n# b\n---\n", nil, ""},
		{
			"several documents",
			"---\n" + a + "---\n# between\n---\n" + b,
			[]string{"v1 ConfigMap /a", "apps/v1 Deployment ns/b"},
			"",
		},
		{
			"Windows line ends",
			strings.ReplaceAll(a+"---\n"+b, "\n", "\r\n"),
			[]string{"v1 ConfigMap /a", "apps/v1 Deployment ns/b"},
			"",
		},
		{"JSON", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`, []string{"v1 ConfigMap /a"}, ""},
		{
			"separators in a value",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: |\n    ---\n    y\n",
			[]string{"v1 ConfigMap /a"},
			"",
		},
		{
			"a list",
			"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: a}}\n" +
				"- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n---\n" + a,
			[]string{"v1 Secret /a", "v1 Secret /b", "v1 ConfigMap /a"},
			"",
		},
		{"no kind", a + "---\napiVersion: v1\nmetadata: {name: x}\n", nil, "document 2: " + missing},
		{"no name", "apiVersion: v1\nkind: ConfigMap\n", nil, "document 1: " + missing},
		{
			"a list with an item that has no name",
			"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Secret}]\n",
			nil,
			"document 1: " + missing,
		},
		{"no YAML", "a: [", nil, "error converting YAML to JSON"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			documents, err := parseManifest([]byte(c.content))
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("got error %v, want %q", err, c.err)
			}
			var got []string
			for _, d := range documents {
				got = append(got, d.GetAPIVersion()+" "+d.GetKind()+" "+d.GetNamespace()+"/"+d.GetName())
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// fakeCluster stands for an API server: an object is one thing under all versions of its kind, which the fakes of
// client-go do not know.
type fakeCluster struct {
	objects map[string]bool
	calls   []string // what was applied and deleted, in order
	failing string   // calls that contain this fail
	failure error    // how; "no" if nil
}

func (c *fakeCluster) react(action clienttesting.Action) (bool, runtime.Object, error) {
	verb, name := "apply", ""
	switch action := action.(type) {
	case clienttesting.PatchAction:
		name = action.GetName()
	case clienttesting.DeleteAction:
		verb, name = "delete", action.GetName()
	}
	key := action.GetResource().Resource + " " + action.GetNamespace() + "/" + name
	call := verb + " " + key
	c.calls = append(c.calls, call)
	switch {
	case c.failing != "" && strings.Contains(call, c.failing):
		return true, nil, cmp.Or(c.failure, errors.New("no"))
	case verb == "delete" && !c.objects[key]:
		return true, nil, apierrors.NewNotFound(action.GetResource().GroupResource(), name)
	case verb == "delete":
		delete(c.objects, key)
	default:
		c.objects[key] = true
	}
	return true, nil, nil
}

type staticMapper struct{ *meta.DefaultRESTMapper }

func (staticMapper) Reset() {}

func newManifests(t *testing.T) (*manifests, *fakeCluster) {
	mapper := meta.NewDefaultRESTMapper(nil)
	for kind, scope := range map[string]meta.RESTScope{
		"/v1/ConfigMap":         meta.RESTScopeNamespace,
		"/v1/Namespace":         meta.RESTScopeRoot,
		"autoscaling/v1/Scaler": meta.RESTScopeNamespace,
		"autoscaling/v2/Scaler": meta.RESTScopeNamespace,
	} {
		part := strings.Split(kind, "/")
		mapper.Add(schema.GroupVersionKind{Group: part[0], Version: part[1], Kind: part[2]}, scope)
	}
	cluster := &fakeCluster{objects: map[string]bool{}}
	dynamic := dynamicfake.NewSimpleDynamicClient(runtime.NewScheme())
	dynamic.PrependReactor("*", "*", cluster.react)
	return &manifests{t.TempDir(), nil, fake.NewClientset(), dynamic, staticMapper{mapper}}, cluster
}

func configMap(name string) string {
	return "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\n"
}

func TestSync(t *testing.T) {
	m, cluster := newManifests(t)
	const namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: ns}\n"
	const inDefault = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: default}\n"
	scaler := func(version string) string {
		return "---\napiVersion: autoscaling/" + version + "\nkind: Scaler\nmetadata: {name: s, namespace: ns}\n"
	}
	const gone = "\x00"
	steps := []struct {
		name     string
		files    map[string]string // what changes in the folder
		disabled []string
		failing  string
		calls    []string
		problem  string // of sync
	}{
		{name: "an empty folder leaves the cluster alone"},
		{name: "files by their names, documents in their order",
			files: map[string]string{
				"b.yml":        configMap("b"),
				"a.yaml":       namespace + scaler("v1"),
				"c.json":       `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}}`,
				"README.md":    "no: [",
				".a.yaml.swp":  "no: [",
				".hidden.yaml": "no: [",
			},
			calls: []string{
				"apply namespaces /ns",
				"apply scalers ns/s",
				"apply configmaps default/b",
				"apply configmaps default/c",
			}},
		{
			name:  "what left a file, and what a file had that is gone, is deleted",
			files: map[string]string{"a.yaml": namespace, "c.json": gone},
			calls: []string{
				"apply namespaces /ns",
				"apply configmaps default/b",
				"delete configmaps default/c",
				"delete scalers ns/s",
			},
		},
		{name: "another file brings it", files: map[string]string{"b.yml": gone, "d.yaml": configMap("b") + scaler("v1")},
			calls: []string{"apply namespaces /ns", "apply configmaps default/b", "apply scalers ns/s"}},
		{
			name:  "another version of a kind, or the default namespace by its name, is the same object",
			files: map[string]string{"d.yaml": scaler("v2") + strings.Replace(inDefault, "x", "b", 1)},
			calls: []string{"apply namespaces /ns", "apply scalers ns/s", "apply configmaps default/b"},
		},
		{
			name:  "a broken file keeps what it had brought, and the others their turn",
			files: map[string]string{"a.yaml": "a: [", "e.yaml": configMap("e")},
			calls: []string{
				"apply scalers ns/s",
				"apply configmaps default/b",
				"apply configmaps default/e",
			},
			problem: "a.yaml: error converting YAML to JSON",
		},
		{
			name:    "a document that fails keeps what its file had brought, and the others their turn",
			files:   map[string]string{"a.yaml": namespace, "d.yaml": configMap("bad") + configMap("z")},
			failing: "apply configmaps default/bad",
			problem: "d.yaml: ConfigMap bad: no",
			calls: []string{
				"apply namespaces /ns",
				"apply configmaps default/bad",
				"apply configmaps default/z",
				"apply configmaps default/e",
			},
		},
		{
			name:    "a deletion that fails is tried again",
			files:   map[string]string{"d.yaml": configMap("bad") + configMap("z")},
			failing: "delete scalers",
			problem: "delete Scaler s: no",
			calls: []string{
				"apply namespaces /ns",
				"apply configmaps default/bad",
				"apply configmaps default/z",
				"apply configmaps default/e",
				"delete configmaps default/b",
				"delete scalers ns/s",
			},
		},
		{
			name: "now it can be deleted",
			calls: []string{
				"apply namespaces /ns",
				"apply configmaps default/bad",
				"apply configmaps default/z",
				"apply configmaps default/e",
				"delete scalers ns/s",
			},
		},
		{
			name:  "a kind that the cluster does not know",
			files: map[string]string{"e.yaml": "apiVersion: x/v1\nkind: Unknown\nmetadata: {name: u}\n" + configMap("e")},
			calls: []string{
				"apply namespaces /ns",
				"apply configmaps default/bad",
				"apply configmaps default/z",
				"apply configmaps default/e",
			},
			problem: `e.yaml: Unknown u: no matches for kind "Unknown" in version "x/v1"`,
		},
		{
			name:     "a disabled file counts as gone",
			disabled: []string{"d", "e"},
			calls: []string{
				"apply namespaces /ns",
				"delete configmaps default/bad",
				"delete configmaps default/e",
				"delete configmaps default/z",
			},
		},
		{
			name:     "the last file goes",
			files:    map[string]string{"a.yaml": gone},
			disabled: []string{"d", "e"},
			calls:    []string{"delete namespaces /ns"},
		},
		{name: "nothing is left to do", disabled: []string{"d", "e"}},
	}
	if err := os.Mkdir(filepath.Join(m.folder, "folder.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, step := range steps { // in order: each builds on the one before
		t.Run(step.name, func(t *testing.T) {
			for name, content := range step.files {
				path := filepath.Join(m.folder, name)
				if content == gone {
					content = ""
					if err := os.Remove(path); err != nil {
						t.Fatal(err)
					}
				} else if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m.disabled, cluster.failing, cluster.calls = step.disabled, step.failing, nil
			err := m.sync(t.Context())
			if (err == nil) != (step.problem == "") || err != nil && !strings.Contains(err.Error(), step.problem) {
				t.Errorf("got error %v, want %q", err, step.problem)
			}
			// Deletions come last, in no particular order.
			first := slices.IndexFunc(cluster.calls, func(call string) bool { return strings.HasPrefix(call, "delete") })
			if first >= 0 {
				slices.Sort(cluster.calls[first:])
			}
			if !slices.Equal(cluster.calls, step.calls) {
				t.Errorf("got  %q\nwant %q", cluster.calls, step.calls)
			}
		})
	}
	if len(cluster.objects) != 0 {
		t.Errorf("left in the cluster: %v", slices.Collect(maps.Keys(cluster.objects)))
	}
}

// While something fails, sync runs again and again; what it remembers must not grow with that.
func TestSyncRemembersEachObjectOnce(t *testing.T) {
	m, cluster := newManifests(t)
	manifest := []byte(configMap("good") + configMap("bad"))
	if err := os.WriteFile(filepath.Join(m.folder, "a.yaml"), manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	cluster.failing = "/bad"
	for range 3 {
		if err := m.sync(t.Context()); err == nil {
			t.Error("the failure is not reported")
		}
	}
	stored, err := m.client.CoreV1().ConfigMaps("kube-system").Get(context.Background(), deployedName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var remembered []object
	if err := json.Unmarshal([]byte(stored.Data["a.yaml"]), &remembered); err != nil ||
		!slices.Equal(remembered, []object{{"v1", "ConfigMap", "", "good"}}) {
		t.Errorf("got %v, %v", stored.Data, err)
	}
}

// Who writes a manifest waits until the note tells that this very content was applied, or why it was not.
func TestSyncNotesStates(t *testing.T) {
	m, cluster := newManifests(t)
	good, bad := configMap("good"), configMap("bad")
	for name, content := range map[string]string{"good.yaml": good, "bad.yaml": bad} {
		if err := os.WriteFile(filepath.Join(m.folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cluster.failing = "/bad"
	m.sync(t.Context())
	digest := func(content string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(content))) }
	noted := func() (states map[string]manifestState) {
		content, err := os.ReadFile(m.folder + ".json")
		if err = errors.Join(err, json.Unmarshal(content, &states)); err != nil {
			t.Fatal(err)
		}
		return states
	}
	want := map[string]manifestState{
		"good.yaml": {digest(good), "", false},
		"bad.yaml":  {digest(bad), "ConfigMap bad: no", false},
	}
	if got := noted(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	cluster.failure = apierrors.NewBadRequest("never")
	m.sync(t.Context())
	if got, want := noted()["bad.yaml"], (manifestState{digest(bad), "ConfigMap bad: never", true}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, name := range []string{"good.yaml", "bad.yaml"} {
		os.Remove(filepath.Join(m.folder, name))
	}
	if err := m.sync(t.Context()); err != nil || len(noted()) != 0 {
		t.Errorf("got %v, %v", noted(), err)
	}
}
