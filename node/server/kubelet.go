package main

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"os"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// kubeletIdentity is who a kubelet is, and whom it believes.
type kubeletIdentity struct {
	kubeconfig string
	clientCA   string // who calls it
	// What it serves with; without them it asks the server for a certificate, and renews it.
	servingCert, servingKey string
	provider                string
	flags                   map[string]string // of the command, beside those of every kubelet
}

func (c *components) kubelet(ctx context.Context) error {
	return runKubelet(ctx, c.config, c.pki.kubelet())
}

// kubelet is who the server's own kubelet is.
func (p pki) kubelet() kubeletIdentity {
	return kubeletIdentity{
		kubeconfig:  p.kubeconfig("kubelet"),
		clientCA:    p.cert(clientCA),
		servingCert: p.cert("kubelet-serving"),
		servingKey:  p.key("kubelet-serving"),
		provider:    providerID(p.config.NodeName),
	}
}

// runKubelet runs the kubelet by its own command, which is the one place where this process's signals are caught a
// second time. Settings lie in files: ours in 00-gvisor-k3s.conf, and a user's drop-ins in the same folder after it.
func runKubelet(ctx context.Context, c *Config, identity kubeletIdentity) error {
	dropIns := c.path("agent", "etc", "kubelet.conf.d")
	for _, folder := range []string{dropIns, c.path("agent", "pod-manifests")} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
	}
	content, err := json.MarshalIndent(kubeletSettings(c, identity), "", "  ")
	if err != nil {
		return err
	}
	if err := writePrivate(dropIns+"/00-gvisor-k3s.conf", content); err != nil {
		return err
	}
	flags := map[string]string{
		"config-dir":        dropIns,
		"kubeconfig":        identity.kubeconfig,
		"hostname-override": c.NodeName,
		"node-ip":           c.NodeIP,
		"provider-id":       identity.provider,
		// Without a main config file the kubelet begins with the defaults of its flags, and a zero is left out of a drop-in:
		// it would answer anybody on 10255.
		"read-only-port": "0",
	}
	maps.Copy(flags, identity.flags)
	own, _ := labelsOf(c)
	flags["node-labels"] = labelList(own)
	if len(c.NodeTaints) > 0 {
		flags["register-with-taints"] = strings.Join(c.NodeTaints, ",")
	}
	if err := awaitRuntime(ctx, c.RuntimeEndpoint); err != nil {
		return err
	}
	readGVisorCgroups("/sys/fs/cgroup")
	if !hasPodTunables() { // which is gVisor
		if err := unmountLazily(c.path("agent", "bin")); err != nil {
			return err
		}
	}
	if err := lookEagerly(); err != nil {
		return err
	}
	command := kubelet.NewKubeletCommand(ctx)
	command.SetArgs(flagList(c.KubeletArgs, flags))
	command.SilenceErrors = true
	return command.ExecuteContext(ctx)
}

// awaitRuntime waits until containerd listens: the kubelet would end, and with it controllers and scheduler, which take
// most of a start and need none.
func awaitRuntime(ctx context.Context, endpoint string) error {
	told := false
	return wait.PollUntilContextCancel(ctx, pollEvery, true, func(context.Context) (bool, error) {
		connection, err := net.DialTimeout("unix", strings.TrimPrefix(endpoint, "unix://"), answer)
		if err == nil {
			return true, connection.Close()
		}
		if !told {
			klog.InfoS("the kubelet waits for containerd", "reason", err)
			told = true
		}
		return false, nil
	})
}

// providerID tells the server's own node from others that somebody has made.
func providerID(node string) string { return "gvisor-k3s://" + node }

// joinedID tells nodes that joined as this project has them join.
func joinedID(node string) string { return "gvisor-k3s-agent://" + node }

func kubeletSettings(c *Config, identity kubeletIdentity) *kubeletconfig.KubeletConfiguration {
	yes, no := true, false
	asks := identity.servingCert == ""
	settings := &kubeletconfig.KubeletConfiguration{
		TypeMeta:      metav1.TypeMeta{APIVersion: kubeletconfig.SchemeGroupVersion.String(), Kind: "KubeletConfiguration"},
		StaticPodPath: c.path("agent", "pod-manifests"),
		Authentication: kubeletconfig.KubeletAuthentication{
			Anonymous: kubeletconfig.KubeletAnonymousAuthentication{Enabled: &no},
			Webhook:   kubeletconfig.KubeletWebhookAuthentication{Enabled: &yes},
			X509:      kubeletconfig.KubeletX509Authentication{ClientCAFile: identity.clientCA},
		},
		Authorization:            kubeletconfig.KubeletAuthorization{Mode: kubeletconfig.KubeletAuthorizationModeWebhook},
		TLSCertFile:              identity.servingCert,
		TLSPrivateKeyFile:        identity.servingKey,
		ServerTLSBootstrap:       asks,
		RotateCertificates:       asks,
		ContainerRuntimeEndpoint: c.RuntimeEndpoint,
		ClusterDNS:               []string{c.ClusterDNS},
		ClusterDomain:            c.ClusterDomain,
		ContainerLogMaxSize:      "10Mi",
		CgroupDriver:             "cgroupfs",
		// gVisor's cgroups are version 1, account, and do not enforce. A pod has a cgroup nevertheless: its own limits and
		// those of a resize are written there (without one the kubelet of 1.37 panics at a resize), and sandbox-init's limits
		// are kept by what is written.
		FailCgroupV1:           &no,
		CgroupsPerQOS:          &yes,
		EnforceNodeAllocatable: []string{"none"}, // an empty list is left out of the file and means the default
		// The node has ephemeral storage to ask for, and a pod that is over its own limit of it is evicted. The root file
		// system's size is the host's, so what it says of free space is no ground to evict pods. When images are deleted
		// that nothing uses is said by the config file (kubelet-arg).
		LocalStorageCapacityIsolation: &yes,
		// Before sandbox-init's limits kill a container for the machine's sake, which they do at a twelfth.
		EvictionHard:           map[string]string{"memory.available": "12%"},
		FailSwapOn:             &no,
		MakeIPTablesUtilChains: &no,
		EnableServer:           &yes,
	}
	if c.ResolvConf != "" {
		settings.ResolverConfig = &c.ResolvConf
	}
	return settings
}
