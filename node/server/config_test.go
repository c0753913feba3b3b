package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const minimal = "node-ip: 192.0.2.7\ncontainer-runtime-endpoint: /run/c.sock\n"

// configFor is the configuration of a server that touches nothing outside of a temporary folder, whose config.yaml it
// is read from.
func configFor(t *testing.T, more string) *Config {
	t.Helper()
	folder := t.TempDir()
	file := filepath.Join(folder, "config.yaml")
	if !strings.Contains(more, "bind-address: ") {
		more = "bind-address: 127.0.0.1\n" + more
	}
	content := fmt.Appendf(nil, "node-name: node-1\nnode-ip: 192.0.2.7\ndisable-agent: true\n"+
		"data-dir: %s\nwrite-kubeconfig: %s/etc/k3s.yaml\n%s", folder, folder, more)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := ReadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestConfigDefaults(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		DataDir:             "/var/lib/rancher/k3s",
		NodeName:            strings.ToLower(host),
		NodeIP:              "192.0.2.7",
		BindAddress:         "0.0.0.0",
		AdvertiseAddress:    "192.0.2.7",
		HTTPSListenPort:     6443,
		WriteKubeconfig:     "/etc/rancher/k3s/k3s.yaml",
		WriteKubeconfigMode: "0600",
		ClusterCIDR:         "10.42.0.0/16",
		ServiceCIDR:         "10.43.0.0/16",
		ServiceNodePorts:    "30000-32767",
		ClusterDNS:          "10.43.0.10",
		ClusterDomain:       "cluster.local",
		RuntimeEndpoint:     "unix:///run/c.sock",
		LocalStoragePath:    "/var/lib/rancher/k3s/storage",
		FlannelBackend:      "none",
	}
	got, err := ParseConfig([]byte(minimal))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	for bind, url := range map[string]string{"0.0.0.0": "https://127.0.0.1:6443", "192.0.2.8": "https://192.0.2.8:6443"} {
		if got.BindAddress = bind; got.localURL() != url {
			t.Errorf("listening on %s it calls itself at %s, want %s", bind, got.localURL(), url)
		}
	}
	if got.apiServerIP() != "10.43.0.1" {
		t.Errorf("the API server's Service has %s", got.apiServerIP())
	}
}

