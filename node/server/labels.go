package main

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	kubeletapis "k8s.io/kubelet/pkg/apis"
)

// Labels that a node of one machine has with kubeadm, and so in kind; k3s has them too.
const (
	controlPlaneRole = "node-role.kubernetes.io/control-plane"
	instanceType     = "node.kubernetes.io/instance-type"
)

// labelsOf are the labels that the node registers with, and those that a kubelet may not give itself, which the server
// puts on it: roles, and others in Kubernetes' own name (the admission plugin NodeRestriction refuses them).
func labelsOf(c *Config) (own, others map[string]string) {
	own, others = map[string]string{instanceType: "gvisor-k3s"}, map[string]string{controlPlaneRole: ""}
	for _, label := range c.NodeLabels {
		key, value, _ := strings.Cut(label, "=")
		if isKubernetes(key) && !kubeletapis.IsKubeletLabel(key) {
			others[key] = value
		} else {
			own[key] = value
		}
	}
	return own, others
}

func isKubernetes(key string) bool {
	namespace, _, found := strings.Cut(key, "/")
	for _, domain := range []string{"kubernetes.io", "k8s.io"} {
		if found && (namespace == domain || strings.HasSuffix(namespace, "."+domain)) {
			return true
		}
	}
	return false
}

func labelList(labels map[string]string) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, key+"="+labels[key])
	}
	return strings.Join(list, ",")
}

func (c *components) labelNode(ctx context.Context) error {
	client, err := adminClient(c.config)
	if err != nil {
		return err
	}
	_, others := labelsOf(c.config)
	return labelNode(ctx, client, c.config.NodeName, others)
}

// labelNode puts labels on a node when it has registered, and at each start. What is taken off meanwhile stays off.
func labelNode(ctx context.Context, client kubernetes.Interface, name string, labels map[string]string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return err
	}
	only := informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
	})
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, only)
	_, err = factory.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) {
			node, ok := object.(*corev1.Node)
			if !ok || node.Name != name || hasLabels(node, labels) {
				return
			}
			_, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
			if err != nil {
				klog.ErrorS(err, "the node's labels")
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	return nil
}

func hasLabels(node *corev1.Node, labels map[string]string) bool {
	for key, value := range labels {
		if has, ok := node.Labels[key]; !ok || has != value {
			return false
		}
	}
	return true
}
