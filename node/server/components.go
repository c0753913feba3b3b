package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/klog/v2"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	controlleroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// components starts the upstream programs as parts of a process, the server's or the agent's. They are started below
// their command lines' outermost layer, which would catch signals once per program, and can be caught once per process
// only.
type components struct {
	config  *Config
	pki     *pki
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
	// serving gets where controllers and scheduler answer, once their options are taken; nil if that is turned off.
	serving chan *server.SecureServingInfo
	// seeded is whether the data were another cluster's; see isSeeded.
	seeded bool
	// bootstrapped is whether the datastore has what the API server makes in every cluster; see bootstrap.
	bootstrapped bool
}

func newComponents(config *Config, pki *pki, cancel context.CancelCauseFunc) *components {
	return &components{config: config, pki: pki, cancel: cancel, serving: make(chan *server.SecureServingInfo, 2)}
}

// answer waits until controllers and scheduler answer, and tells whether they do.
func (c *components) answer(ctx context.Context) bool {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: time.Second}
	for range cap(c.serving) {
		var serving *server.SecureServingInfo
		select {
		case <-ctx.Done():
			return false
		case serving = <-c.serving:
		}
		if serving == nil {
			continue
		}
		url := fmt.Sprintf("https://%s/healthz", serving.Listener.Addr())
		err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(context.Context) (bool, error) {
			response, err := client.Get(url)
			if err != nil {
				return false, nil
			}
			return response.StatusCode < http.StatusInternalServerError, response.Body.Close()
		})
		if err != nil {
			return false
		}
	}
	return true
}

// start runs a component; its end is the end of its process, because only the whole of that can be started again.
func (c *components) start(ctx context.Context, name string, run func(context.Context) error) {
	c.running.Go(func() {
		err := run(ctx)
		if ctx.Err() == nil {
			c.cancel(fmt.Errorf("%s ended: %w", name, cmp.Or(err, errors.New("it should not"))))
		}
	})
}

const outOfPatience = "some components did not end in time"

// farewell is what watches have to end when the API server does, after all other requests were answered: they never end
// by themselves, and whoever watches asks again.
const farewell = 200 * time.Millisecond

// patience is what the components of a process have to end; what is started again must find their ports free.
const patience = 5 * time.Second

// wait gives the components the time that a supervisor's patience leaves.
func (c *components) wait() {
	ended := make(chan struct{})
	go func() {
		c.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		klog.Warning(outOfPatience)
	}
}

func (c *components) apiServer(ctx context.Context) error {
	config, pki := c.config, c.pki
	options := apiserveroptions.NewServerRunOptions()
	err := parse(options.Flags(), config.APIServerArgs, map[string]string{
		"advertise-address":                  config.AdvertiseAddress,
		"bind-address":                       config.BindAddress,
		"secure-port":                        fmt.Sprint(config.HTTPSListenPort),
		"service-cluster-ip-range":           config.ServiceCIDR,
		"service-node-port-range":            config.ServiceNodePorts,
		"etcd-servers":                       "unix://" + config.datastoreSocket(),
		"storage-media-type":                 "application/vnd.kubernetes.protobuf",
		"anonymous-auth":                     "false",
		"authorization-mode":                 "Node,RBAC",
		"enable-bootstrap-token-auth":        "true", // by which other nodes join
		"enable-admission-plugins":           "NodeRestriction",
		"allow-privileged":                   "true",
		"profiling":                          "false",
		"endpoint-reconciler-type":           "lease",
		"client-ca-file":                     pki.cert(clientCA),
		"tls-cert-file":                      pki.cert("apiserver"),
		"tls-private-key-file":               pki.key("apiserver"),
		"kubelet-certificate-authority":      pki.cert(serverCA),
		"kubelet-client-certificate":         pki.cert("apiserver-kubelet"),
		"kubelet-client-key":                 pki.key("apiserver-kubelet"),
		"kubelet-preferred-address-types":    "InternalIP,Hostname",
		"service-account-issuer":             "https://kubernetes.default.svc." + config.ClusterDomain,
		"service-account-key-file":           pki.key(serviceKey),
		"service-account-signing-key-file":   pki.key(serviceKey),
		"proxy-client-cert-file":             pki.cert("auth-proxy"),
		"proxy-client-key-file":              pki.key("auth-proxy"),
		"requestheader-client-ca-file":       pki.cert(requestHeaderCA),
		"requestheader-allowed-names":        "system:auth-proxy",
		"requestheader-username-headers":     "X-Remote-User",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		// Nothing routes the Services' addresses from this process to a pod here; an aggregated API server is reached by its
		// endpoint.
		"enable-aggregator-routing": "true",
	})
	if err != nil {
		return err
	}
	if err := options.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	completed, err := options.Complete(ctx)
	if err != nil {
		return err
	}
	if problems := completed.Validate(); len(problems) > 0 {
		return utilerrors.NewAggregate(problems)
	}
	return c.serve(ctx, completed)
}

