package main

import (
	"context"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

func TestTellOfPolicies(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client, watched := watchedClient(t, "networkpolicies")
	ended := make(chan error)
	go func() { ended <- tellOfPolicies(ctx, client) }()
	watched()
	policies := client.NetworkingV1().NetworkPolicies("default")
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny", Namespace: "default", UID: "1"}}
	if _, err := policies.Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	told := func(ctx context.Context) (bool, error) {
		list, err := client.EventsV1().Events("default").List(ctx, metav1.ListOptions{})
		return err == nil && len(list.Items) == 1 && list.Items[0].Regarding.Name == "deny" &&
			strings.HasPrefix(list.Items[0].Note, "Nothing enforces this policy"), err
	}
	err := wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, 20*time.Second, true, told)
	if err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
