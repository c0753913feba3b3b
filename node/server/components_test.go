package main

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/compatibility"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	kubeletinternal "k8s.io/kubernetes/pkg/kubelet/apis/config"
	kubeletscheme "k8s.io/kubernetes/pkg/kubelet/apis/config/scheme"
	kubeletvalidation "k8s.io/kubernetes/pkg/kubelet/apis/config/validation"
)

func TestFlags(t *testing.T) {
	ours := map[string]string{"port": "1", "name": "ours"}
	want := []string{"--name=ours", "--port=1", "--name=user", "--v=a=b"}
	if got := flagList([]string{"name=user", "v=a=b"}, ours); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := flagList(nil, nil); len(got) != 0 {
		t.Errorf("flags from nothing: %q", got)
	}
	var sets cliflag.NamedFlagSets
	port, name := sets.FlagSet("one").Int("port", 0, ""), sets.FlagSet("two").String("name", "", "")
	if err := parse(sets, []string{"name=user"}, ours); err != nil || *port != 1 || *name != "user" {
		t.Errorf("port %d, name %s, %v; the user's arguments should win", *port, *name, err)
	}
	var missing *pflag.NotExistError
	if err := parse(sets, []string{"nmae=x"}, ours); !errors.As(err, &missing) || missing.GetSpecifiedName() != "nmae" {
		t.Errorf("a misspelt argument: %v", err)
	}
}

// The end of any part must end the whole, with its name, unless the whole is ending.
func TestComponentsEndTogether(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	c := &components{cancel: cancel}
	c.start(ctx, "other", func(ctx context.Context) error {
		<-ctx.Done()
		return errors.New("late")
	})
	c.start(ctx, "part", func(context.Context) error { return nil })
	c.wait()
	if cause := context.Cause(ctx); cause == nil || cause.Error() != "part ended: it should not" {
		t.Errorf("got %v", cause)
	}
}

// The kubelet itself reads and judges what is written for it.
func TestKubeletSettings(t *testing.T) {
	config := configFor(
		t,
		"resolv-conf: /etc/resolv.test\ncluster-domain: example.test\ncontainer-runtime-endpoint: unix:///run/c.sock\n",
	)
	read := func() *kubeletinternal.KubeletConfiguration {
		t.Helper()
		content, err := json.Marshal(kubeletSettings(config, pki{config: config}.kubelet()))
		if err != nil {
			t.Fatal(err)
		}
		_, codecs, err := kubeletscheme.NewSchemeAndCodecs(serializer.EnableStrict)
		if err != nil {
			t.Fatal(err)
		}
		settings := &kubeletinternal.KubeletConfiguration{}
		if err := runtime.DecodeInto(codecs.UniversalDecoder(), content, settings); err != nil {
			t.Fatal(err)
		}
		registry := scheduleroptions.NewOptions().ComponentGlobalsRegistry
		gates := registry.FeatureGateFor(compatibility.DefaultKubeComponent)
		if err := kubeletvalidation.ValidateKubeletConfiguration(settings, gates); err != nil {
			t.Error(err)
		}
		return settings
	}
	s := read()
	for what, pair := range map[string][2]any{
		"runtime":            {s.ContainerRuntimeEndpoint, "unix:///run/c.sock"},
		"cluster domain":     {s.ClusterDomain, "example.test"},
		"resolv.conf":        {s.ResolverConfig, "/etc/resolv.test"},
		"static pods":        {s.StaticPodPath, config.DataDir + "/agent/pod-manifests"},
		"client CA":          {s.Authentication.X509.ClientCAFile, config.DataDir + "/server/tls/client-ca.crt"},
		"certificate":        {s.TLSCertFile, config.DataDir + "/server/tls/kubelet-serving.crt"},
		"key":                {s.TLSPrivateKeyFile, config.DataDir + "/server/tls/kubelet-serving.key"},
		"anonymous access":   {s.Authentication.Anonymous.Enabled, false},
		"authorization":      {string(s.Authorization.Mode), "Webhook"},
		"cgroup driver":      {s.CgroupDriver, "cgroupfs"},
		"cgroup v1 refused":  {s.FailCgroupV1, false},
		"cgroups per QoS":    {s.CgroupsPerQOS, true},
		"swap refused":       {s.FailSwapOn, false},
		"local storage":      {s.LocalStorageCapacityIsolation, true},
		"iptables chains":    {s.MakeIPTablesUtilChains, false},
		"disk evicts no pod": {len(s.EvictionHard), 1},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %v, want %v", what, pair[0], pair[1])
		}
	}
	if !slices.Equal(s.ClusterDNS, []string{"10.43.0.10"}) || !slices.Equal(s.EnforceNodeAllocatable, []string{"none"}) ||
		s.EvictionHard["memory.available"] == "" {
		t.Errorf("got %v, %v, %v", s.ClusterDNS, s.EnforceNodeAllocatable, s.EvictionHard)
	}
	config.ResolvConf = ""
	if s := read(); s.ResolverConfig != "/etc/resolv.conf" {
		t.Errorf("without resolv-conf the kubelet reads %q, not its default", s.ResolverConfig)
	}
}
