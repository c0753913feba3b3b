// Command gvisor-k3s-node is a Kubernetes server and node in one process, made of the upstream modules: kube-apiserver,
// kube-controller-manager, kube-scheduler, kubelet, and kine on SQLite as their datastore. It reads k3s's config file,
// of whose keys it knows those that this project renders (see Config), and it is not k3s.
//
//	gvisor-k3s-node server --config FILE        run until SIGTERM; the end of any component ends the process
//	gvisor-k3s-node check --config FILE         check the config file only
//	gvisor-k3s-node ready --config FILE [--stage api|node] [--wait SECONDS]
//	                                            print the state as JSON; exit code 0 if it is ready
//	gvisor-k3s-node kubectl ...                 kubectl, with the admin's kubeconfig unless KUBECONFIG says otherwise
//	gvisor-k3s-node version                     print the versions as JSON
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"

	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

const usage = "usage: gvisor-k3s-node server|check|ready --config FILE | kubectl ... | version"

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		klog.Flush()
		fmt.Fprintln(os.Stderr, "gvisor-k3s-node:", err)
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	file := flags.String("config", "/etc/rancher/k3s/config.yaml", "the config file")
	switch args[0] {
	case "kubectl":
		return runKubectl(args)
	case "version":
		return json.NewEncoder(os.Stdout).Encode(map[string]string{
			"kubernetes": version.Get().GitVersion,
			"kine":       moduleVersion("github.com/k3s-io/kine"),
			"go":         runtime.Version(),
		})
	case "server", "check", "ready":
	default:
		return fmt.Errorf("unknown command %q; %s", args[0], usage)
	}
	stage := flags.String("stage", "node", "what to be ready for: api or node")
	wait := flags.Int("wait", 0, "seconds to wait for it")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	config, err := ReadConfig(*file)
	if err != nil || args[0] == "check" {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if args[0] == "ready" {
		return reportReadiness(ctx, config, *stage, *wait)
	}
	return runServer(ctx, config)
}

func runServer(ctx context.Context, config *Config) error {
	// One process holds several components, and each of them sets up logging; the first one's settings stand.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	// About a tenth less memory of the whole node than with Go's default of 100, for half a second of CPU more at the
	// start (bench/README.md).
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if err := checkPorts(config); err != nil {
		return err
	}
	pki, err := preparePKI(config)
	if err != nil {
		return err
	}
	haveClientsLook(pki.life)
	stages := newStages(config)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	components := &components{config: config, pki: pki, cancel: cancel}

	// It ends after the rest: the API server can't end without it, and would take all the patience there is.
	datastore, stopDatastore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDatastore()
	if err := startDatastore(datastore, config); err != nil {
		return fmt.Errorf("datastore: %w", err)
	}
	stages.reached("datastore")
	components.start(ctx, "certificates", components.certificates)
	components.start(ctx, "kube-apiserver", components.apiServer)
	if err := waitForAPI(ctx, config); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	stages.reached("apiReady")
	components.start(ctx, "API server's own certificate", components.apiServerAgain)
	components.start(ctx, "kube-controller-manager", components.controllerManager)
	components.start(ctx, "kube-scheduler", components.scheduler)
	if !config.DisableAgent {
		components.start(ctx, "kubelet", components.kubelet)
		components.start(ctx, "network policies", components.tellOfPolicies)
		components.start(ctx, "load balancers", components.loadBalancers)
		components.start(ctx, "the node's labels", components.labelNode)
		if !slices.Contains(config.Disable, localStorage) {
			if err := writeLocalStorage(config); err != nil {
				return err
			}
			components.start(ctx, localStorage, components.localStorage)
		}
	}
	components.start(ctx, "manifests", func(ctx context.Context) error { return deployManifests(ctx, config) })
	go stages.watch(ctx, config)

	<-ctx.Done()
	components.wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func runKubectl(args []string) error {
	if os.Getenv("KUBECONFIG") == "" {
		os.Setenv("KUBECONFIG", defaultKubeconfig)
	}
	os.Args = args // kubectl reads its arguments from there, its own name first
	return kubectl.NewDefaultKubectlCommand().Execute()
}

func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == path {
				return module.Version
			}
		}
	}
	return "unknown"
}
