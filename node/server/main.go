// Command gvisor-k3s-node is a Kubernetes server and node in one program, made of the upstream modules: kube-apiserver,
// kube-controller-manager, kube-scheduler, kubelet, and kine on SQLite as their datastore. It reads k3s's config file,
// of whose keys it knows those that this project renders (see Config), and it is not k3s.
//
//	gvisor-k3s-node server --config FILE        run until SIGTERM: the datastore and the API server, and in a process
//	                                            beside them (agent, which nobody else starts) the rest; see agent.go
//	gvisor-k3s-node check --config FILE         check the config file only
//	gvisor-k3s-node ready --config FILE [--stage api|node] [--wait SECONDS]
//	                                            print the state as JSON; exit code 0 if it is ready
//	gvisor-k3s-node join --config FILE [--agent K3S]
//	                                            run a kubelet that joins the config's server, until SIGTERM, or k3s'
//	                                            agent in its place; see join.go
//	gvisor-k3s-node invite --config FILE --node NAME --address IP
//	                                            let a node join, and print as JSON what it needs to
//	gvisor-k3s-node forget --config FILE --node NAME
//	                                            take a node away, with its token
//	gvisor-k3s-node prune [--imported] [--own PREFIX] [--keep NAME]... [--endpoint SOCKET]
//	                                            remove images that no container uses, and print them as JSON
//	gvisor-k3s-node beside --config FILE [--claims]
//	                                            run what another server lacks of this one, until SIGTERM; with --claims
//	                                            claims are bound to folders of the node
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
	"sync"
	"syscall"

	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

const usage = "usage: gvisor-k3s-node server|check|ready|beside|join --config FILE | " +
	"invite|forget ... | prune ... | kubectl ... | version"

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
	case "prune":
		return pruneCommand(context.Background(), args[1:], os.Stdout)
	case "invite", "forget":
		return membersCommand(context.Background(), args, os.Stdout)
	case "version":
		return json.NewEncoder(os.Stdout).Encode(map[string]string{
			"kubernetes": version.Get().GitVersion,
			"kine":       moduleVersion("github.com/k3s-io/kine"),
			"go":         runtime.Version(),
		})
	case "server", agentCommand, "check", "ready", "beside", joinCommand:
	default:
		return fmt.Errorf("unknown command %q; %s", args[0], usage)
	}
	stage := flags.String("stage", "node", "what to be ready for: api, agent or node")
	wait := flags.Int("wait", 0, "seconds to wait for it")
	official := flags.String("agent", "", "join: the k3s whose agent is the kubelet")
	claims := flags.Bool("claims", false, "beside: bind claims to folders of the node")
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
	// One process holds several components, and each of them sets up logging; the first one's settings stand.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	// Memory is what a sandbox is short of: less of it than with Go's default of 100, for more CPU time at the start
	// (bench/README.md).
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(40)
	}
	if args[0] == agentCommand {
		return runAgent(ctx, config, os.Stdin)
	}
	if args[0] == joinCommand {
		return runJoin(ctx, config, *file, *official)
	}
	if args[0] == "beside" {
		return runBeside(ctx, config, *claims)
	}
	return runServer(ctx, config, *file)
}

func runServer(ctx context.Context, config *Config, file string) error {
	if err := awaitPorts(ctx, config); err != nil {
		return err
	}
	seeded, err := isSeeded(config)
	if err == nil && seeded {
		err = forgetKeys(config)
	}
	if err != nil {
		return err
	}
	pki, err := preparePKI(config)
	if err != nil {
		return err
	}
	haveClientsLook(pki.life)
	// Each ends after those that need it: the agent, the API server, and the datastore, without which the API server
	// can't end, and would take all the patience there is.
	datastore, stopDatastore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDatastore()
	api, stopAPI := context.WithCancel(datastore)
	defer stopAPI()
	ctx, cancel := context.WithCancelCause(ctx)
	components := newComponents(config, pki, cancel)
	components.seeded = seeded
	stages := newStages(config)
	agent := newAgent(file, config, stages)
	var running sync.WaitGroup
	running.Go(func() { agent.run(ctx) })
	err = serveAPI(ctx, datastore, api, components, agent)
	cancel(err)
	running.Wait()
	stopAPI()
	components.wait()
	return err
}

// serveAPI has the API served until the first context's end, and tells why it ended unless somebody asked for it.
func serveAPI(ctx, datastore, api context.Context, components *components, agent *agent) error {
	config, stages := components.config, agent.stages
	backend, err := startDatastore(datastore, config)
	if err == nil && components.seeded {
		err = reidentify(datastore, config, backend)
	}
	if err == nil {
		components.bootstrapped, err = bootstrap(datastore, config, backend)
	}
	if err != nil {
		return fmt.Errorf("datastore: %w", err)
	}
	stages.reached("datastore")
	components.start(api, "certificates", components.certificates)
	components.start(api, "kube-apiserver", components.apiServer)
	if err := waitForAPI(ctx, config); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	stages.reached("apiReady")
	close(agent.ready)
	if components.bootstrapped {
		components.start(api, "the objects of every cluster", components.reconcile)
	} else if err := noteBootstrap(datastore, backend); err != nil {
		return fmt.Errorf("datastore: %w", err)
	}
	components.start(api, "API server's own certificate", components.apiServerAgain)
	go stages.watch(ctx, config, stageAPI)
	<-ctx.Done()
	return endOf(ctx)
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
