package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const (
	localStorage     = "local-storage" // the manifest's name, as in k3s
	localProvisioner = "rancher.io/local-path"
)

// The StorageClass of k3s, so that a claim that works here works there.
//
//go:embed local-storage.yaml
var localStorageManifest []byte

// localVolumes makes a folder of the node for each claim, with the behaviour of k3s's local-path provisioner: a volume
// is bound when its first pod is scheduled, takes what the disk has, and is deleted with its claim.
type localVolumes struct {
	folder string
	node   string
}

func (c *components) localStorage(ctx context.Context) error {
	client, err := adminClient(c.config)
	if err != nil {
		return err
	}
	return provisionLocally(ctx, client, &localVolumes{c.config.LocalStoragePath, c.config.NodeName})
}

func provisionLocally(ctx context.Context, client kubernetes.Interface, volumes *localVolumes) error {
	controller.NewProvisionController(ctx, client, localProvisioner, volumes, controller.LeaderElection(false)).Run(ctx)
	return nil
}

// Provision refuses what k3s's provisioner refuses; the claim tells why.
func (l *localVolumes) Provision(
	_ context.Context,
	options controller.ProvisionOptions,
) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	claim := options.PVC
	for _, mode := range claim.Spec.AccessModes {
		allowed := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadWriteOncePod}
		if !slices.Contains(allowed, mode) {
			err := fmt.Errorf("access mode %s: ReadWriteOnce and ReadWriteOncePod are allowed", mode)
			return nil, controller.ProvisioningFinished, err
		}
	}
	if mode := claim.Spec.VolumeMode; mode != nil && *mode != corev1.PersistentVolumeFilesystem {
		return nil, controller.ProvisioningFinished, fmt.Errorf("volume mode %s: only Filesystem is allowed", *mode)
	}
	if claim.Spec.Selector != nil {
		return nil, controller.ProvisioningFinished, fmt.Errorf("a selector is not allowed: volumes are made, not found")
	}
	path := filepath.Join(l.folder, strings.Join([]string{options.PVName, claim.Namespace, claim.Name}, "_"))
	node := l.node
	if options.SelectedNodeName != "" && options.SelectedNodeName != l.node {
		node = options.SelectedNodeName // which makes the folder; see nodevolumes.go
	} else if err := makeVolume(path); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	kind, filesystem := corev1.HostPathDirectoryOrCreate, corev1.PersistentVolumeFilesystem
	hostname := corev1.NodeSelectorRequirement{
		Key:      corev1.LabelHostname,
		Operator: corev1.NodeSelectorOpIn,
		Values:   []string{node},
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    &filesystem,
			Capacity: corev1.ResourceList{
				corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage],
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{hostname}}},
			}},
		},
	}, controller.ProvisioningFinished, nil
}

// makeVolume makes a folder for whoever the pod's user is, and whatever the umask.
func makeVolume(path string) error {
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	return os.Chmod(path, 0o777)
}

// Delete removes the folder of a volume, if it is one of ours: the path is the user's to write.
func (l *localVolumes) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	if !isIn(l.folder, volume) {
		return &controller.IgnoredError{Reason: "it is no folder in " + l.folder}
	}
	if !isOn(l.node, volume) {
		return nil // its node removes it
	}
	return os.RemoveAll(volume.Spec.HostPath.Path)
}

func isIn(folder string, volume *corev1.PersistentVolume) bool {
	path := volume.Spec.HostPath
	return path != nil && filepath.Dir(filepath.Clean(path.Path)) == filepath.Clean(folder)
}

// isOn tells whether a volume is on a node, or on any.
func isOn(node string, volume *corev1.PersistentVolume) bool {
	affinity := volume.Spec.NodeAffinity
	if affinity == nil || affinity.Required == nil {
		return true
	}
	return slices.ContainsFunc(affinity.Required.NodeSelectorTerms, func(term corev1.NodeSelectorTerm) bool {
		return slices.ContainsFunc(term.MatchExpressions, func(one corev1.NodeSelectorRequirement) bool {
			return one.Key == corev1.LabelHostname && slices.Contains(one.Values, node)
		})
	})
}

// writeLocalStorage puts the StorageClass among the manifests.
func writeLocalStorage(c *Config) error {
	return writePrivate(c.path("server", "manifests", localStorage+".yaml"), localStorageManifest)
}
