package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/k3s-io/kine/pkg/server"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// A cluster that begins with another one's data has what that had, and is not that: its authorities, certificates and
// the key of its service accounts are new, so that neither lets in who has credentials of the other, and its node is
// called by its own name. Objects keep their UIDs, by which they refer to each other.

const (
	// seedFile names what the data are from, as whoever has put them there calls it.
	seedFile = "seed"
	// seededFile names that for which a new identity was made.
	seededFile = "seeded"

	hostnameLabel = corev1.LabelHostname
	// selectedNode is where a claim's volume is made (k8s.io/component-helpers/storage/volume).
	selectedNode = "volume.kubernetes.io/selected-node"
)

// isSeeded tells whether the data are of another cluster, whose identity they have.
func isSeeded(c *Config) (bool, error) {
	seed, err := os.ReadFile(c.path("server", seedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	seeded, err := os.ReadFile(c.path("server", seededFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return !bytes.Equal(seed, seeded), nil
}

// forgetKeys removes every key and certificate, and what has one in it.
func forgetKeys(c *Config) error {
	var problems []error
	for _, path := range []string{
		c.path("server", "tls"),
		c.path("server", "cred"),
		c.path("server", "stages.json"),
		c.WriteKubeconfig,
	} {
		problems = append(problems, os.RemoveAll(path))
	}
	return errors.Join(problems...)
}

// reidentify has what is in the datastore be this cluster's. It may be done again, as it is if it was interrupted.
func reidentify(ctx context.Context, c *Config, backend server.Backend, ca []byte) error {
	r := &renaming{backend: backend, name: c.NodeName, ca: string(ca)}
	// The nodes are the last: until then they tell what the node was called.
	for _, step := range []func(context.Context) error{
		r.findNode,
		r.leases,
		r.pods,
		r.volumes,
		r.claims,
		r.tokens,
		r.roots,
		r.nodes,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	seed, err := os.ReadFile(c.path("server", seedFile))
	if err != nil {
		return err
	}
	klog.InfoS("the data of another cluster are this one's", "from", string(seed), "node before", r.before)
	return writePrivate(c.path("server", seededFile), seed)
}

// settleIn has the datastore be this cluster's, if it is another one's.
func (c *components) settleIn(ctx context.Context, backend server.Backend) error {
	seeded, err := isSeeded(c.config)
	if err != nil || !seeded {
		return err
	}
	ca, err := os.ReadFile(c.pki.cert(serverCA))
	if err != nil {
		return err
	}
	return reidentify(ctx, c.config, backend, ca)
}

// renaming is what is done for it.
type renaming struct {
	backend server.Backend
	name    string // of the node
	before  string // what it was called
	ca      string // who signs what the API server serves with
}

func (r *renaming) findNode(ctx context.Context) error {
	prefix := storageKey("minions", "", "")
	return r.each(ctx, prefix, func(found *server.KeyValue, _ runtime.Object) (bool, error) {
		if name := strings.TrimPrefix(found.Key, prefix); name != r.name {
			r.before = name
		}
		return false, nil
	})
}

// nodes forgets the node; the kubelet registers it anew.
func (r *renaming) nodes(ctx context.Context) error {
	return r.removeAll(ctx, storageKey("minions", "", ""))
}

// leases forgets who was alive, who served, and what was told of that.
func (r *renaming) leases(ctx context.Context) error {
	for _, prefix := range []string{
		storageKey("leases", "kube-node-lease", ""),
		storageKey("leases", "kube-system", "apiserver-"),
		storageKey("csinodes", "", ""),
		storageKey("volumeattachments", "", ""),
		"/registry/masterleases/",
		"/registry/services/endpoints/default/kubernetes",
		storageKey("endpointslices", "default", "kubernetes"),
		// The API server adds its authorities to those that it finds in it.
		storageKey("configmaps", "kube-system", "extension-apiserver-authentication"),
	} {
		if err := r.removeAll(ctx, prefix); err != nil {
			return err
		}
	}
	return nil
}

// pods are where they were, on the node by its new name.
func (r *renaming) pods(ctx context.Context) error {
	return r.each(ctx, storageKey("pods", "", ""), func(_ *server.KeyValue, object runtime.Object) (bool, error) {
		pod, ok := object.(*corev1.Pod)
		if !ok || r.before == "" || pod.Spec.NodeName != r.before {
			return false, nil
		}
		pod.Spec.NodeName = r.name
		return true, nil
	})
}

// volumes that are folders of the node are its own under its new name.
func (r *renaming) volumes(ctx context.Context) error {
	return r.each(ctx, storageKey("persistentvolumes", "", ""), func(_ *server.KeyValue, object runtime.Object) (bool, error) {
		volume, ok := object.(*corev1.PersistentVolume)
		if !ok || volume.Spec.NodeAffinity == nil || volume.Spec.NodeAffinity.Required == nil {
			return false, nil
		}
		changed := false
		for _, term := range volume.Spec.NodeAffinity.Required.NodeSelectorTerms {
			for _, expression := range term.MatchExpressions {
				for i, value := range expression.Values {
					if expression.Key == hostnameLabel && value == r.before {
						expression.Values[i], changed = r.name, true
					}
				}
			}
		}
		return changed, nil
	})
}

func (r *renaming) claims(ctx context.Context) error {
	return r.each(ctx, storageKey("persistentvolumeclaims", "", ""), func(_ *server.KeyValue, object runtime.Object) (bool, error) {
		claim, ok := object.(*corev1.PersistentVolumeClaim)
		if !ok || r.before == "" || claim.Annotations[selectedNode] != r.before {
			return false, nil
		}
		claim.Annotations[selectedNode] = r.name
		return true, nil
	})
}

// tokens of service accounts that are kept in Secrets are signed with a key that is no more; a controller makes others.
func (r *renaming) tokens(ctx context.Context) error {
	return r.each(ctx, storageKey("secrets", "", ""), func(_ *server.KeyValue, object runtime.Object) (bool, error) {
		secret, ok := object.(*corev1.Secret)
		if !ok || secret.Type != corev1.SecretTypeServiceAccountToken {
			return false, nil
		}
		delete(secret.Data, corev1.ServiceAccountTokenKey)
		delete(secret.Data, corev1.ServiceAccountRootCAKey)
		return true, nil
	})
}

// roots are what pods verify the API server with: a controller would change them some time after the pods have started.
func (r *renaming) roots(ctx context.Context) error {
	return r.each(ctx, storageKey("configmaps", "", ""), func(_ *server.KeyValue, object runtime.Object) (bool, error) {
		configMap, ok := object.(*corev1.ConfigMap)
		if !ok || configMap.Name != "kube-root-ca.crt" {
			return false, nil
		}
		configMap.Data = map[string]string{"ca.crt": r.ca}
		return true, nil
	})
}

// each has every object looked at whose key begins so, and writes those back of which that is said. What is encrypted
// is no object, and left as it is.
func (r *renaming) each(
	ctx context.Context,
	prefix string,
	change func(*server.KeyValue, runtime.Object) (bool, error),
) error {
	_, all, err := r.backend.List(ctx, prefix, rangeEnd(prefix), 0, 0, false)
	if err != nil {
		return fmt.Errorf("%s: %w", prefix, err)
	}
	for _, found := range all {
		object, kind, err := legacyscheme.Codecs.UniversalDeserializer().Decode(found.Value, nil, nil)
		if err != nil {
			object = nil
		}
		changed, err := change(found, object)
		if err == nil && changed {
			err = r.write(ctx, found, object, kind.GroupVersion())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", found.Key, err)
		}
	}
	return nil
}

func (r *renaming) write(
	ctx context.Context,
	found *server.KeyValue,
	object runtime.Object,
	version schema.GroupVersion,
) error {
	value, err := encodeStored(object, version)
	if err != nil {
		return err
	}
	_, _, _, err = r.backend.Update(ctx, found.Key, value, found.ModRevision, found.Lease)
	return err
}

func (r *renaming) removeAll(ctx context.Context, prefix string) error {
	return r.each(ctx, prefix, func(found *server.KeyValue, _ runtime.Object) (bool, error) {
		_, _, _, err := r.backend.Delete(ctx, found.Key, found.ModRevision)
		return false, err
	})
}
