package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// nodeVolumes are the folders of the volumes that are on a node which has joined. The server's provisioner, which is on
// another node, does all but this: they are made when their volume is, and removed with it, also if the volume went
// while this node was not there. Those of a volume that is to be retained stay.
type nodeVolumes struct {
	folder string // of the volumes
	node   string
	// noted has an empty file for each volume whose folder goes with it.
	noted string
}

func (n *nodeVolumes) keep(ctx context.Context, client kubernetes.Interface) error {
	if err := os.MkdirAll(n.noted, 0o700); err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	volumes := factory.Core().V1().PersistentVolumes()
	told := func(object any) {
		if volume, ok := object.(*corev1.PersistentVolume); ok && n.has(volume) {
			if err := n.make(volume); err != nil {
				klog.ErrorS(err, "the folder of a volume", "volume", volume.Name)
			}
		}
	}
	handlers, err := volumes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    told,
		UpdateFunc: func(_, after any) { told(after) },
		DeleteFunc: func(object any) {
			if volume, ok := lastKnown(object).(*corev1.PersistentVolume); ok && n.has(volume) {
				n.removed(volume.Name)
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), handlers.HasSynced) {
		return nil
	}
	entries, err := os.ReadDir(n.noted)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if _, err := volumes.Lister().Get(entry.Name()); apierrors.IsNotFound(err) {
			n.removed(entry.Name())
		}
	}
	<-ctx.Done()
	return nil
}

func (n *nodeVolumes) has(volume *corev1.PersistentVolume) bool {
	return isIn(n.folder, volume) && volume.Spec.NodeAffinity != nil && isOn(n.node, volume)
}

func (n *nodeVolumes) make(volume *corev1.PersistentVolume) error {
	note := filepath.Join(n.noted, volume.Name)
	var err error
	if volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		err = writePrivate(note, nil)
	} else if err = os.Remove(note); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, makeVolume(volume.Spec.HostPath.Path))
}

// removed removes the folder of a volume that is gone, if it was to go with it. The volume's name is the first part of
// the folder's.
func (n *nodeVolumes) removed(volume string) {
	note := filepath.Join(n.noted, volume)
	if _, err := os.Stat(note); err != nil {
		return
	}
	folders, err := os.ReadDir(n.folder)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, entry := range folders {
		if name, _, found := strings.Cut(entry.Name(), "_"); found && name == volume {
			err = errors.Join(err, os.RemoveAll(filepath.Join(n.folder, entry.Name())))
		}
	}
	if err == nil {
		err = os.Remove(note)
	}
	if err != nil {
		klog.ErrorS(err, "the folder of a volume that is gone", "volume", volume)
	}
}
