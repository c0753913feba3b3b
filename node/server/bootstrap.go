package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/k3s-io/kine/pkg/server"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
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
	publisher "k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// The API server has roles, bindings and priority classes in every cluster. It makes them itself, by its own API, one
// after the other, is not ready before that is done, and begins a second after its start (wait.Poll in the two hooks):
// more than half of its start natively. So an empty datastore gets them directly, in the form that the API server
// stores, and where they are those of this version already, the hooks run beside what else is done.
//
// So it is with the first namespaces, and with what a namespace gets from controllers, which take longer to start than
// the kubelet and need every CPU for it: its service account and the server's CA, without which no pod is taken or
// started. If they are not as those want them, by an option or after a renewal, they are put right by them as ever.

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
	authority, err := pki{config: c}.read(serverCA)
	if err != nil {
		return false, err
	}
	objects, err := bootstrapObjects(authority)
	if err != nil {
		return false, err
	}
	for _, object := range objects { // some may be of a start that was killed
		_, err := backend.Create(ctx, object.key, object.value, 0)
		if err != nil && !errors.Is(err, server.ErrKeyExists) {
			return false, fmt.Errorf("%s: %w", object.key, err)
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

// stored is an object as the API server stores it.
type stored struct {
	key   string
	value []byte
}

// firstNamespaces are those that the API server makes.
var firstNamespaces = []string{
	metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease,
}

// bootstrapObjects are all of them. The cluster's roles are the last: by them it is seen that all are there.
func bootstrapObjects(authority string) ([]stored, error) {
	var objects []stored
	var problems []error
	now := metav1.Now()
	add := func(resource string, object runtime.Object, about metav1.Object, version schema.GroupVersion) {
		about.SetUID(uuid.NewUUID())
		about.SetCreationTimestamp(now)
		value, err := encodeStored(object, version)
		objects = append(objects, stored{storageKey(resource, about.GetNamespace(), about.GetName()), value})
		problems = append(problems, err)
	}
	core := corev1.SchemeGroupVersion
	for _, name := range firstNamespaces {
		namespace := &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}},
			Spec:       corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}},
			Status:     corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
		}
		add("namespaces", namespace, namespace, core)
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}}
		add("serviceaccounts", account, account, core)
		told := map[string]string{publisher.DescriptionAnnotation: publisher.Description}
		about := metav1.ObjectMeta{Namespace: name, Name: publisher.RootCACertConfigMapName, Annotations: told}
		root := &corev1.ConfigMap{ObjectMeta: about, Data: map[string]string{"ca.crt": authority}}
		add("configmaps", root, root, core)
	}
	for _, class := range scheduling.SystemPriorityClasses() {
		class.Generation = 1
		add("priorityclasses", class, class, schedulingv1.SchemeGroupVersion)
	}
	for _, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, binding := range bindings {
			add("rolebindings", &binding, &binding, rbacv1.SchemeGroupVersion)
		}
	}
	for _, roles := range bootstrappolicy.NamespaceRoles() {
		for _, role := range roles {
			add("roles", &role, &role, rbacv1.SchemeGroupVersion)
		}
	}
	bindings := slices.Concat(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings())
	for _, binding := range bindings {
		add("clusterrolebindings", &binding, &binding, rbacv1.SchemeGroupVersion)
	}
	for _, role := range slices.Concat(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()) {
		add("clusterroles", &role, &role, rbacv1.SchemeGroupVersion)
	}
	return objects, errors.Join(problems...)
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
