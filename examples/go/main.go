// Program languages brings a control plane up by the SDK for Go, prints what it is told of it, and takes it down.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"example.com/gvisor-k3s/sdk/go/gvisork3s"
	"github.com/pulumi/pulumi/sdk/v3/go/auto"
	"github.com/pulumi/pulumi/sdk/v3/go/auto/optup"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi"
)

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func program(name string) pulumi.RunFunc {
	return func(ctx *pulumi.Context) error {
		argument := pulumi.ToSecret(pulumi.String("max-requests-inflight=300")).(pulumi.StringOutput)
		cluster, err := gvisork3s.NewCluster(ctx, name, &gvisork3s.ClusterArgs{
			Mode:    pulumi.String("control-plane"),
			Sandbox: &gvisork3s.SandboxOptionsArgs{Memory: pulumi.String("1Gi")},
			Node:    &gvisork3s.NodeOptionsArgs{ApiServerArgs: pulumi.StringArray{argument}},
		})
		if err != nil {
			return err
		}
		ctx.Export("address", cluster.Address)
		ctx.Export("kubeconfig", cluster.Kubeconfig)
		return nil
	}
}

func run(ctx context.Context, name string) (err error) {
	stack, err := auto.UpsertStackInlineSource(ctx, "test", "languages", program(name))
	if err != nil {
		return err
	}
	defer func() {
		if _, failed := stack.Destroy(ctx); err == nil {
			err = failed
		}
	}()
	result, err := stack.Up(ctx, optup.ErrorProgressStreams(os.Stderr))
	if err != nil {
		return err
	}
	kubeconfig := result.Outputs["kubeconfig"]
	text, _ := kubeconfig.Value.(string)
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"address": result.Outputs["address"].Value, "secret": kubeconfig.Secret, "kubeconfig": text,
	})
}
