package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func volumeOn(node, folder, name string, policy corev1.PersistentVolumeReclaimPolicy) *corev1.PersistentVolume {
	hostname := corev1.NodeSelectorRequirement{
		Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: policy,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(folder, name+"_default_claim")},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{hostname}}},
			}},
		},
	}
}

func TestVolumesOfANodeThatHasJoined(t *testing.T) {
	n := &nodeVolumes{folder: filepath.Join(t.TempDir(), "storage"), node: "b", noted: filepath.Join(t.TempDir(), "noted")}
	there := func(name string) bool {
		_, err := os.Stat(filepath.Join(n.folder, name+"_default_claim"))
		return !errors.Is(err, fs.ErrNotExist)
	}
	eventually := func(what string, condition func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("after a minute: %s", what)
			}
		}
	}
	// Of one that went while the node was not there, and of one that was not to go with its volume.
	for _, name := range []string{"gone", "left"} {
		if err := makeVolume(filepath.Join(n.folder, name+"_default_claim")); err != nil {
			t.Fatal(err)
		}
	}
	note := filepath.Join(n.noted, "gone")
	if err := errors.Join(os.MkdirAll(n.noted, 0o700), os.WriteFile(note, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	client, watched := watchedClient(t, "persistentvolumes")
	go n.keep(t.Context(), client)
	watched()
	volumes := client.CoreV1().PersistentVolumes()
	for _, volume := range []*corev1.PersistentVolume{
		volumeOn("a", n.folder, "elsewhere", corev1.PersistentVolumeReclaimDelete),
		volumeOn("b", n.folder, "deleted", corev1.PersistentVolumeReclaimDelete),
		volumeOn("b", n.folder, "retained", corev1.PersistentVolumeReclaimRetain),
		volumeOn("b", t.TempDir(), "no-volume-of-ours", corev1.PersistentVolumeReclaimDelete),
	} {
		if _, err := volumes.Create(t.Context(), volume, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually("they are made", func() bool { return there("deleted") && there("retained") })
	info, err := os.Stat(filepath.Join(n.folder, "deleted_default_claim"))
	if err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("whoever the pod's user is: %v, %v", info, err)
	}
	eventually("what went meanwhile is removed", func() bool { return !there("gone") })
	for _, name := range []string{"retained", "deleted"} {
		if err := volumes.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually("what goes with its volume is removed", func() bool { return !there("deleted") })
	if !there("retained") || !there("left") {
		t.Error("what was to stay is gone")
	}
	if there("elsewhere") || there("no-volume-of-ours") {
		t.Error("what is none of this node's was made")
	}
}
