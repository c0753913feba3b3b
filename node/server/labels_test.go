package main

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

func TestLabelsOf(t *testing.T) {
	own, others := labelsOf(&Config{NodeLabels: []string{
		"tier=web", "example.com/a=b", "topology.kubernetes.io/zone=z", "node-role.kubernetes.io/worker=", "k8s.io/x=y",
	}})
	if got, want := labelList(own),
		"example.com/a=b,node.kubernetes.io/instance-type=gvisor-k3s,tier=web,topology.kubernetes.io/zone=z"; got != want {
		t.Errorf("the kubelet's are %s, want %s", got, want)
	}
	if got, want := labelList(others),
		"k8s.io/x=y,node-role.kubernetes.io/control-plane=,node-role.kubernetes.io/worker="; got != want {
		t.Errorf("the others are %s, want %s", got, want)
	}
}

func TestLabelsANodeEachTimeItRegisters(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, watched := watchedClient(t, "nodes")
	go labelNode(ctx, client, "n", map[string]string{controlPlaneRole: ""})
	watched()
	nodes := client.CoreV1().Nodes()
	for range 2 {
		for _, name := range []string{"n", "other"} {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
			if _, err := nodes.Create(ctx, node, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		err := wait.PollUntilContextCancel(ctx, time.Millisecond, true, func(ctx context.Context) (bool, error) {
			node, err := nodes.Get(ctx, "n", metav1.GetOptions{})
			return err == nil && hasLabels(node, map[string]string{controlPlaneRole: ""}), err
		})
		if err != nil {
			t.Fatal("the node has no role: ", err)
		}
		if other, _ := nodes.Get(ctx, "other", metav1.GetOptions{}); len(other.Labels) > 0 {
			t.Errorf("another node got %v", other.Labels)
		}
		for _, name := range []string{"n", "other"} {
			if err := nodes.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
