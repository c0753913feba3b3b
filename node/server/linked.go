package main

// What upstream's main packages link for its effect alone: this program is none of them, so it has to do the same.
// TestLinksWhatUpstreamLinks compares.
import (
	_ "time/tzdata" // the time zones of CronJobs: a sandbox has no files of them

	_ "gvisor-k3s/node/server/unmetered" // and one that no other program has

	_ "k8s.io/client-go/plugin/pkg/client/auth"           // what a kubeconfig of kubectl's may log in with
	_ "k8s.io/component-base/logs/json/register"          // logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // metrics of the requests that components make
	_ "k8s.io/component-base/metrics/prometheus/version"  // metrics that tell the version
)
