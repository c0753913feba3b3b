package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
	"k8s.io/klog/v2"
)

const (
	deployer      = "gvisor-k3s-deploy"    // the field manager of what manifests hold
	deployedName  = "gvisor-k3s-manifests" // the ConfigMap in kube-system that remembers what was applied
	firstRetry    = time.Second
	longestRetry  = 30 * time.Second
	quietInterval = 100 * time.Millisecond // editors write a file in several steps
)

// object names what was applied, so that it can be deleted when its manifest is gone.
type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

// is tells whether both name one object in the cluster: its version may be another, and no namespace is the default
// one.
func (o object) is(other object) bool {
	kind := func(o object) schema.GroupKind { return schema.FromAPIVersionAndKind(o.APIVersion, o.Kind).GroupKind() }
	namespace := func(o object) string { return cmp.Or(o.Namespace, metav1.NamespaceDefault) }
	return kind(o) == kind(other) && namespace(o) == namespace(other) && o.Name == other.Name
}

// manifestState is what is noted of a file in server/manifests.json, for who wrote the file and waits.
type manifestState struct {
	Digest  string `json:"digest"`            // SHA-256 of the content that was applied last, in hex
	Problem string `json:"problem,omitempty"` // why not all of it could be applied; it is tried again
	Final   bool   `json:"final,omitempty"`   // to try again is of no use: the API server refuses what an object says
}

// manifests keeps the cluster in step with the files in server/manifests.
type manifests struct {
	folder   string
	disabled []string
	client   kubernetes.Interface
	dynamic  dynamic.Interface
	mapper   meta.ResettableRESTMapper
}

// deployManifests applies the folder at the start, whenever it changes, and again while something in it fails.
func deployManifests(ctx context.Context, c *Config) error {
	config, err := adminConfig(c)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	dynamicClient, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	m := &manifests{
		c.path("server", "manifests"),
		c.Disable,
		client,
		dynamicClient,
		restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery())),
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer watcher.Close()
	if err := watcher.Add(m.folder); err != nil {
		return err
	}
	retry := firstRetry
	for next := time.After(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watcher.Errors:
			return err
		case <-watcher.Events:
			next, retry = time.After(quietInterval), firstRetry
		case <-next:
			next = nil
			if err := m.sync(ctx); err != nil {
				klog.ErrorS(err, "manifests", "retryIn", retry)
				next, retry = time.After(retry), min(2*retry, longestRetry)
			}
		}
	}
}

// sync applies every file, deletes what files that are gone or disabled had brought, and reports all that failed.
func (m *manifests) sync(ctx context.Context) error {
	m.mapper.Reset()
	files, err := m.files()
	if err != nil {
		return err
	}
	before, err := m.remembered(ctx)
	if err != nil {
		return err
	}
	if len(files) == 0 && len(before) == 0 {
		return m.note(nil)
	}
	var problems []error
	after := map[string][]object{}
	states := map[string]manifestState{}
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(m.folder, file))
		var applied []object
		if err == nil {
			applied, err = m.apply(ctx, content)
		}
		states[file] = stateOf(content, err)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", file, err))
			for _, old := range before[file] { // what a broken file had brought stays
				if !slices.ContainsFunc(applied, old.is) {
					applied = append(applied, old)
				}
			}
		}
		after[file] = applied
	}
	kept := slices.Concat(slices.Collect(maps.Values(after))...)
	for file, objects := range before {
		for _, gone := range objects {
			if slices.ContainsFunc(kept, gone.is) {
				continue
			}
			if err := m.remove(ctx, gone); err != nil {
				problems = append(problems, err)
				after[file] = append(after[file], gone)
			}
		}
	}
	return errors.Join(append(problems, m.remember(ctx, after), m.note(states))...)
}

func stateOf(content []byte, err error) manifestState {
	state := manifestState{Digest: fmt.Sprintf("%x", sha256.Sum256(content))}
	if err != nil {
		state.Problem = err.Error()
		all, ok := err.(interface{ Unwrap() []error })
		state.Final = ok && slices.ContainsFunc(all.Unwrap(), func(err error) bool {
			return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
		})
	}
	return state
}

