package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
)

// What an empty datastore gets is what the API server would have made, and at a later start what is missing of it comes
// back.
func TestBootstrap(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it takes four starts of a control plane")
	}
	upstream := configFor(t, fmt.Sprintf(alone+"kube-apiserver-arg: [etcd-healthcheck-timeout=3s]\n", freePort(t)))
	ctx, stop := startServer(t, upstream)
	want := bootstrapped(ctx, t, upstream)
	stop()

	config := configFor(t, fmt.Sprintf(alone, freePort(t)))
	beginBootstrap(t, config)
	ctx, stop = startServer(t, config)
	got := bootstrapped(ctx, t, config)
	for name, object := range want {
		if !reflect.DeepEqual(got[name], object) {
			t.Errorf("%s is %+v, not %+v", name, got[name], object)
		}
	}
	if len(got) != len(want) || len(want) < 100 {
		t.Errorf("%d objects in place of %d", len(got), len(want))
	}
	const some = "system:kube-dns"
	client, err := adminClient(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{false, true} {
		if err := client.RbacV1().ClusterRoles().Delete(ctx, some, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		stop()
		if old { // as in a cluster of a release up to 0.3
			forgetBootstrap(t, config)
		}
		ctx, stop = startServer(t, config)
		err = wait.PollUntilContextTimeout(ctx, pollEvery, time.Minute, true, func(ctx context.Context) (bool, error) {
			_, err := client.RbacV1().ClusterRoles().Get(ctx, some, metav1.GetOptions{})
			return err == nil, nil
		})
		if err != nil {
			t.Errorf("the role %s stays away, of an old cluster %t: %v", some, old, err)
		}
	}
	stop()
}

// openDatastore has what is stored served to the test alone, until it is stopped.
func openDatastore(t *testing.T, config *Config) (context.Context, server.Backend, context.CancelFunc) {
	t.Helper()
	if _, err := preparePKI(config); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	store, err := startDatastore(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, store, stop
}

// beginBootstrap makes some of the objects, as a start does that is killed.
func beginBootstrap(t *testing.T, config *Config) {
	t.Helper()
	ctx, store, stop := openDatastore(t, config)
	defer stop()
	objects, err := bootstrapObjects("")
	if err != nil {
		t.Fatal(err)
	}
	some := slices.IndexFunc(objects, func(object stored) bool {
		return object.key == "/registry/clusterrolebindings/cluster-admin"
	})
	if _, err := store.Create(ctx, objects[some].key, objects[some].value, 0); err != nil {
		t.Fatal(err)
	}
}

func forgetBootstrap(t *testing.T, config *Config) {
	t.Helper()
	ctx, store, stop := openDatastore(t, config)
	defer stop()
	_, noted, err := store.Get(ctx, bootstrapKey, 0, false)
	if err != nil || noted == nil {
		t.Fatalf("nothing was noted: %v", err)
	}
	if _, _, _, err := store.Delete(ctx, bootstrapKey, noted.ModRevision); err != nil {
		t.Fatal(err)
	}
}

// bootstrapped are the objects that every cluster has, by kind and name, without what differs from one to the next.
func bootstrapped(ctx context.Context, t *testing.T, config *Config) map[string]runtime.Object {
	t.Helper()
	client, err := adminClient(config)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := pki{config: config}.read(serverCA)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]runtime.Object{}
	for _, list := range bootstrapLists(ctx, t, client) {
		items, err := meta.ExtractList(list)
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range items {
			about, err := meta.Accessor(item)
			if err != nil {
				t.Fatal(err)
			}
			if about.GetUID() == "" || time.Since(about.GetCreationTimestamp().Time) > time.Hour {
				t.Errorf("%s has no UID of its own, or is from another time: %+v", about.GetName(), about)
			}
			about.SetUID("")
			about.SetCreationTimestamp(metav1.Time{})
			about.SetResourceVersion("")
			about.SetManagedFields(nil)
			if role, ok := item.(*rbacv1.ClusterRole); ok && role.AggregationRule != nil {
				role.Rules = nil // a controller gathers them
			}
			if root, ok := item.(*corev1.ConfigMap); ok && root.Data["ca.crt"] == authority {
				root.Data = nil
			}
			objects[fmt.Sprintf("%T %s/%s", item, about.GetNamespace(), about.GetName())] = item
		}
	}
	return objects
}

func bootstrapLists(ctx context.Context, t *testing.T, client kubernetes.Interface) []runtime.Object {
	t.Helper()
	all := metav1.ListOptions{}
	roles, err1 := client.RbacV1().ClusterRoles().List(ctx, all)
	bindings, err2 := client.RbacV1().ClusterRoleBindings().List(ctx, all)
	local, err3 := client.RbacV1().Roles("").List(ctx, all)
	localBindings, err4 := client.RbacV1().RoleBindings("").List(ctx, all)
	classes, err5 := client.SchedulingV1().PriorityClasses().List(ctx, all)
	namespaces, err6 := client.CoreV1().Namespaces().List(ctx, all)
	named := func(name string) metav1.ListOptions {
		return metav1.ListOptions{FieldSelector: "metadata.name=" + name}
	}
	accounts, err7 := client.CoreV1().ServiceAccounts("").List(ctx, named("default"))
	roots, err8 := client.CoreV1().ConfigMaps("").List(ctx, named("kube-root-ca.crt"))
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7, err8); err != nil {
		t.Fatal(err)
	}
	return []runtime.Object{roles, bindings, local, localBindings, classes, namespaces, accounts, roots}
}
