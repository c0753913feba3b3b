package kube

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/urn"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// fromYAML returns the object that a text describes.
func fromYAML(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, "\t", "  ")), &object.Object); err != nil {
		t.Fatal(err)
	}
	return object
}

func TestDiffPathsAndReplacements(t *testing.T) {
	tests := map[string]struct {
		old, new, want string // want: "path KIND" in order, joined by ", "
		settings       settings
	}{
		"nothing": {old: "kind: ConfigMap\nx: 1", new: "kind: ConfigMap\nx: 1.0"},
		"field changed": {
			old: "kind: Service\nspec: {type: ClusterIP}", new: "kind: Service\nspec: {type: NodePort}",
			want: "spec.type UPDATE",
		},
		"subtree added": {
			old: "kind: Pod\nspec: {}", new: "kind: Pod\nspec: {tolerations: [{key: a}]}", want: "spec.tolerations ADD",
		},
		"field removed": {
			old: "kind: Service\nspec: {a: 1, b: 2}", new: "kind: Service\nspec: {b: 2}", want: "spec.a DELETE",
		},
		"null is absent": {old: "kind: Service\nspec: {a: null}", new: "kind: Service\nspec: {}"},
		"key with a dot": {
			old: "kind: Service\nmetadata: {labels: {a.b/c: x}}", new: "kind: Service\nmetadata: {labels: {a.b/c: y}}",
			want: `metadata.labels["a.b/c"] UPDATE`,
		},
		"list element changed": {
			old:  "kind: Deployment\napiVersion: apps/v1\nspec: {template: {spec: {containers: [{image: a}]}}}",
			new:  "kind: Deployment\napiVersion: apps/v1\nspec: {template: {spec: {containers: [{image: b}]}}}",
			want: "spec.template.spec.containers[0].image UPDATE",
		},
		"list grows and shrinks": {
			old: "kind: Service\na: [1, 2]\nb: [1]", new: "kind: Service\na: [1]\nb: [1, 2]", want: "a[1] DELETE, b[1] ADD",
		},
		"new name": {
			old: "kind: Service\nmetadata: {name: a}", new: "kind: Service\nmetadata: {name: b}",
			want: "metadata.name UPDATE_REPLACE",
		},
		"pod image": {
			old:  "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a}]}",
			new:  "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: b}]}",
			want: "spec.containers[0].image UPDATE_REPLACE",
		},
		"pod container added": {
			old:  "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a}]}",
			new:  "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a}, {image: b}]}",
			want: "spec.containers[1] ADD_REPLACE",
		},
		"pod label": {
			old: "apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: x}}",
			new: "apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: y}}", want: "metadata.labels.a UPDATE",
		},
		"selector below": {
			old:  "apiVersion: apps/v1\nkind: Deployment\nspec: {selector: {matchLabels: {a: x}}}",
			new:  "apiVersion: apps/v1\nkind: Deployment\nspec: {selector: {matchLabels: {a: y}}}",
			want: "spec.selector.matchLabels.a UPDATE_REPLACE",
		},
		"job template": {
			old:  "apiVersion: batch/v1\nkind: Job\nspec: {template: {a: 1}, ttl: 1}",
			new:  "apiVersion: batch/v1\nkind: Job\nspec: {template: {a: 2}, ttl: 2}",
			want: "spec.template.a UPDATE_REPLACE, spec.ttl UPDATE",
		},
		"job spec added": {
			old: "apiVersion: batch/v1\nkind: Job", new: "apiVersion: batch/v1\nkind: Job\nspec: {template: {}}",
			want: "spec ADD_REPLACE",
		},
		"config data": {
			old: "apiVersion: v1\nkind: ConfigMap\ndata: {a: x}", new: "apiVersion: v1\nkind: ConfigMap\ndata: {a: y}",
			want: "data.a UPDATE_REPLACE",
		},
		"config data, mutable": {
			old: "apiVersion: v1\nkind: ConfigMap\ndata: {a: x}", new: "apiVersion: v1\nkind: ConfigMap\ndata: {a: y}",
			want: "data.a UPDATE", settings: settings{enableConfigMapMutable: true},
		},
		"config data, mutable but immutable": {
			old:  "apiVersion: v1\nkind: ConfigMap\nimmutable: true\ndata: {a: x}",
			new:  "apiVersion: v1\nkind: ConfigMap\nimmutable: true\ndata: {a: y}",
			want: "data.a UPDATE_REPLACE", settings: settings{enableConfigMapMutable: true},
		},
		"secret data": {
			old: "apiVersion: v1\nkind: Secret\ndata: {a: x}", new: "apiVersion: v1\nkind: Secret\ndata: {a: y}",
			want: "data.a UPDATE_REPLACE",
		},
		"config label": {
			old: "apiVersion: v1\nkind: ConfigMap\nmetadata: {labels: {a: x}}",
			new: "apiVersion: v1\nkind: ConfigMap\nmetadata: {labels: {a: x, b: y}}", want: "metadata.labels.b ADD",
		},
		"claim resources": {
			old:  "apiVersion: v1\nkind: PersistentVolumeClaim\nspec: {resources: {requests: {storage: 1Gi}}}",
			new:  "apiVersion: v1\nkind: PersistentVolumeClaim\nspec: {resources: {requests: {storage: 2Gi}}}",
			want: "spec.resources.requests.storage UPDATE",
		},
		"claim class": {
			old:  "apiVersion: v1\nkind: PersistentVolumeClaim\nspec: {storageClassName: a}",
			new:  "apiVersion: v1\nkind: PersistentVolumeClaim\nspec: {storageClassName: b}",
			want: "spec.storageClassName UPDATE_REPLACE",
		},
		"role of binding": {
			old:  "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nroleRef: {name: a}",
			new:  "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nroleRef: {name: b}",
			want: "roleRef.name UPDATE_REPLACE",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			changes := map[string]*change{}
			new := fromYAML(t, test.new)
			compare(nil, fromYAML(t, test.old).Object, new.Object, changes)
			p := &Provider{settings: test.settings}
			for _, c := range changes {
				c.replaces = p.fixedFieldsOf(new).hit(c)
			}
			response := diffResponse(changes)
			var got []string
			for _, path := range slices.Sorted(maps.Keys(response.DetailedDiff)) {
				got = append(got, path+" "+response.DetailedDiff[path].Kind.String())
			}
			if strings.Join(got, ", ") != test.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), test.want)
			}
			if (response.Changes == pulumirpc.DiffResponse_DIFF_SOME) != (test.want != "") {
				t.Errorf("changes: %v", response.Changes)
			}
		})
	}
}

