// Command pulumi-resource-command is a small stand-in for Pulumi's command provider, for machines that cannot
// download it: it serves command:local:Command and command:local:run, and refuses the rest by name.
package main

import (
	"fmt"
	"os"

	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/provider"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"

	"gvisor-k3s/standins/internal/command"
	"gvisor-k3s/standins/internal/engine"
)

func main() {
	err := engine.ExitWith(os.Args)
	if err == nil {
		err = provider.Main("command", func(host *provider.HostClient) (pulumirpc.ResourceProviderServer, error) {
			return command.NewProvider(host), nil
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-resource-command:", err)
		os.Exit(1)
	}
}
