package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/k3s-io/kine/pkg/server"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/uuid"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	scheduling "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// The API server has roles, bindings and priority classes in every cluster. It makes them itself, by its own API, one
// after the other, is not ready before that is done, and begins a second after its start (wait.Poll in the two hooks):
// more than half of its start natively. So an empty datastore gets them directly, in the form that the API server
// stores, and where they are those of this version already, the hooks run beside what else is done.

// bootstrapKey is where the datastore says of which version these objects are, apart from what the API server keeps.
const bootstrapKey = "/gvisor-k3s/bootstrap"

// bootstrapHooks are the API server's, by which it makes them.
var bootstrapHooks = []string{rbacrest.PostStartHookName, schedulingrest.PostStartHookName}

// storageArgs are those of the API server's arguments with which it may read the datastore in another form.
var storageArgs = []string{"etcd-", "storage-", "encryption-", "runtime-config", "feature-gates"}

// bootstrap tells whether the datastore has the objects of this version, after it has made them where there are none.
func bootstrap(ctx context.Context, c *Config, backend server.Backend) (bool, error) {
	_, noted, err := backend.Get(ctx, bootstrapKey, 0, false)
	if err != nil {
		return false, err
	}
	if noted != nil && string(noted.Value) == version.Get().GitVersion {
		return true, nil
	}
	roles := storageKey("clusterroles", "", "")
	_, count, err := backend.Count(ctx, roles, rangeEnd(roles), 0)
	if err != nil || count > 0 || hasStorageArgs(c) {
		return false, err
	}
	objects, err := bootstrapObjects()
	if err != nil {
		return false, err
	}
	// By the roles of the cluster it is seen that all are there, and some may be of a start that was killed.
	keys := slices.Sorted(maps.Keys(objects))
	last := func(key string) int { return cmp.Compare(strings.Index(key, roles), -1) }
	slices.SortStableFunc(keys, func(one, other string) int { return last(one) - last(other) })
	for _, key := range keys {
		if _, err := backend.Create(ctx, key, objects[key], 0); err != nil && !errors.Is(err, server.ErrKeyExists) {
			return false, fmt.Errorf("%s: %w", key, err)
		}
	}
	return true, noteBootstrap(ctx, backend)
}

// noteBootstrap notes that the objects are those of this version.
func noteBootstrap(ctx context.Context, backend server.Backend) error {
	_, noted, err := backend.Get(ctx, bootstrapKey, 0, false)
	if err != nil {
		return err
	}
	value := []byte(version.Get().GitVersion)
	if noted == nil {
		_, err = backend.Create(ctx, bootstrapKey, value, 0)
	} else {
		_, _, _, err = backend.Update(ctx, bootstrapKey, value, noted.ModRevision, 0)
	}
	return err
}

func hasStorageArgs(c *Config) bool {
	return slices.ContainsFunc(c.APIServerArgs, func(arg string) bool {
		return slices.ContainsFunc(storageArgs, func(prefix string) bool { return strings.HasPrefix(arg, prefix) })
	})
}

// bootstrapObjects are all of them by their keys, as the API server stores them.
func bootstrapObjects() (map[string][]byte, error) {
	objects := map[string][]byte{}
	now := metav1.Now()
	add := func(resource string, object runtime.Object, group schema.GroupVersion) error {
		about, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		about.SetUID(uuid.NewUUID())
		about.SetCreationTimestamp(now)
		value, err := encodeStored(object, group)
		objects[storageKey(resource, about.GetNamespace(), about.GetName())] = value
		return err
	}
	for _, role := range slices.Concat(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()) {
		if err := add("clusterroles", &role, rbacv1.SchemeGroupVersion); err != nil {
			return nil, err
		}
	}
	bindings := slices.Concat(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings())
	for _, binding := range bindings {
		if err := add("clusterrolebindings", &binding, rbacv1.SchemeGroupVersion); err != nil {
			return nil, err
		}
	}
	for _, roles := range bootstrappolicy.NamespaceRoles() {
		for _, role := range roles {
			if err := add("roles", &role, rbacv1.SchemeGroupVersion); err != nil {
				return nil, err
			}
		}
	}
	for _, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, binding := range bindings {
			if err := add("rolebindings", &binding, rbacv1.SchemeGroupVersion); err != nil {
				return nil, err
			}
		}
	}
	for _, class := range scheduling.SystemPriorityClasses() {
		class.Generation = 1
		if err := add("priorityclasses", class, schedulingv1.SchemeGroupVersion); err != nil {
			return nil, err
		}
	}
	return objects, nil
}

// encodeStored writes an object as the API server stores it.
func encodeStored(object runtime.Object, version schema.GroupVersion) ([]byte, error) {
	serializer := protobuf.NewSerializer(legacyscheme.Scheme, legacyscheme.Scheme)
	return runtime.Encode(legacyscheme.Codecs.EncoderForVersion(serializer, version), object)
}

// rangeEnd is the first key that does not begin with a prefix.
func rangeEnd(prefix string) string {
	last := len(prefix) - 1
	return prefix[:last] + string(prefix[last]+1)
}

// storageKey is where the API server keeps an object, or, without a name, all of a kind or a namespace.
func storageKey(resource, namespace, name string) string {
	if namespace != "" {
		name = namespace + "/" + name
	}
	return "/registry/" + resource + "/" + name
}

// reconcile has what is missing of these objects made, as the API server does at each start.
func (c *components) reconcile(ctx context.Context) error {
	config, err := adminConfig(c.config)
	if err != nil {
		return err
	}
	// The hooks do not look whether somebody has them end; they end with the process.
	go func() {
		for _, provider := range []genericapiserver.PostStartHookProvider{
			rbacrest.RESTStorageProvider{},
			schedulingrest.RESTStorageProvider{},
		} {
			name, hook, err := provider.PostStartHook()
			if err == nil {
				err = hook(genericapiserver.PostStartHookContext{LoopbackClientConfig: config, Context: ctx})
			}
			if err != nil && ctx.Err() == nil {
				klog.ErrorS(err, "what every cluster has is not complete", "hook", name)
			}
		}
	}()
	<-ctx.Done()
	return nil
}
