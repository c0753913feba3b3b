package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/yaml"
)

const defaultKubeconfig = "/etc/rancher/k3s/k3s.yaml"

// Config holds the keys of k3s's config file that this server knows, by k3s's own names (docs.k3s.io/cli/server).
type Config struct {
	DataDir             string `json:"data-dir"`              // default /var/lib/rancher/k3s
	NodeName            string `json:"node-name"`             // default: the host's name
	NodeIP              string `json:"node-ip"`               // the address the node is known by; required
	BindAddress         string `json:"bind-address"`          // where the API server listens; default: everywhere
	AdvertiseAddress    string `json:"advertise-address"`     // what the API server tells pods; default: node-ip
	HTTPSListenPort     int    `json:"https-listen-port"`     // default 6443
	WriteKubeconfig     string `json:"write-kubeconfig"`      // default /etc/rancher/k3s/k3s.yaml
	WriteKubeconfigMode string `json:"write-kubeconfig-mode"` // only 0600, which is the default
	ClusterCIDR         string `json:"cluster-cidr"`          // the pods' addresses; default 10.42.0.0/16
	ServiceCIDR         string `json:"service-cidr"`          // default 10.43.0.0/16
	ServiceNodePorts    string `json:"service-node-port-range"`
	ClusterDNS          string `json:"cluster-dns"`    // in service-cidr; default: its tenth address
	ClusterDomain       string `json:"cluster-domain"` // default cluster.local
	RuntimeEndpoint     string `json:"container-runtime-endpoint"`
	ResolvConf          string `json:"resolv-conf"`
	LocalStoragePath    string `json:"default-local-storage-path"` // default storage in data-dir
	FlannelBackend      string `json:"flannel-backend"`            // only none
	Server              string `json:"server"`                     // join: the server's address, https://IP:PORT
	TokenFile           string `json:"token-file"`                 // join: where the token is

	TLSSAN                []string `json:"tls-san"`
	KubeletArgs           []string `json:"kubelet-arg"`
	APIServerArgs         []string `json:"kube-apiserver-arg"`
	ControllerManagerArgs []string `json:"kube-controller-manager-arg"`
	SchedulerArgs         []string `json:"kube-scheduler-arg"`
	NodeLabels            []string `json:"node-label"`
	NodeTaints            []string `json:"node-taint"`
	Disable               []string `json:"disable"` // manifests by their names without extension

	DisableAgent           bool `json:"disable-agent"`            // no kubelet: only the control plane
	DisableKubeProxy       bool `json:"disable-kube-proxy"`       // only true
	DisableNetworkPolicy   bool `json:"disable-network-policy"`   // only true
	DisableHelmController  bool `json:"disable-helm-controller"`  // only true
	DisableCloudController bool `json:"disable-cloud-controller"` // only true
	Debug                  bool `json:"debug"`
}

// ReadConfig reads and checks a config file; its error lists everything that is wrong.
func ReadConfig(file string) (*Config, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	config, err := ParseConfig(content)
	if err != nil {
		return nil, fmt.Errorf("%s:\n%w", file, err)
	}
	return config, nil
}

// ParseConfig fills in the defaults and checks every key.
func ParseConfig(content []byte) (*Config, error) {
	var given map[string]json.RawMessage
	if err := yaml.Unmarshal(content, &given); err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	config := &Config{
		DataDir:             "/var/lib/rancher/k3s",
		NodeName:            strings.ToLower(host),
		HTTPSListenPort:     6443,
		WriteKubeconfig:     defaultKubeconfig,
		WriteKubeconfigMode: "0600",
		ClusterCIDR:         "10.42.0.0/16",
		ServiceCIDR:         "10.43.0.0/16",
		ServiceNodePorts:    "30000-32767",
		ClusterDomain:       "cluster.local",
		FlannelBackend:      "none",
	}
	problems := config.take(given)
	if len(problems) == 0 {
		problems = config.complete(given)
	}
	return config, errors.Join(problems...)
}