func TestUnknownValueOfAFixedFieldIsAReplacement(t *testing.T) {
	unknown := map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]any{"a": resource.Computed{}}}
	changes := map[string]*change{}
	old := map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]any{"a": "x"}}
	compare(nil, old, unknown, changes)
	for _, c := range changes {
		c.replaces = (&Provider{}).fixedFieldsOf(&unstructured.Unstructured{Object: unknown}).hit(c)
	}
	if got := diffResponse(changes).Replaces; !slices.Equal(got, []string{"data.a"}) {
		t.Errorf("replaces %v", got)
	}
}

func TestImmutableFields(t *testing.T) {
	invalid := func(causes ...metav1.StatusCause) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonInvalid, Code: 422,
			Details: &metav1.StatusDetails{Causes: causes}}}
	}
	tests := map[string]struct {
		err  error
		want []string
	}{
		"no error": {},
		"immutable": {
			invalid(metav1.StatusCause{Field: "spec.clusterIPs[0]", Message: `Invalid value: []: field is immutable`}),
			[]string{"spec.clusterIPs[0]"},
		},
		"by a rule": {
			invalid(metav1.StatusCause{Field: "spec.size", Message: "Invalid value: Value is immutable"}), []string{"spec.size"},
		},
		"pod": {
			invalid(metav1.StatusCause{
				Field:   "spec",
				Message: "Forbidden: pod updates may not change fields other than `spec.containers[*].image`",
			}),
			[]string{"spec"},
		},
		"stateful": {
			invalid(metav1.StatusCause{
				Field:   "spec",
				Message: "Forbidden: updates to statefulset spec for fields other than 'replicas' are forbidden",
			}),
			[]string{"spec"},
		},
		"only wrong": {
			invalid(metav1.StatusCause{
				Field: "spec.replicas", Message: "Invalid value: -1: must be greater than or equal to 0",
			}),
			nil,
		},
		"not invalid": {
			&apierrors.StatusError{ErrStatus: metav1.Status{
				Reason: metav1.StatusReasonForbidden, Code: 403,
				Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Field: "x", Message: "immutable"}}},
			}},
			nil,
		},
	}
	for name, test := range tests {
		if got := immutableFields(test.err); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}

