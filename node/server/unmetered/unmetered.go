// Package unmetered keeps client-go's work queues without metrics. With them, each of the hundred queues of a node has
// a goroutine that wakes twice a second, for a gauge of the work in progress: more than half of all wake-ups of an idle
// node, and a wake-up costs four times as much in a sandbox as outside. So /metrics has no workqueue_* figures.
//
// client-go starts no such goroutine where its provider of metrics is the one that does nothing. That one has no public
// name, and the first provider that is set stays. Packages whose imports are ready are initialized in the order of
// their paths (https://go.dev/ref/spec#Program_initialization): this one before k8s.io/component-base, whose provider
// then comes too late. TestWorkQueuesSleep fails where that is no longer so.
package unmetered

import (
	_ "unsafe" // go:linkname

	"k8s.io/client-go/util/workqueue"
)

//go:linkname idle k8s.io/client-go/util/workqueue.globalMetricsProvider
var idle workqueue.MetricsProvider

func init() {
	workqueue.SetProvider(idle)
}