// take copies the given values into the fields that carry their keys.
func (c *Config) take(given map[string]json.RawMessage) (problems []error) {
	fields := map[string]any{}
	value := reflect.ValueOf(c).Elem()
	for i := range value.NumField() {
		fields[value.Type().Field(i).Tag.Get("json")] = value.Field(i).Addr().Interface()
	}
	for _, key := range sortedKeys(given) {
		field, known := fields[key]
		if !known {
			allowed := strings.Join(sortedKeys(fields), ", ")
			problems = append(problems, fmt.Errorf("unknown key %q; allowed keys are %s", key, allowed))
			continue
		}
		if err := json.Unmarshal(given[key], field); err != nil {
			kind := reflect.TypeOf(field).Elem()
			problems = append(problems, fmt.Errorf("%s = %s: a value of type %s is allowed", key, given[key], kind))
		}
	}
	return problems
}

// complete fills in the defaults that depend on other keys and checks the keys against each other.
func (c *Config) complete(given map[string]json.RawMessage) (problems []error) {
	refuse := func(key string, value any, allowed string) {
		problems = append(problems, fmt.Errorf("%s = %v: %s", key, value, allowed))
	}
	for key, off := range map[string]bool{
		"disable-kube-proxy":       c.DisableKubeProxy,
		"disable-network-policy":   c.DisableNetworkPolicy,
		"disable-helm-controller":  c.DisableHelmController,
		"disable-cloud-controller": c.DisableCloudController,
	} {
		if _, isGiven := given[key]; isGiven && !off {
			refuse(key, off, "only true is allowed: this server has no such part")
		}
	}
	if c.FlannelBackend != "none" {
		refuse("flannel-backend", c.FlannelBackend, "only none is allowed: this server has no flannel")
	}
	if c.WriteKubeconfigMode != "0600" {
		refuse("write-kubeconfig-mode", c.WriteKubeconfigMode, "only 0600 is allowed: the file holds the admin's key")
	}
	if c.HTTPSListenPort < 1 || c.HTTPSListenPort > 65535 {
		refuse("https-listen-port", c.HTTPSListenPort, "1 to 65535 is allowed")
	}
	if c.AdvertiseAddress == "" {
		c.AdvertiseAddress = c.NodeIP
	}
	if c.BindAddress == "" {
		c.BindAddress = "0.0.0.0"
	}
	for key, value := range map[string]string{
		"node-ip":           c.NodeIP,
		"bind-address":      c.BindAddress,
		"advertise-address": c.AdvertiseAddress,
	} {
		if address, err := netip.ParseAddr(value); err != nil || !address.Is4() {
			refuse(key, value, "an IPv4 address is needed")
		} else if key == "node-ip" && address.IsLoopback() {
			refuse(key, value, "an address other than loopback is needed: the kubelet refuses it")
		}
	}
	pods, podsErr := netip.ParsePrefix(c.ClusterCIDR)
	services, servicesErr := netip.ParsePrefix(c.ServiceCIDR)
	if podsErr != nil {
		refuse("cluster-cidr", c.ClusterCIDR, "a network such as 10.42.0.0/16 is allowed")
	}
	if servicesErr != nil {
		refuse("service-cidr", c.ServiceCIDR, "a network such as 10.43.0.0/16 is allowed")
	}
	if podsErr == nil && servicesErr == nil && pods.Overlaps(services) {
		refuse("service-cidr", c.ServiceCIDR, "it overlaps cluster-cidr "+c.ClusterCIDR)
	}
	if servicesErr == nil {
		if c.ClusterDNS == "" {
			c.ClusterDNS = nthAddress(services, 10)
		}
		if dns, err := netip.ParseAddr(c.ClusterDNS); err != nil || !services.Contains(dns) {
			refuse("cluster-dns", c.ClusterDNS, "an address in service-cidr "+c.ServiceCIDR+" is allowed")
		}
	}
	if filepath.IsAbs(c.RuntimeEndpoint) { // as in k3s, whose kubelet and cAdvisor want it in two forms
		c.RuntimeEndpoint = "unix://" + c.RuntimeEndpoint
	}
	if !c.DisableAgent && !strings.HasPrefix(c.RuntimeEndpoint, "unix:///") {
		allowed := "a path or unix:///PATH is needed, unless disable-agent is true"
		refuse("container-runtime-endpoint", c.RuntimeEndpoint, allowed)
	}
	for key, path := range map[string]string{"data-dir": c.DataDir, "write-kubeconfig": c.WriteKubeconfig} {
		if !filepath.IsAbs(path) {
			refuse(key, path, "an absolute path is allowed")
		}
	}
	if c.LocalStoragePath == "" {
		c.LocalStoragePath = c.path("storage")
	} else if !filepath.IsAbs(c.LocalStoragePath) {
		refuse("default-local-storage-path", c.LocalStoragePath, "an absolute path is allowed")
	}
	for key, args := range map[string][]string{
		"kubelet-arg":                 c.KubeletArgs,
		"kube-apiserver-arg":          c.APIServerArgs,
		"kube-controller-manager-arg": c.ControllerManagerArgs,
		"kube-scheduler-arg":          c.SchedulerArgs,
	} {
		for _, arg := range args {
			if strings.HasPrefix(arg, "-") || !strings.Contains(arg, "=") {
				refuse(key, arg, "name=value without leading dashes is allowed")
			}
		}
	}
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return problems
}