func TestOverlaps(t *testing.T) {
	for _, test := range []struct {
		path, field string
		want        bool
	}{
		{"spec.template.spec", "spec.template", true}, {"spec", "spec.template", true}, {"spec.a[0]", "spec.a", true},
		{"spec.templates", "spec.template", false}, {"spec.a", "spec.b", false}, {"spec.a", "spec.a", true},
	} {
		if got := overlaps(test.path, test.field); got != test.want {
			t.Errorf("%s, %s: %v", test.path, test.field, got)
		}
	}
}

func TestNormalize(t *testing.T) {
	tests := map[string]struct{ inputs, want string }{
		"quantity": {
			"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, resources: {limits: {cpu: 1000m}}}]}",
			"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, resources: {limits: {cpu: '1'}}}]}"},
		"stringData wins": {
			"apiVersion: v1\nkind: Secret\ndata: {a: eA==, b: eA==}\nstringData: {a: 'y'}",
			"apiVersion: v1\nkind: Secret\ndata: {a: eQ==, b: eA==}"},
		"base64 with line breaks": {
			"apiVersion: v1\nkind: Secret\ndata: {a: \"eHh4\\neHh4\\n\"}", "apiVersion: v1\nkind: Secret\ndata: {a: eHh4eHh4}"},
		"not base64 stays": {"apiVersion: v1\nkind: Secret\ndata: {a: '?'}", "apiVersion: v1\nkind: Secret\ndata: {a: '?'}"},
		"server's fields": {
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, uid: u, resourceVersion: '1', creationTimestamp: null}",
			"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}"},
		"definition": {
			"apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n" +
				"spec: {preserveUnknownFields: false, group: g}\nstatus: {}",
			"apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec: {group: g}"},
		"wrong type stays": {"apiVersion: v1\nkind: Pod\nspec: text", "apiVersion: v1\nkind: Pod\nspec: text"},
		"custom resource": {
			"apiVersion: a.b/v1\nkind: Thing\nspec: {cpu: 1000m}", "apiVersion: a.b/v1\nkind: Thing\nspec: {cpu: 1000m}",
		},
	}
	for name, test := range tests {
		changes := map[string]*change{}
		compare(nil, fromYAML(t, test.want).Object, normalize(fromYAML(t, test.inputs)).Object, changes)
		for path, c := range changes {
			t.Errorf("%s: %s: want %v, got %v", name, path, c.old, c.new)
		}
	}
}

func TestPruneLeavesOutWhatTheServerAdds(t *testing.T) {
	live := fromYAML(t,
		"spec: {volumes: [{name: mine, configMap: {name: c, defaultMode: 420}}, {name: token}], nodeName: n}")
	shape := fromYAML(t, "spec: {volumes: [{name: mine, configMap: {name: c}}]}")
	changes := map[string]*change{}
	compare(nil, shape.Object, prune(live.Object, shape.Object), changes)
	if len(changes) > 0 {
		t.Errorf("%v", maps.Keys(changes))
	}
}