// serve does what the API server's command does (apiserver.Run), without waiting for what is there.
func (c *components) serve(ctx context.Context, options apiserveroptions.CompletedOptions) error {
	config, err := apiserver.NewConfig(options)
	if err != nil {
		return err
	}
	generic := config.KubeAPIs.ControlPlane.Generic
	if c.bootstrapped {
		generic.DisabledPostStartHooks.Insert(bootstrapHooks...)
	}
	leaveDocuments(generic)
	completed, err := config.Complete()
	if err != nil {
		return err
	}
	chain, err := apiserver.CreateServerChain(completed)
	if err != nil {
		return err
	}
	chain.GenericAPIServer.ShutdownTimeout = farewell
	builtIn, ok := chain.GenericAPIServer.NextDelegate().(*server.GenericAPIServer)
	if !ok {
		return fmt.Errorf("the aggregator's delegate is a %T", chain.GenericAPIServer.NextDelegate())
	}
	serveDocuments(builtIn, generic, c.config.APIServerArgs)
	prepared, err := chain.PrepareRun()
	if err != nil {
		return err
	}
	// What is needed of them is made again for each document (GetDefinitions).
	generic.OpenAPIV3Config.Definitions = nil
	return prepared.Run(ctx)
}

func (c *components) controllerManager(ctx context.Context) error {
	config, pki := c.config, c.pki
	options, err := controlleroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return err
	}
	known := controllermanager.KnownControllers()
	disabled := controllermanager.ControllersDisabledByDefault()
	aliases := controllermanager.ControllerAliases()
	flags := options.Flags(known, disabled, aliases)
	options.ParsedFlags = &flags
	err = parse(flags, config.ControllerManagerArgs, map[string]string{
		"kubeconfig":                      pki.kubeconfig("controller-manager"),
		"bind-address":                    "127.0.0.1",
		"leader-elect":                    "false",
		"profiling":                       "false",
		"allocate-node-cidrs":             "true",
		"cluster-cidr":                    config.ClusterCIDR,
		"service-cluster-ip-range":        config.ServiceCIDR,
		"use-service-account-credentials": "true",
		// Each of some forty controllers makes its service account and a token at the first start, one after the other: at
		// the default of 20 requests a second that is five seconds of waiting, on an API server that serves nobody else.
		"kube-api-qps":                     "200",
		"kube-api-burst":                   "400",
		"root-ca-file":                     pki.cert(serverCA),
		"service-account-private-key-file": pki.key(serviceKey),
		// Who serves is believed by one authority, and who calls by the other.
		"cluster-signing-kubelet-serving-cert-file":       pki.cert(serverCA),
		"cluster-signing-kubelet-serving-key-file":        pki.key(serverCA),
		"cluster-signing-kubelet-client-cert-file":        pki.cert(clientCA),
		"cluster-signing-kubelet-client-key-file":         pki.key(clientCA),
		"cluster-signing-kube-apiserver-client-cert-file": pki.cert(clientCA),
		"cluster-signing-kube-apiserver-client-key-file":  pki.key(clientCA),
		"cluster-signing-legacy-unknown-cert-file":        pki.cert(clientCA),
		"cluster-signing-legacy-unknown-key-file":         pki.key(clientCA),
		"tls-cert-file":        pki.cert(loopback),
		"tls-private-key-file": pki.key(loopback),
	})
	if err != nil {
		return err
	}
	if err := options.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	complete, err := options.Config(ctx, known, disabled, aliases)
	if err != nil {
		return err
	}
	c.serving <- complete.SecureServing
	return controllermanager.Run(ctx, complete.Complete())
}

func (c *components) scheduler(ctx context.Context) error {
	options := scheduleroptions.NewOptions()
	err := parse(*options.Flags, c.config.SchedulerArgs, map[string]string{
		"kubeconfig":           c.pki.kubeconfig("scheduler"),
		"bind-address":         "127.0.0.1",
		"leader-elect":         "false",
		"profiling":            "false",
		"tls-cert-file":        c.pki.cert(loopback),
		"tls-private-key-file": c.pki.key(loopback),
	})
	if err != nil {
		return err
	}
	if err := options.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	complete, instance, err := scheduler.Setup(ctx, options)
	if err != nil {
		return err
	}
	c.serving <- complete.SecureServing
	return scheduler.Run(ctx, complete, instance)
}

// parse sets a program's flags: ours first, then the user's, which win.
func parse(sets cliflag.NamedFlagSets, user []string, ours map[string]string) error {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		flags.AddFlagSet(set)
	}
	return flags.Parse(flagList(user, ours))
}

func flagList(user []string, ours map[string]string) []string {
	var list []string
	for _, name := range sortedKeys(ours) {
		list = append(list, "--"+name+"="+ours[name])
	}
	for _, arg := range user {
		list = append(list, "--"+arg)
	}
	return list
}

// adminConfig is how this process calls its own API server.
func adminConfig(c *Config) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", pki{config: c}.kubeconfig(admin))
	if err == nil {
		config.QPS, config.Burst = 50, 100
	}
	return config, err
}