// note writes the files' states beside the folder, in one step.
func (m *manifests) note(states map[string]manifestState) error {
	content, err := json.Marshal(states)
	if err != nil {
		return err
	}
	return writePrivate(m.folder+".json", content)
}

func (m *manifests) files() ([]string, error) {
	entries, err := os.ReadDir(m.folder)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		extension := filepath.Ext(entry.Name())
		wanted := slices.Contains([]string{".yaml", ".yml", ".json"}, extension) && !strings.HasPrefix(entry.Name(), ".")
		if wanted && !entry.IsDir() && !slices.Contains(m.disabled, strings.TrimSuffix(entry.Name(), extension)) {
			files = append(files, entry.Name())
		}
	}
	return files, nil
}

// apply applies every document of a manifest; one that fails does not keep the others back.
func (m *manifests) apply(ctx context.Context, content []byte) (applied []object, err error) {
	documents, err := parseManifest(content)
	if err != nil {
		return nil, err
	}
	var problems []error
	for _, document := range documents {
		resource, err := m.resource(document.GroupVersionKind(), document.GetNamespace())
		if err == nil {
			_, err = resource.Apply(ctx, document.GetName(), document, metav1.ApplyOptions{FieldManager: deployer, Force: true})
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s %s: %w", document.GetKind(), document.GetName(), err))
			continue
		}
		applied = append(applied, object{
			document.GetAPIVersion(), document.GetKind(), document.GetNamespace(), document.GetName(),
		})
	}
	return applied, errors.Join(problems...)
}

// parseManifest reads the documents of a YAML or JSON file; lists are taken apart.
func parseManifest(content []byte) (documents []*unstructured.Unstructured, err error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		document := &unstructured.Unstructured{}
		if err := decoder.Decode(&document.Object); errors.Is(err, io.EOF) {
			return documents, nil
		} else if err != nil {
			return nil, err
		}
		if len(document.Object) == 0 {
			continue // nothing between two separators
		}
		items := []*unstructured.Unstructured{document}
		if document.IsList() {
			items = nil
			if err := document.EachListItem(func(item runtime.Object) error {
				items = append(items, item.(*unstructured.Unstructured))
				return nil
			}); err != nil {
				return nil, err
			}
		}
		for _, item := range items {
			if item.GetAPIVersion() == "" || item.GetKind() == "" || item.GetName() == "" {
				return nil, fmt.Errorf("document %d: apiVersion, kind and metadata.name are needed", len(documents)+1)
			}
			documents = append(documents, item)
		}
	}
}

func (m *manifests) resource(kind schema.GroupVersionKind, namespace string) (dynamic.ResourceInterface, error) {
	mapping, err := m.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return m.dynamic.Resource(mapping.Resource), nil
	}
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return m.dynamic.Resource(mapping.Resource).Namespace(namespace), nil
}

func (m *manifests) remove(ctx context.Context, o object) error {
	resource, err := m.resource(schema.FromAPIVersionAndKind(o.APIVersion, o.Kind), o.Namespace)
	if err == nil {
		propagation := metav1.DeletePropagationBackground
		err = resource.Delete(ctx, o.Name, metav1.DeleteOptions{PropagationPolicy: &propagation})
	}
	if err == nil || apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
		return nil
	}
	return fmt.Errorf("delete %s %s: %w", o.Kind, o.Name, err)
}

func (m *manifests) remembered(ctx context.Context) (map[string][]object, error) {
	stored, err := m.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, deployedName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	objects := map[string][]object{}
	for file, list := range stored.Data {
		var of []object
		if err := json.Unmarshal([]byte(list), &of); err != nil {
			return nil, fmt.Errorf("ConfigMap %s, %s: %w", deployedName, file, err)
		}
		objects[file] = of
	}
	return objects, nil
}

func (m *manifests) remember(ctx context.Context, objects map[string][]object) error {
	data := map[string]string{}
	for file, list := range objects {
		if len(list) > 0 {
			encoded, err := json.Marshal(list)
			if err != nil {
				return err
			}
			data[file] = string(encoded)
		}
	}
	configMap := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: deployedName}, Data: data}
	maps := m.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	_, err := maps.Update(ctx, configMap, metav1.UpdateOptions{FieldManager: deployer})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, configMap, metav1.CreateOptions{FieldManager: deployer})
	}
	return err
}