func TestConfigKeys(t *testing.T) {
	content := `
data-dir: /d
node-name: n1
node-ip: 192.0.2.1
bind-address: 192.0.2.2
advertise-address: 192.0.2.3
https-listen-port: 7443
write-kubeconfig: /k
write-kubeconfig-mode: "0600"
cluster-cidr: 10.1.0.0/16
service-cidr: 10.2.0.0/24
service-node-port-range: 31000-31999
cluster-dns: 10.2.0.53
cluster-domain: example.test
container-runtime-endpoint: unix:///r
resolv-conf: /r.conf
default-local-storage-path: /s
flannel-backend: none
tls-san: [a, 192.0.2.9]
kubelet-arg: [v=2]
kube-apiserver-arg: [v=3]
kube-controller-manager-arg: [v=4]
kube-scheduler-arg: [v=5]
node-label: [l=1]
node-taint: [t=1:NoSchedule]
disable: [coredns]
disable-agent: true
disable-kube-proxy: true
disable-network-policy: true
disable-helm-controller: true
disable-cloud-controller: true
debug: true
server: https://192.0.2.4:6443
token-file: /t
`
	want := &Config{
		"/d",
		"n1",
		"192.0.2.1",
		"192.0.2.2",
		"192.0.2.3",
		7443,
		"/k",
		"0600",
		"10.1.0.0/16",
		"10.2.0.0/24",
		"31000-31999",
		"10.2.0.53",
		"example.test",
		"unix:///r",
		"/r.conf",
		"/s",
		"none",
		"https://192.0.2.4:6443",
		"/t",
		[]string{"a", "192.0.2.9"},
		[]string{"v=2"},
		[]string{"v=3"},
		[]string{"v=4"},
		[]string{"v=5"},
		[]string{"l=1"},
		[]string{"t=1:NoSchedule"},
		[]string{"coredns"},
		true,
		true,
		true,
		true,
		true,
		true,
	}
	got, err := ParseConfig([]byte(content))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestConfigRefuses(t *testing.T) {
	known := "; allowed keys are advertise-address, bind-address, cluster-cidr, cluster-dns, cluster-domain, " +
		"container-runtime-endpoint, data-dir, debug, default-local-storage-path, disable, disable-agent, " +
		"disable-cloud-controller, disable-helm-controller, disable-kube-proxy, disable-network-policy, " +
		"flannel-backend, https-listen-port, kube-apiserver-arg, kube-controller-manager-arg, kube-scheduler-arg, " +
		"kubelet-arg, node-ip, node-label, node-name, node-taint, resolv-conf, server, service-cidr, " +
		"service-node-port-range, tls-san, token-file, write-kubeconfig, write-kubeconfig-mode"
	address := ": an IPv4 address is needed"
	noSuchPart := " = false: only true is allowed: this server has no such part\n"
	cases := []struct{ name, content, want string }{
		{
			"an empty file",
			"",
			"advertise-address = " + address + "\n" +
				"container-runtime-endpoint = : a path or unix:///PATH is needed, unless disable-agent is true\n" +
				"node-ip = " + address,
		},
		{
			"unknown keys, each by its name",
			minimal + "token: x\ncluster-init: true\n",
			`unknown key "cluster-init"` + known + "\n" + `unknown key "token"` + known,
		},
		{"keys whose case differs", minimal + "Debug: true\n", `unknown key "Debug"` + known},
		{"wrong types, beside an unknown key", minimal + "debug: 1\ndisable: coredns\nhttps-listen-port: six\nx: 1\n",
			"debug = 1: a value of type bool is allowed\n" +
				"disable = \"coredns\": a value of type []string is allowed\n" +
				"https-listen-port = \"six\": a value of type int is allowed\n" +
				"unknown key \"x\"" + known},
		{"addresses", "node-ip: 127.0.0.1\nbind-address: localhost\nadvertise-address: ::1\ndisable-agent: true\n",
			"advertise-address = ::1" + address + "\n" +
				"bind-address = localhost" + address + "\n" +
				"node-ip = 127.0.0.1: an address other than loopback is needed: the kubelet refuses it"},
		{"networks", minimal + "cluster-cidr: 10.42.0.0\nservice-cidr: 10.43.0.0/33\n",
			"cluster-cidr = 10.42.0.0: a network such as 10.42.0.0/16 is allowed\n" +
				"service-cidr = 10.43.0.0/33: a network such as 10.43.0.0/16 is allowed"},
		{
			"networks that overlap",
			minimal + "cluster-cidr: 10.0.0.0/8\n",
			"service-cidr = 10.43.0.0/16: it overlaps cluster-cidr 10.0.0.0/8",
		},
		{
			"a name server elsewhere",
			minimal + "cluster-dns: 10.42.0.10\n",
			"cluster-dns = 10.42.0.10: an address in service-cidr 10.43.0.0/16 is allowed",
		},
		{
			"too few services",
			minimal + "service-cidr: 10.43.0.0/29\n",
			"cluster-dns = 10.43.0.10: an address in service-cidr 10.43.0.0/29 is allowed",
		},
		{
			"what this server has no choice of",
			minimal + "disable-kube-proxy: false\n" +
				"disable-network-policy: false\n" +
				"disable-helm-controller: false\n" +
				"disable-cloud-controller: false\n" +
				"flannel-backend: vxlan\n" +
				"write-kubeconfig-mode: \"0644\"\n",
			"disable-cloud-controller" + noSuchPart + "disable-helm-controller" + noSuchPart +
				"disable-kube-proxy" + noSuchPart + "disable-network-policy" + noSuchPart +
				"flannel-backend = vxlan: only none is allowed: this server has no flannel\n" +
				"write-kubeconfig-mode = 0644: only 0600 is allowed: the file holds the admin's key",
		},
		{
			"port, endpoint and paths",
			"node-ip: 192.0.2.7\n" +
				"https-listen-port: 65536\n" +
				"container-runtime-endpoint: run/c.sock\n" +
				"data-dir: d\n" +
				"write-kubeconfig: k\n",
			"container-runtime-endpoint = run/c.sock: a path or unix:///PATH is needed, unless disable-agent is true\n" +
				"data-dir = d: an absolute path is allowed\n" +
				"https-listen-port = 65536: 1 to 65535 is allowed\nwrite-kubeconfig = k: an absolute path is allowed",
		},
		{"arguments", minimal + "kubelet-arg: [--v=2, v=2]\nkube-apiserver-arg: [v]\n",
			"kube-apiserver-arg = v: name=value without leading dashes is allowed\n" +
				"kubelet-arg = --v=2: name=value without leading dashes is allowed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, err := ParseConfig([]byte(c.content)); err == nil || err.Error() != c.want {
				t.Errorf("got\n%v\nwant\n%s", err, c.want)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("a: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadConfig(file); err == nil || !strings.HasPrefix(err.Error(), file+":\n") {
		t.Errorf("the error does not name the file: %v", err)
	}
}

func TestCheckPorts(t *testing.T) {
	taken := func() string {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		return port
	}
	api, scheduler, kubelet := taken(), taken(), taken()
	config := configFor(t, "https-listen-port: "+api)
	config.DisableAgent = false
	// 0 asks for any free port. Of several equal arguments the last one counts, as it does for the programs themselves.
	config.ControllerManagerArgs = []string{"secure-port=" + api, "secure-port=0"}
	config.SchedulerArgs = []string{"secure-port=" + scheduler}
	config.KubeletArgs = []string{"port=0", "healthz-port=" + kubelet}
	err := checkPorts(config)
	if err == nil {
		t.Fatal("no port is missed")
	}
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{
		"https-listen-port: 127.0.0.1:" + api,
		"kube-scheduler-arg secure-port: 127.0.0.1:" + scheduler,
		"kubelet-arg healthz-port: 127.0.0.1:" + kubelet,
	} {
		if len(lines) != 3 || !strings.HasPrefix(lines[i], want+" can't be taken") {
			t.Fatalf("got %s\nwant line %d to be about %s", err, i, want)
		}
	}
	config.HTTPSListenPort, config.DisableAgent, config.SchedulerArgs = 0, true, []string{"secure-port=0"}
	if err := checkPorts(config); err != nil {
		t.Errorf("free ports, and the kubelet's is not needed: %v", err)
	}
}
