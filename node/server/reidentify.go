package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// A cluster that begins with another one's data has what that had, and is not that: its authorities, certificates and
// the key of its service accounts are new, so that neither lets in who has credentials of the other, and its nodes are
// called by names of their own. Objects keep their UIDs, by which they refer to each other.

const (
	// seedFile names what the data are from, as whoever has put them there calls it.
	seedFile = "seed"
	// seededFile names that for which a new identity was made.
	seededFile = "seeded"

	// renamesFile has the new names of nodes by those of before, until all is done.
	renamesFile = "renames.json"

	hostnameLabel = corev1.LabelHostname
	// drainedAnnotation is at nodes that take no pods because they were drained for another kubelet; see steps/member.ts.
	drainedAnnotation = "gvisor-k3s/drained"
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
		c.path("server", "nodes"), // the other cluster's
		c.WriteKubeconfig,
	} {
		problems = append(problems, os.RemoveAll(path))
	}
	return errors.Join(problems...)
}

// reidentify has what is in the datastore be this cluster's. It may be done again, as it is if it was interrupted.
func reidentify(ctx context.Context, c *Config, backend server.Backend) error {
	ca, err := pki{config: c}.read(serverCA)
	if err != nil {
		return err
	}
	r := &renaming{
		backend: backend,
		name:    c.NodeName,
		hasNode: !c.DisableAgent,
		ca:      ca,
		names:   map[string]string{},
		noted:   c.path("server", renamesFile),
	}
	for _, step := range []func(context.Context) error{
		r.findNodes,
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
	if err := forgetHistory(ctx, c); err != nil {
		return fmt.Errorf("what the datastore had before: %w", err)
	}
	seed, err := os.ReadFile(c.path("server", seedFile))
	if err != nil {
		return err
	}
	klog.InfoS("the data of another cluster are this one's", "from", string(seed), "nodes", r.names)
	if err := writePrivate(c.path("server", seededFile), seed); err != nil {
		return err
	}
	return os.Remove(r.noted)
}

// forgetHistory has the datastore hold nothing but what there is now: in what it was there are tokens that are good in
// the other cluster. The newest row stays, whatever it is, for its number is the revision.
func forgetHistory(ctx context.Context, c *Config) error {
	db, err := sql.Open("sqlite3", c.datastoreFile()+"?"+sqlite.DefaultParams)
	if err != nil {
		return err
	}
	defer db.Close()
	connection, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer connection.Close()
	for _, statement := range []string{
		"PRAGMA secure_delete = ON",
		"DELETE FROM kine WHERE id NOT IN (SELECT MAX(id) FROM kine GROUP BY name)",
		"DELETE FROM kine WHERE deleted = 1 AND id < (SELECT MAX(id) FROM kine)",
		"UPDATE kine SET old_value = NULL",
		"UPDATE kine SET prev_revision = (SELECT MAX(id) FROM kine) WHERE name = 'compact_rev_key'",
		"PRAGMA wal_checkpoint(TRUNCATE)",
	} {
		if _, err := connection.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// renaming is what is done for it.
type renaming struct {
	backend server.Backend
	name    string            // of the server's own node
	hasNode bool              // a control plane alone may have nodes, and none is its own
	names   map[string]string // what its nodes are called, by what they were; none that keeps its name
	ca      string            // who signs what the API server serves with
	noted   string            // the file with the names
}

// findNodes finds what the nodes were called, and notes it: half of it done tells it no more.
func (r *renaming) findNodes(ctx context.Context) error {
	noted, err := os.ReadFile(r.noted)
	if err == nil {
		return json.Unmarshal(noted, &r.names)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := errors.Join(r.findNode(ctx), r.findJoined(ctx)); err != nil {
		return err
	}
	content, err := json.Marshal(r.names)
	if err != nil {
		return err
	}
	return writePrivate(r.noted, content)
}

// findNode finds the node that was the server's own among those that there are: by the id that it registered with, by
// its role, or since it is the only one.
func (r *renaming) findNode(ctx context.Context) error {
	var own, servers, all []string
	prefix := storageKey("minions", "", "")
	err := r.each(ctx, prefix, func(found *server.KeyValue, object runtime.Object) (bool, error) {
		name := strings.TrimPrefix(found.Key, prefix)
		node, ok := object.(*corev1.Node)
		if !ok {
			return false, nil
		}
		if node.Spec.ProviderID == providerID(name) {
			own = append(own, name)
		}
		if _, is := node.Labels[controlPlaneRole]; is {
			servers = append(servers, name)
		}
		all = append(all, name)
		return false, nil
	})
	if err != nil {
		return err
	}
	ways := [][]string{own}
	if r.hasNode {
		ways = append(ways, servers, all)
	}
	for _, found := range ways {
		// One of the new name is what a start has made that was interrupted, or all of it is done.
		others := slices.DeleteFunc(slices.Clone(found), func(name string) bool { return name == r.name })
		switch {
		case len(others) == 1:
			r.names[others[0]] = r.name
			return nil
		case len(others) == 0 && len(found) > 0:
			return nil
		}
	}
	if r.hasNode && len(all) > 0 {
		return fmt.Errorf("which of the nodes %q was the server's own cannot be told", all)
	}
	return nil
}

// findJoined finds the nodes that joined the other cluster as this project has them join: their names begin with that
// of the server's node.
func (r *renaming) findJoined(ctx context.Context) error {
	for before, name := range maps.Clone(r.names) {
		prefix := storageKey("minions", "", "")
		err := r.each(ctx, prefix, func(found *server.KeyValue, object runtime.Object) (bool, error) {
			joined := strings.TrimPrefix(found.Key, prefix)
			short, isOf := strings.CutPrefix(joined, before+"-")
			if node, ok := object.(*corev1.Node); ok && isOf && node.Spec.ProviderID == joinedID(joined) {
				r.names[joined] = name + "-" + short
			}
			return false, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// nodes has the nodes be those of the new names, with what people have given them: the kubelets register the rest anew.
func (r *renaming) nodes(ctx context.Context) error {
	for before, name := range r.names {
		key := storageKey("minions", "", before)
		err := r.each(ctx, key, func(found *server.KeyValue, object runtime.Object) (bool, error) {
			if node, ok := object.(*corev1.Node); ok && found.Key == key {
				return false, r.renamed(ctx, node, name)
			}
			return false, nil
		})
		if err == nil {
			err = r.remove(ctx, key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// renamed makes a node of another one. Its pods keep their network, which is noted on its disk.
func (r *renaming) renamed(ctx context.Context, node *corev1.Node, name string) error {
	labels := map[string]string{} // it may have none
	maps.Copy(labels, node.Labels)
	labels[hostnameLabel] = name
	now := metav1.Now()
	id := providerID(name)
	if name != r.name {
		id = joinedID(name)
	}
	annotations := map[string]string{}
	if since, is := node.Annotations[drainedAnnotation]; is {
		annotations[drainedAnnotation] = since // or nobody would have it take pods again
	}
	other := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: uuid.NewUUID(), CreationTimestamp: now, Labels: labels, Annotations: annotations,
		},
		Spec: corev1.NodeSpec{
			ProviderID:    id,
			PodCIDR:       node.Spec.PodCIDR,
			PodCIDRs:      node.Spec.PodCIDRs,
			Taints:        node.Spec.Taints,
			Unschedulable: node.Spec.Unschedulable,
		},
	}
	value, err := encodeStored(other, corev1.SchemeGroupVersion)
	if err == nil {
		_, err = r.backend.Create(ctx, storageKey("minions", "", name), value, 0)
	}
	if errors.Is(err, server.ErrKeyExists) {
		return nil // of a start that was killed
	}
	return err
}

// leases forgets who was alive, who served, and what was told of that.
func (r *renaming) leases(ctx context.Context) error {
	remove := func(found *server.KeyValue, _ runtime.Object) (bool, error) { return false, r.remove(ctx, found.Key) }
	for _, prefix := range []string{
		storageKey("leases", "kube-node-lease", ""),
		storageKey("leases", "kube-system", "apiserver-"),
		storageKey("csinodes", "", ""),
		storageKey("volumeattachments", "", ""),
		"/registry/masterleases/",
	} {
		if err := r.each(ctx, prefix, remove); err != nil {
			return err
		}
	}
	for _, key := range []string{
		"/registry/services/endpoints/default/kubernetes",
		storageKey("endpointslices", "default", "kubernetes"),
		// The API server adds its authorities to those that it finds in it.
		storageKey("configmaps", "kube-system", "extension-apiserver-authentication"),
	} {
		if err := r.remove(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// pods are where they were, on the nodes by their new names.
func (r *renaming) pods(ctx context.Context) error {
	return r.each(ctx, storageKey("pods", "", ""), func(_ *server.KeyValue, object runtime.Object) (bool, error) {
		pod, ok := object.(*corev1.Pod)
		if !ok || r.names[pod.Spec.NodeName] == "" {
			return false, nil
		}
		pod.Spec.NodeName = r.names[pod.Spec.NodeName]
		if name := r.names[pod.Spec.NodeSelector[hostnameLabel]]; name != "" {
			pod.Spec.NodeSelector[hostnameLabel] = name
		}
		if affinity := pod.Spec.Affinity; affinity != nil && affinity.NodeAffinity != nil {
			r.selector(affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		}
		return true, nil
	})
}

// volumes that are folders of a node are its own under its new name.
func (r *renaming) volumes(ctx context.Context) error {
	prefix := storageKey("persistentvolumes", "", "")
	return r.each(ctx, prefix, func(_ *server.KeyValue, object runtime.Object) (bool, error) {
		volume, ok := object.(*corev1.PersistentVolume)
		if !ok || volume.Spec.NodeAffinity == nil {
			return false, nil
		}
		return r.selector(volume.Spec.NodeAffinity.Required), nil
	})
}

// selector has what asks for a node by its former name ask for it by the new one, and tells whether anything did.
func (r *renaming) selector(selector *corev1.NodeSelector) bool {
	changed := false
	if selector == nil {
		return false
	}
	for _, term := range selector.NodeSelectorTerms {
		for _, expression := range slices.Concat(term.MatchExpressions, term.MatchFields) {
			for i, value := range expression.Values {
				name := r.names[value]
				if name != "" && (expression.Key == hostnameLabel || expression.Key == "metadata.name") {
					expression.Values[i], changed = name, true
				}
			}
		}
	}
	return changed
}

func (r *renaming) claims(ctx context.Context) error {
	prefix := storageKey("persistentvolumeclaims", "", "")
	return r.each(ctx, prefix, func(_ *server.KeyValue, object runtime.Object) (bool, error) {
		claim, ok := object.(*corev1.PersistentVolumeClaim)
		if !ok || r.names[claim.Annotations[selectedNode]] == "" {
			return false, nil
		}
		claim.Annotations[selectedNode] = r.names[claim.Annotations[selectedNode]]
		return true, nil
	})
}

// tokens of service accounts that are kept in Secrets are signed with a key that is no more; a controller makes others.
// Those by which nodes join are let in whoever signs, and are removed.
func (r *renaming) tokens(ctx context.Context) error {
	return r.each(ctx, storageKey("secrets", "", ""), func(found *server.KeyValue, object runtime.Object) (bool, error) {
		secret, ok := object.(*corev1.Secret)
		if ok && secret.Type == corev1.SecretTypeBootstrapToken {
			return false, r.remove(ctx, found.Key)
		}
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

// remove removes what a key has, if there is anything.
func (r *renaming) remove(ctx context.Context, key string) error {
	_, found, err := r.backend.Get(ctx, key, 0, true)
	if err != nil || found == nil {
		return err
	}
	_, _, _, err = r.backend.Delete(ctx, key, found.ModRevision)
	return err
}
