package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs may log in through OIDC
	"k8s.io/client-go/rest"
)

// cluster is how the API server is reached. It is set up without talking to it.
type cluster struct {
	server    string
	namespace string // of objects that name none
	dynamic   dynamic.Interface
	discovery discovery.DiscoveryInterfaceWithContext

	mutex       sync.Mutex
	unreachable error // set once: a cluster that was not there is not dialled again for each resource
	resources   map[schema.GroupVersion]*metav1.APIResourceList
}

// unreachableError says that no API server answered.
type unreachableError struct {
	server string
	cause  error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("the Kubernetes cluster at %s is unreachable: %v", e.server, e.cause)
}

func (e *unreachableError) Unwrap() error { return e.cause }

func newCluster(variables map[string]string, warnings rest.WarningHandlerWithContext) *cluster {
	c := &cluster{
		server: "(no address)", namespace: "default", resources: map[schema.GroupVersion]*metav1.APIResourceList{},
	}
	config, namespace, err := clientConfig(variables)
	if err != nil {
		c.unreachable = &unreachableError{server: c.server, cause: err}
		return c
	}
	config.WarningHandlerWithContext = warnings
	c.server, c.namespace = config.Host, namespace
	client, err := rest.HTTPClientFor(config)
	if err == nil {
		err = c.connect(config, client)
	}
	if err != nil {
		c.unreachable = &unreachableError{server: c.server, cause: err}
	}
	return c
}

func (c *cluster) connect(config *rest.Config, client *http.Client) error {
	objects, err := dynamic.NewForConfigAndClient(config, client)
	if err != nil {
		return err
	}
	resources, err := discovery.NewDiscoveryClientForConfigAndClient(config, client)
	if err != nil {
		return err
	}
	c.dynamic, c.discovery = objects, resources
	return nil
}

// firstContact is how long an API server that is just starting gets to answer: about 3 s of pauses, and no more than
// 15 s for one attempt.
var firstContact = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Steps: 5}

const firstContactTimeout = 15 * time.Second

// resource returns how the API server serves a kind: its path, and whether it has namespaces. What it serves is kept
// per group and version; a kind that is missing there is looked up again, because a CustomResourceDefinition may have
// added it. The error is an *unreachableError, a *meta.NoKindMatchError or the API server's own.
func (c *cluster) resource(ctx context.Context, kind schema.GroupVersionKind) (*metav1.APIResource, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.unreachable != nil {
		return nil, c.unreachable
	}
	group := kind.GroupVersion()
	if found := find(c.resources[group], kind.Kind); found != nil {
		return found, nil
	}
	list, err := c.discover(ctx, group)
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return nil, err
	default:
		c.resources[group] = list
		if found := find(list, kind.Kind); found != nil {
			return found, nil
		}
	}
	return nil, &meta.NoKindMatchError{GroupKind: kind.GroupKind(), SearchedVersions: []string{kind.Version}}
}

func (c *cluster) discover(ctx context.Context, group schema.GroupVersion) (*metav1.APIResourceList, error) {
	met := len(c.resources) > 0
	var list *metav1.APIResourceList
	var last error
	attempt := func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, firstContactTimeout)
		defer cancel()
		list, last = c.discovery.ServerResourcesForGroupVersionWithContext(ctx, group.String())
		return met || !noAnswer(last) || errors.Is(last, context.DeadlineExceeded), nil
	}
	if err := wait.ExponentialBackoffWithContext(ctx, firstContact, attempt); err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	last = c.explain(last)
	var unreachable *unreachableError
	if !met && errors.As(last, &unreachable) {
		c.unreachable = unreachable
	}
	return list, last
}

// explain turns an error for which no API server answered into an *unreachableError.
func (c *cluster) explain(err error) error {
	var already *unreachableError
	if !noAnswer(err) || errors.As(err, &already) {
		return err
	}
	return &unreachableError{server: c.server, cause: err}
}

// noAnswer reports whether an error of a request came from the way to the API server, not from it. A refused login is
// an answer: expired credentials must not look like a cluster that is gone.
func noAnswer(err error) bool {
	var answer apierrors.APIStatus
	return err != nil && !errors.As(err, &answer) && !errors.Is(err, context.Canceled) && !meta.IsNoMatchError(err)
}

func find(list *metav1.APIResourceList, kind string) *metav1.APIResource {
	if list == nil {
		return nil
	}
	for i := range list.APIResources {
		// A subresource ("pods/eviction") may have the kind of another resource.
		if r := &list.APIResources[i]; r.Kind == kind && !strings.Contains(r.Name, "/") {
			return r
		}
	}
	return nil
}

// client returns the API of an object's kind in the object's namespace. An object of a cluster-wide kind loses a
// namespace that was given to it before its kind was known.
func (c *cluster) client(ctx context.Context, object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	served, err := c.resource(ctx, kind)
	if err != nil {
		return nil, err
	}
	resources := c.dynamic.Resource(kind.GroupVersion().WithResource(served.Name))
	if !served.Namespaced {
		unstructured.RemoveNestedField(object.Object, "metadata", "namespace")
		return resources, nil
	}
	namespace := object.GetNamespace()
	if namespace == "" {
		namespace = c.namespace
	}
	return resources.Namespace(namespace), nil
}

// namespaced reports whether a kind has namespaces. A kind that the API server does not know (yet) counts as
// namespaced, as most are; client corrects that.
func (c *cluster) namespaced(ctx context.Context, kind schema.GroupVersionKind) (bool, error) {
	served, err := c.resource(ctx, kind)
	if meta.IsNoMatchError(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return served.Namespaced, nil
}
