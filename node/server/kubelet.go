package main

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// kubelet runs the kubelet by its own command, which is the one place where this process's signals are caught a second
// time. Settings lie in files: ours in 00-gvisor-k3s.conf, and a user's drop-ins in the same folder after it.
func (c *components) kubelet(ctx context.Context) error {
	dropIns := c.config.path("agent", "etc", "kubelet.conf.d")
	for _, folder := range []string{dropIns, c.config.path("agent", "pod-manifests")} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
	}
	content, err := json.MarshalIndent(c.kubeletSettings(), "", "  ")
	if err != nil {
		return err
	}
	if err := writePrivate(dropIns+"/00-gvisor-k3s.conf", content); err != nil {
		return err
	}
	flags := map[string]string{
		"config-dir":        dropIns,
		"kubeconfig":        c.pki.kubeconfig("kubelet"),
		"hostname-override": c.config.NodeName,
		"node-ip":           c.config.NodeIP,
		// Without a main config file the kubelet begins with the defaults of its flags, and a zero is left out of a drop-in:
		// it would answer anybody on 10255.
		"read-only-port": "0",
	}
	flags["provider-id"] = providerID(c.config.NodeName)
	own, _ := labelsOf(c.config)
	flags["node-labels"] = labelList(own)
	if len(c.config.NodeTaints) > 0 {
		flags["register-with-taints"] = strings.Join(c.config.NodeTaints, ",")
	}
	readGVisorCgroups("/sys/fs/cgroup")
	if !hasPodTunables() { // which is gVisor
		if err := unmountLazily(c.config.path("agent", "bin")); err != nil {
			return err
		}
	}
	if err := lookEagerly(); err != nil {
		return err
	}
	command := kubelet.NewKubeletCommand(ctx)
	command.SetArgs(flagList(c.config.KubeletArgs, flags))
	command.SilenceErrors = true
	return command.ExecuteContext(ctx)
}

// providerID tells the server's own node from others that somebody has made.
func providerID(node string) string { return "gvisor-k3s://" + node }

func (c *components) kubeletSettings() *kubeletconfig.KubeletConfiguration {
	yes, no := true, false
	settings := &kubeletconfig.KubeletConfiguration{
		TypeMeta:      metav1.TypeMeta{APIVersion: kubeletconfig.SchemeGroupVersion.String(), Kind: "KubeletConfiguration"},
		StaticPodPath: c.config.path("agent", "pod-manifests"),
		Authentication: kubeletconfig.KubeletAuthentication{
			Anonymous: kubeletconfig.KubeletAnonymousAuthentication{Enabled: &no},
			Webhook:   kubeletconfig.KubeletWebhookAuthentication{Enabled: &yes},
			X509:      kubeletconfig.KubeletX509Authentication{ClientCAFile: c.pki.cert(clientCA)},
		},
		Authorization:            kubeletconfig.KubeletAuthorization{Mode: kubeletconfig.KubeletAuthorizationModeWebhook},
		TLSCertFile:              c.pki.cert("kubelet-serving"),
		TLSPrivateKeyFile:        c.pki.key("kubelet-serving"),
		ContainerRuntimeEndpoint: c.config.RuntimeEndpoint,
		ClusterDNS:               []string{c.config.ClusterDNS},
		ClusterDomain:            c.config.ClusterDomain,
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
		// The node is alone: whether it lives is known from its process, so its heartbeats can be rare.
		NodeStatusUpdateFrequency: metav1.Duration{Duration: 10 * time.Second},
		EnableServer:              &yes,
	}
	if c.config.ResolvConf != "" {
		settings.ResolverConfig = &c.config.ResolvConf
	}
	return settings
}
