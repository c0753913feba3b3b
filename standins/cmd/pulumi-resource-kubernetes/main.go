// Command pulumi-resource-kubernetes is a small stand-in for Pulumi's Kubernetes provider, for machines that cannot
// download it: it serves every resource type of @pulumi/kubernetes that is one API object, and refuses the rest (Helm,
// Kustomize, YAML components) by name.
package main

import (
	"fmt"
	"os"

	"github.com/go-logr/logr"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/provider"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"k8s.io/klog/v2"

	"gvisor-k3s/standins/internal/engine"
	"gvisor-k3s/standins/internal/kube"
)

func main() {
	// The engine shows a plugin's stderr to the user; client-go's own log lines are no message for them.
	klog.SetLogger(logr.Discard())

	err := engine.ExitWith(os.Args)
	if err == nil {
		err = provider.Main("kubernetes", func(host *provider.HostClient) (pulumirpc.ResourceProviderServer, error) {
			return kube.NewProvider(host), nil
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-resource-kubernetes:", err)
		os.Exit(1)
	}
}