func TestAssignName(t *testing.T) {
	type options = pulumirpc.CheckRequest_AutonamingOptions
	propose := func(mode pulumirpc.CheckRequest_AutonamingOptions_Mode, name string) *options {
		return &options{Mode: mode, ProposedName: name}
	}
	seed := []byte("a seed")
	tests := map[string]struct {
		inputs, old string
		naming      *pulumirpc.CheckRequest_AutonamingOptions
		want        string // the name, "auto:" before one that is marked
		wrong       string // part of the error
	}{
		"given":  {inputs: "metadata: {name: a}", want: "a"},
		"random": {inputs: "metadata: {}", want: "auto:web-dac8fe36"},
		"kept": {
			inputs: "metadata: {}", old: "metadata: {name: web-1, annotations: {pulumi.com/autonamed: 'true'}}",
			want: "auto:web-1",
		},
		"was given": {inputs: "metadata: {}", old: "metadata: {name: mine}", want: "auto:web-dac8fe36"},
		"proposed": {
			inputs: "metadata: {}", naming: propose(pulumirpc.CheckRequest_AutonamingOptions_PROPOSE, "web-x"),
			want: "auto:web-x",
		},
		"disabled": {
			inputs: "metadata: {}", naming: propose(pulumirpc.CheckRequest_AutonamingOptions_DISABLE, ""), wrong: "set a name",
		},
		"generateName":      {inputs: "metadata: {generateName: x-}", wrong: "metadata.generateName"},
		"other annotations": {inputs: "metadata: {annotations: {a: b}}", want: "auto:web-dac8fe36"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			object := fromYAML(t, test.inputs)
			err := assignName(object, fromYAML(t, test.old), "web", seed, test.naming)
			if (err != nil) != (test.wrong != "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
				t.Fatalf("error %v, want %q", err, test.wrong)
			}
			got := object.GetName()
			if isTrue(object, autonamedAnnotation) {
				got = "auto:" + got
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestKindOf(t *testing.T) {
	for token, want := range map[string]string{
		"kubernetes:core/v1:Pod":                "/v1, Kind=Pod",
		"kubernetes:v1:Pod":                     "/v1, Kind=Pod",
		"kubernetes:apps/v1:Deployment":         "apps/v1, Kind=Deployment",
		"kubernetes:stable.example.com/v1:Cron": "stable.example.com/v1, Kind=Cron",
	} {
		got, err := kindOf(urn.New("s", "p", "", tokens.Type(token), "n"))
		if err != nil || got.String() != want {
			t.Errorf("%s: got %v, %v; want %s", token, got, err, want)
		}
	}
	for token, want := range map[string]string{
		"kubernetes:helm.sh/v3:Release":       "helm template",
		"kubernetes:yaml/v2:ConfigFile":       "ConfigFile",
		"kubernetes:kustomize/v2:Directory":   "kubectl kustomize",
		"kubernetes:index:Something:Else:One": "not served",
	} {
		if _, err := kindOf(urn.New("s", "p", "", tokens.Type(token), "n")); err == nil ||
			!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", token, err)
		}
	}
}

func TestTimeout(t *testing.T) {
	annotated := fromYAML(t, "metadata: {annotations: {pulumi.com/timeoutSeconds: '90'}}")
	wrong := fromYAML(t, "metadata: {annotations: {pulumi.com/timeoutSeconds: soon}}")
	for _, test := range []struct {
		custom float64
		object *unstructured.Unstructured
		want   time.Duration
	}{{0, annotated, 90 * time.Second}, {1.5, annotated, 1500 * time.Millisecond}, {0, wrong, 10 * time.Minute}} {
		if got := timeout(test.custom, test.object); got != test.want {
			t.Errorf("got %s, want %s", got, test.want)
		}
	}
}

func TestSecretsStaySecret(t *testing.T) {
	secret := func(text string) resource.PropertyValue { return resource.MakeSecret(resource.NewStringProperty(text)) }
	source := resource.PropertyMap{
		"kind": resource.NewStringProperty("Pod"),
		"spec": resource.NewObjectProperty(resource.PropertyMap{
			"plain": resource.NewStringProperty("x"), "hidden": secret("y"),
			"list": resource.NewArrayProperty([]resource.PropertyValue{resource.NewStringProperty("a"), secret("b")}),
		}),
	}
	object := toObject(source)
	state := checkpoint(object, object, source, "v1", "manager")
	for _, where := range []resource.PropertyMap{state, state[inputsKey].ObjectValue()} {
		spec := where["spec"].ObjectValue()
		if !spec["hidden"].IsSecret() || !spec["list"].IsSecret() || spec["plain"].IsSecret() {
			t.Errorf("spec: %v", spec)
		}
	}
	inputs, live := fromCheckpoint(state)
	if got, _, _ := unstructured.NestedString(live.Object, "spec", "hidden"); got != "y" || live.Object[inputsKey] != nil {
		t.Errorf("live: %v", live.Object)
	}
	if got, _, _ := unstructured.NestedStringSlice(inputs.Object, "spec", "list"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("inputs: %v", inputs.Object)
	}
	object = fromYAML(t, "kind: Secret\ndata: {a: b}")
	data := checkpoint(object, object, nil, "v1", "m")
	if !data["data"].IsSecret() || !data[inputsKey].ObjectValue()["data"].IsSecret() {
		t.Errorf("a Secret's data is plain: %v", data)
	}
}

func TestSchemaKeysOfDefinitions(t *testing.T) {
	properties := resource.NewPropertyMapFromMap(map[string]any{
		"schema": map[string]any{"x_kubernetes_preserve_unknown_fields": true},
	})
	object := toObject(properties)
	if _, found, _ := unstructured.NestedBool(object.Object, "schema", "x-kubernetes-preserve-unknown-fields"); !found {
		t.Errorf("to the API server: %v", object.Object)
	}
	if !toProperties(object).DeepEquals(properties) {
		t.Errorf("and back: %v", toProperties(object))
	}
}

func TestForgetAssigned(t *testing.T) {
	planned := toProperties(fromYAML(t, `{kind: Service, metadata: {name: a, uid: u}, status: {loadBalancer: {}},
		spec: {clusterIP: 10.0.0.1, type: NodePort,
		ports: [{port: 1, nodePort: 30001}, {port: 2, nodePort: 30002}, {port: 3}]}}`))
	asked := fromYAML(t, "{spec: {ports: [{port: 1}, {port: 2, nodePort: 30002}, {port: 3}]}}")
	forgetAssigned(planned, toProperties(asked))
	for path, want := range map[string]string{
		"metadata.name": "a", "metadata.uid": "unknown", "status": "unknown",
		"spec.clusterIP": "unknown", "spec.type": "NodePort",
		"spec.ports[0].nodePort": "unknown", "spec.ports[1].nodePort": "30002", "spec.ports[2].nodePort": "none",
	} {
		parsed, err := resource.ParsePropertyPath(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := show(parsed.Get(resource.NewObjectProperty(planned))); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	headless := toProperties(fromYAML(t, "{kind: Service, metadata: {}, spec: {clusterIP: None}}"))
	forgetAssigned(headless, toProperties(fromYAML(t, "{spec: {clusterIP: None}}")))
	if got := headless["spec"].ObjectValue(); len(got) != 1 || got["clusterIP"].V != "None" {
		t.Errorf("headless: %v", got)
	}
}

func TestIgnoreFields(t *testing.T) {
	live := fromYAML(t, `{spec: {replicas: 5, paused: true, mine: 7}}`)
	live.SetManagedFields([]metav1.ManagedFieldsEntry{
		{Manager: "us", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:mine":{}}}`)},
		{Manager: "autoscaler", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:replicas":{}}}`)},
	})
	inputs := fromYAML(t, "spec: {replicas: 1, mine: 1, absent: 1}")
	ignored := []string{"spec.replicas", "spec.mine", "spec.absent", "spec.list[0].x"}
	if err := ignoreFields(inputs, live, "us", ignored); err != nil {
		t.Fatal(err)
	}
	changes := map[string]*change{}
	compare(nil, fromYAML(t, "spec: {mine: 7, absent: 1}").Object, inputs.Object, changes)
	if len(changes) > 0 {
		t.Errorf("got %v", inputs.Object)
	}
}
