package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// What the service proxy is told of a pod's host ports is there from its start to its end.
func TestHostPorts(t *testing.T) {
	n := newNode(t)
	folder := filepath.Join(n.dir, "made", "host-ports")
	told := func() (files []string) {
		entries, _ := os.ReadDir(folder)
		for _, entry := range entries {
			files = append(files, entry.Name())
		}
		return files
	}
	plain := n.with("hostPorts", folder, "capabilities", map[string]any{"portMappings": true})
	n.conf = plain
	n.add("none")
	n.conf = n.with("runtimeConfig", map[string]any{"portMappings": []any{
		map[string]any{"hostPort": 0, "containerPort": 9, "protocol": "tcp"},
		map[string]any{"hostPort": 8085, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
	}})
	pod, stale := n.add("pod"), n.add("stale")
	if got := told(); !slices.Equal(got, []string{"pod", "stale"}) {
		t.Fatalf("told of are %v", got)
	}
	content, err := os.ReadFile(filepath.Join(folder, "pod"))
	want := `{"namespace":"","name":"","uid":"","address":"` + pod.ip +
		`","ports":[{"hostPort":8085,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]}`
	if string(content) != want || err != nil {
		t.Errorf("of the pod is told %s, %v", content, err)
	}
	n.conf = plain
	n.gc(pod)
	if got := told(); !slices.Equal(got, []string{"pod"}) {
		t.Errorf("after a GC told of are %v", got)
	}
	for range 2 {
		if err := n.del(pod); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.del(stale); err != nil {
		t.Fatal(err)
	}
	if got := told(); len(got) > 0 {
		t.Errorf("in the end told of are %v", got)
	}
}

// containerd names the pod in CNI_ARGS.
func TestPodOfHostPorts(t *testing.T) {
	conf := &pluginConf{HostPorts: t.TempDir()}
	conf.RuntimeConfig.PortMappings = []portMapping{{HostPort: 1, ContainerPort: 2, Protocol: "udp"}}
	args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u-1"
	ips := []*current.IPConfig{{Address: net.IPNet{IP: net.IPv4(10, 0, 0, 5)}}}
	if err := tellHostPorts(conf, "c", args, ips); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(conf.HostPorts, "c"))
	want := `{"namespace":"ns","name":"p","uid":"u-1","address":"10.0.0.5",` +
		`"ports":[{"hostPort":1,"containerPort":2,"protocol":"udp"}]}`
	if string(content) != want || err != nil {
		t.Errorf("told is %s, %v", content, err)
	}
}
