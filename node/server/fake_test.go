package main

import (
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// watchedClient is a client of a fake API, and what waits until each of these resources is watched. The fake has no
// versions to watch from: of what is made between a list and its watch, nobody is ever told.
func watchedClient(t *testing.T, resources ...string) (client *fake.Clientset, watched func()) {
	t.Helper()
	client = fake.NewClientset()
	var watches sync.WaitGroup
	for _, resource := range resources {
		watches.Add(1)
		first := sync.OnceFunc(watches.Done)
		client.PrependWatchReactor(resource, func(action clienttesting.Action) (bool, watch.Interface, error) {
			watching, err := client.Tracker().Watch(action.GetResource(), action.GetNamespace())
			first()
			return true, watching, err
		})
	}
	return client, func() {
		t.Helper()
		all := make(chan struct{})
		go func() {
			watches.Wait()
			close(all)
		}()
		select {
		case <-all:
		case <-time.After(time.Minute):
			t.Fatalf("after a minute, not all of %q are watched", resources)
		}
	}
}
