package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

func provision(
	volumes *localVolumes,
	change func(*corev1.PersistentVolumeClaimSpec),
) (*corev1.PersistentVolume, error) {
	reclaim := corev1.PersistentVolumeReclaimDelete
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}}}
	change(&claim.Spec)
	volume, _, err := volumes.Provision(context.Background(), controller.ProvisionOptions{
		PVName:       "pvc-1",
		PVC:          claim,
		StorageClass: &storagev1.StorageClass{ReclaimPolicy: &reclaim},
	})
	return volume, err
}

func TestLocalVolumes(t *testing.T) {
	volumes := &localVolumes{filepath.Join(t.TempDir(), "storage"), "node"}
	volume, err := provision(volumes, func(*corev1.PersistentVolumeClaimSpec) {})
	if err != nil {
		t.Fatal(err)
	}
	path := volume.Spec.HostPath.Path
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 ||
		filepath.Base(path) != "pvc-1_default_data" {
		t.Errorf("got %s, %v, %v", path, info, err)
	}
	// A claim that is tried again, or whose server was restarted between folder and volume, gets the same folder with what
	// is in it.
	file := filepath.Join(path, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := provision(volumes, func(*corev1.PersistentVolumeClaimSpec) {}); err != nil ||
		again.Spec.HostPath.Path != path {
		t.Errorf("got %v, %v", again, err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if err := volumes.Delete(t.Context(), volume); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	if err := volumes.Delete(t.Context(), volume); err != nil {
		t.Errorf("a folder that is gone: %v", err)
	}
}

func TestLocalVolumesRefuse(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	for want, change := range map[string]func(*corev1.PersistentVolumeClaimSpec){
		"access mode ReadWriteMany": func(s *corev1.PersistentVolumeClaimSpec) {
			s.AccessModes = append(s.AccessModes, corev1.ReadWriteMany)
		},
		"volume mode Block":         func(s *corev1.PersistentVolumeClaimSpec) { s.VolumeMode = &block },
		"a selector is not allowed": func(s *corev1.PersistentVolumeClaimSpec) { s.Selector = &metav1.LabelSelector{} },
	} {
		volumes := &localVolumes{filepath.Join(t.TempDir(), "storage"), "node"}
		if _, err := provision(volumes, change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if _, err := os.Stat(volumes.folder); err == nil {
			t.Errorf("%s: something was made", want)
		}
	}
}

// A volume's path is whatever its writer says.
func TestLocalVolumesDeleteOnlyTheirOwn(t *testing.T) {
	folder := t.TempDir()
	volumes := &localVolumes{filepath.Join(folder, "storage"), "node"}
	for _, path := range []string{
		folder, volumes.folder, volumes.folder + "/", volumes.folder + "/../other", volumes.folder + "/a/b", "/",
	} {
		volume := &corev1.PersistentVolume{
			Spec: corev1.PersistentVolumeSpec{
				PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}},
			},
		}
		var ignored *controller.IgnoredError
		if err := volumes.Delete(t.Context(), volume); !errors.As(err, &ignored) {
			t.Errorf("%s: got %v", path, err)
		}
	}
	if err := volumes.Delete(t.Context(), &corev1.PersistentVolume{}); err == nil {
		t.Error("a volume without a path was deleted")
	}
}
