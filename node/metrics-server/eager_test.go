package main

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

// kubelet is what the scraper sees: figures that change at some looks only, as the kubelet's do.
type kubelet struct {
	t       *testing.T
	looks   int
	points  map[string]time.Time // pods and the node, "", by when their figures were taken the last time
	every   time.Duration        // how often the kubelet takes new ones
	started time.Time
}

func (k *kubelet) Scrape(context.Context) *storage.MetricsBatch {
	k.looks++
	batch := &storage.MetricsBatch{
		Nodes: map[string]storage.MetricsPoint{},
		Pods:  map[types.NamespacedName]storage.PodMetricsPoint{},
	}
	for name, start := range k.points {
		taken := start.Add(time.Since(start).Truncate(k.every)) // the first ones at its start
		point := storage.MetricsPoint{
			StartTime:         start.Add(-time.Millisecond),
			Timestamp:         taken,
			CumulativeCPUUsed: uint64(taken.Sub(k.started)) + 1,
			MemoryUsage:       1 << 20,
		}
		if name == "" {
			batch.Nodes["node"] = point
			continue
		}
		containers := map[string]storage.MetricsPoint{"main": point}
		batch.Pods[types.NamespacedName{Namespace: "default", Name: name}] =
			storage.PodMetricsPoint{Containers: containers}
	}
	return batch
}

func TestEager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
		pods := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
		points := storage.NewStorage(15 * time.Second)
		k := &kubelet{t: t, points: map[string]time.Time{"": time.Now()}, every: 2 * time.Second, started: time.Now()}
		e := newEager(k, points, corelisters.NewNodeLister(nodes),
			cache.NewGenericLister(pods, schema.GroupResource{Resource: "pods"}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		source := &source{}
		if err := e.listenTo(source); err != nil {
			t.Fatal(err)
		}
		go e.run(ctx)
		pod := func(name string) *metav1.PartialObjectMetadata {
			return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		}
		known := func(names ...string) bool {
			var asked []*metav1.PartialObjectMetadata
			for _, name := range names {
				asked = append(asked, pod(name))
			}
			figures, err := points.GetPodMetrics(asked...)
			return err == nil && len(figures) == len(names)
		}
		start := func(name string) {
			k.points[name] = time.Now()
			if err := pods.Add(pod(name)); err != nil {
				t.Fatal(err)
			}
			source.added()
		}
		// after is where things stand after a time in which nothing else happens.
		after := func(passed time.Duration) (looks int) {
			time.Sleep(passed) // of the test's own clock
			synctest.Wait()
			defer func() { k.looks = 0 }()
			return k.looks
		}

		if looks := after(time.Hour); looks != 0 {
			t.Errorf("%d looks without any reason", looks)
		}
		if err := nodes.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}}); err != nil {
			t.Fatal(err)
		}
		source.added()
		start("first")
		after(2*time.Second + time.Millisecond)
		if !known("first") {
			t.Error("the kubelet's second figures are there, and not known")
		}
		if looks := after(time.Hour); looks > 2 {
			t.Errorf("%d more looks while everything is known", looks)
		}
		start("second")
		start("third")
		after(2*time.Second + time.Millisecond)
		if !known("first", "second", "third") {
			t.Error("two new pods are not known")
		}
		// Of a pod that has no figures nothing is known, however often one looks.
		delete(k.points, "third")
		if err := pods.Add(pod("idle")); err != nil {
			t.Fatal(err)
		}
		source.added()
		if looks := after(time.Hour); looks < 25 || looks > 40 {
			t.Errorf("%d looks for a pod that has no figures", looks)
		}
		// A look of upstream's that fails has it forget what it knew.
		if err := pods.Delete(pod("third")); err != nil {
			t.Fatal(err)
		}
		if err := pods.Delete(pod("idle")); err != nil {
			t.Fatal(err)
		}
		figures := k.points
		k.points = nil
		points.Store(e.Scrape(ctx))
		after(time.Second + time.Millisecond)
		if known("first") {
			t.Error("a look that failed was kept")
		}
		k.points = figures
		after(4 * time.Second)
		if !known("first", "second") {
			t.Error("what was forgotten is not known again")
		}
		points.Store(e.Scrape(ctx))
		if looks := after(time.Hour); looks != 1 {
			t.Errorf("%d looks more than upstream's, which did not fail", looks-1)
		}
		cancel()
		synctest.Wait()
		source.added()
		if looks := after(time.Minute); looks != 0 {
			t.Errorf("%d looks after the end", looks)
		}
	})
}

// source has one handler, which hears of every addition.
type source struct{ cache.ResourceEventHandler }

func (s *source) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	s.ResourceEventHandler = h
	return nil, nil
}

func (s *source) added() { s.OnAdd(nil, false) }
