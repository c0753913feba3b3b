package main

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/wait"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/metrics-server/pkg/scraper"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

const (
	// interval is how often eager looks. The kubelet has new figures of what is busy every two seconds (lookOften in
	// node/server).
	interval = time.Second
	// patience is how long eager looks for the figures of something that is new. What has none by then, as it uses
	// nothing, is left to upstream's looks.
	patience = 30 * time.Second
)

// eager looks at the node's figures again and again while there is a pod that has none, or the node itself. A usage is
// told from two looks, and upstream's are a quarter of a minute apart: a new pod would be known after half a minute,
// and every pod after a new start of the kubelet. While every pod is known it does nothing.
type eager struct {
	scraper scraper.Scraper
	points  storage.Storage
	nodes   corelisters.NodeLister
	pods    cache.GenericLister
	news    chan struct{} // holds at most one: that there is something new
}

func newEager(
	s scraper.Scraper,
	points storage.Storage,
	nodes corelisters.NodeLister,
	pods cache.GenericLister,
) *eager {
	return &eager{scraper: s, points: points, nodes: nodes, pods: pods, news: make(chan struct{}, 1)}
}

// eventSource is the part of an informer that eager takes.
type eventSource interface {
	AddEventHandler(cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error)
}

func (e *eager) listenTo(source eventSource) error {
	_, err := source.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { e.tell() }})
	return err
}

// Scrape is upstream's look. One that fails has upstream forget every figure.
func (e *eager) Scrape(ctx context.Context) *storage.MetricsBatch {
	batch := e.scraper.Scrape(ctx)
	if len(batch.Nodes) == 0 {
		e.tell()
	}
	return batch
}

func (e *eager) tell() {
	select {
	case e.news <- struct{}{}:
	default: // it is known that there is something
	}
}

func (e *eager) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.news:
		}
		// What comes meanwhile is looked at in the same way, and gives another round of patience.
		_ = wait.PollUntilContextTimeout(ctx, interval, patience, true, func(ctx context.Context) (bool, error) {
			e.points.Store(e.scraper.Scrape(ctx))
			return e.allKnown(), nil
		})
	}
}

// allKnown tells whether there are figures of every node and every pod that runs. What can't be told is left to the
// next look.
func (e *eager) allKnown() bool {
	nodes, err := e.nodes.List(labels.Everything())
	if err != nil {
		return false
	}
	nodeFigures, err := e.points.GetNodeMetrics(nodes...)
	if err != nil || len(nodeFigures) < len(nodes) {
		return false
	}
	objects, err := e.pods.List(labels.Everything())
	if err != nil {
		return false
	}
	var pods []*metav1.PartialObjectMetadata
	for _, object := range objects {
		if pod, ok := object.(*metav1.PartialObjectMetadata); ok {
			pods = append(pods, pod)
		}
	}
	podFigures, err := e.points.GetPodMetrics(pods...)
	return err == nil && len(podFigures) == len(pods) && len(nodes) > 0
}
