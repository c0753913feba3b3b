// Command metrics-server is the official metrics-server, built here because its image cannot be taken for granted: see
// node/coredns. What differs from upstream's is that it looks at the node at once when there is something new: see
// eager.
package main

import (
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	apimetrics "k8s.io/apiserver/pkg/endpoints/metrics"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	_ "k8s.io/component-base/metrics/prometheus/restclient" // for client-go's metrics
	"sigs.k8s.io/metrics-server/cmd/metrics-server/app/options"
	"sigs.k8s.io/metrics-server/pkg/api"
	"sigs.k8s.io/metrics-server/pkg/scraper"
	"sigs.k8s.io/metrics-server/pkg/scraper/client/resource"
	"sigs.k8s.io/metrics-server/pkg/server"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

func main() {
	if err := run(os.Args[1:], genericapiserver.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "metrics-server:", err)
		os.Exit(1)
	}
}

func run(arguments []string, stop <-chan struct{}) error {
	chosen := options.NewOptions()
	flags := pflag.NewFlagSet("metrics-server", pflag.ContinueOnError)
	for _, set := range chosen.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if problems := chosen.Validate(); len(problems) > 0 {
		return utilerrors.NewAggregate(problems)
	}
	config, err := chosen.ServerConfig()
	if err != nil {
		return err
	}
	return serve(config, stop)
}

// serve is upstream's server.Config.Complete and RunUntil (pkg/server/config.go), which keep to themselves what eager
// needs. A node selector makes no sense for one node.
func serve(config *server.Config, stop <-chan struct{}) error {
	client, err := kubernetes.NewForConfig(config.Rest)
	if err != nil {
		return err
	}
	metadataClient, err := metadata.NewForConfig(config.Rest)
	if err != nil {
		return err
	}
	kubelet, err := resource.NewForConfig(config.Kubelet)
	if err != nil {
		return err
	}
	running := func(options *metav1.ListOptions) { options.FieldSelector = "status.phase=Running" }
	metadatas := metadatainformer.NewFilteredSharedInformerFactory(metadataClient, 0, corev1.NamespaceAll, running)
	pods := metadatas.ForResource(corev1.SchemeGroupVersion.WithResource("pods"))
	nodes := informers.NewSharedInformerFactory(client, 0).Core().V1().Nodes()

	config.Apiserver.EnableMetrics = false // for a handler that has metrics-server's own too
	handler, err := metricsHandler(config)
	if err != nil {
		return err
	}
	apiServer, err := config.Apiserver.Complete(nil).New("metrics-server", genericapiserver.NewEmptyDelegate())
	if err != nil {
		return err
	}
	apiServer.Handler.NonGoRestfulMux.HandleFunc("/metrics", handler)
	points := storage.NewStorage(config.MetricResolution)
	if err := api.Install(points, pods.Lister(), nodes.Lister(), apiServer, nil); err != nil {
		return err
	}
	scrape := scraper.NewScraper(nodes.Lister(), kubelet, config.ScrapeTimeout, nil)
	e := newEager(scrape, points, nodes.Lister(), pods.Lister())
	served := server.NewServer(nodes.Informer(), pods.Informer(), apiServer, points, e, config.MetricResolution)
	if err := served.RegisterProbes(metadatas); err != nil {
		return err
	}
	for _, informer := range []eventSource{nodes.Informer(), pods.Informer()} {
		if err := e.listenTo(informer); err != nil {
			return err
		}
	}
	go e.run(wait.ContextForChannel(stop))
	return served.RunUntil(stop)
}

func metricsHandler(config *server.Config) (http.HandlerFunc, error) {
	registry := metrics.NewKubeRegistry()
	if err := server.RegisterMetrics(registry, config.MetricResolution); err != nil {
		return nil, err
	}
	apimetrics.Register()
	return func(w http.ResponseWriter, r *http.Request) {
		legacyregistry.Handler().ServeHTTP(w, r)
		metrics.HandlerFor(registry, metrics.HandlerOpts{}).ServeHTTP(w, r)
	}, nil
}
