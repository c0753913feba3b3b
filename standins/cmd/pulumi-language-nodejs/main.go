// Command pulumi-language-nodejs is a small stand-in for Pulumi's Node.js language host, for machines that cannot
// download it: it runs programs, finds the plugins they need and installs their packages. It generates no code.
//
// The engine starts it with its own address as the only argument and reads the port to talk to from the first line
// of standard output; what a program writes follows.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/pulumi/pulumi/sdk/v3/go/common/util/logging"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc"

	"gvisor-k3s/standins/internal/engine"
	"gvisor-k3s/standins/internal/nodehost"
)

func main() {
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.String("tracing", "", "accepted for the engine's sake; this host does not trace")
	flag.Parse()
	if *showVersion {
		fmt.Println(nodehost.Version())
		return
	}
	logging.InitLogging(false, 0, false)
	if err := serve(flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-language-nodejs:", err)
		os.Exit(1)
	}
}

// serve answers the engine until a signal comes or the engine is gone. Programs that still run then are stopped.
func serve(engineAddress string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if engineAddress != "" {
		if err := engine.Watch(ctx, engineAddress, cancel); err != nil {
			return err
		}
	}
	stop := make(chan bool)
	context.AfterFunc(ctx, func() { close(stop) })

	handle, err := rpcutil.ServeWithOptions(rpcutil.ServeOptions{
		Cancel: stop,
		Init: func(server *grpc.Server) error {
			pulumirpc.RegisterLanguageRuntimeServer(server, nodehost.New(ctx, engineAddress))
			return nil
		},
	})
	if err != nil {
		return fmt.Errorf("serving the language runtime: %w", err)
	}
	fmt.Println(handle.Port)
	return <-handle.Done
}