// apiServerIP is the address of the API server's own Service: the first one.
func (c *Config) apiServerIP() string {
	return nthAddress(netip.MustParsePrefix(c.ServiceCIDR), 1)
}

// localAddress is where this process reaches the API server.
func (c *Config) localAddress() string {
	host := c.BindAddress
	if host == "0.0.0.0" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, fmt.Sprint(c.HTTPSListenPort))
}

func (c *Config) localURL() string { return "https://" + c.localAddress() }

func (c *Config) path(parts ...string) string {
	return filepath.Join(append([]string{c.DataDir}, parts...)...)
}

func nthAddress(network netip.Prefix, n int) string {
	address := network.Masked().Addr()
	for range n {
		address = address.Next()
	}
	return address.String()
}

func sortedKeys[V any](of map[string]V) []string {
	keys := make([]string, 0, len(of))
	for key := range of {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// argument is what a user's name=value arguments make of a flag; the last one counts.
func argument(args []string, name, value string) string {
	for _, arg := range args {
		if given, ok := strings.CutPrefix(arg, name+"="); ok {
			value = given
		}
	}
	return value
}

// awaitPorts is checkPorts with a little patience: the agent of a server that was killed has its ports until it has
// noticed.
func awaitPorts(ctx context.Context, c *Config) (err error) {
	_ = wait.PollUntilContextTimeout(ctx, pollEvery, 2*time.Second, true, func(context.Context) (bool, error) {
		err = checkPorts(c)
		return err == nil, nil
	})
	return err
}

// checkPorts tells of every port that the server needs and somebody else has, before anything starts.
func checkPorts(c *Config) error {
	needed := map[string]string{}
	if c.Server == "" {
		needed["https-listen-port"] = net.JoinHostPort(c.BindAddress, fmt.Sprint(c.HTTPSListenPort))
		needed["kube-controller-manager-arg secure-port"] =
			"127.0.0.1:" + argument(c.ControllerManagerArgs, "secure-port", "10257")
		needed["kube-scheduler-arg secure-port"] = "127.0.0.1:" + argument(c.SchedulerArgs, "secure-port", "10259")
	}
	if !c.DisableAgent {
		needed["kubelet-arg port"] = "0.0.0.0:" + argument(c.KubeletArgs, "port", "10250")
		needed["kubelet-arg healthz-port"] = "127.0.0.1:" + argument(c.KubeletArgs, "healthz-port", "10248")
	}
	var problems []error
	for _, key := range sortedKeys(needed) {
		listener, err := net.Listen("tcp4", needed[key])
		if err != nil {
			problems = append(problems, fmt.Errorf(
				"%s: %s can't be taken (%w); end the program that has it, or choose another", key, needed[key], err))
			continue
		}
		listener.Close()
	}
	return errors.Join(problems...)
}
