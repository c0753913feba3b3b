package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"
)

// hostPorts is the folder where the CNI plugin tells of the pods' host ports: a file a pod, from its start to its end.
// See node/cni/gvisor-bridge/hostports.go.
type hostPorts string

// podPorts are a pod's.
type podPorts struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	UID       types.UID  `json:"uid"`
	Address   netip.Addr `json:"address"`
	Ports     []struct {
		HostPort      uint16 `json:"hostPort"`
		ContainerPort uint16 `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP"`
	} `json:"ports"`
}

// read reads all of them, oldest first: who was first keeps a port. What cannot be read is left out.
func (h hostPorts) read() []podPorts {
	if h == "" {
		return nil
	}
	entries, err := os.ReadDir(string(h))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		klog.ErrorS(err, "the pods' host ports")
	}
	type told struct {
		ports podPorts
		when  time.Time
	}
	var all []told
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || strings.HasPrefix(entry.Name(), ".") {
			continue // it has just gone, or is about to come
		}
		now := told{when: info.ModTime()}
		content, err := os.ReadFile(filepath.Join(string(h), entry.Name()))
		if err == nil {
			err = json.Unmarshal(content, &now.ports)
		}
		if err == nil {
			all = append(all, now)
		} else if !errors.Is(err, os.ErrNotExist) {
			klog.ErrorS(err, "a pod's host ports", "file", entry.Name())
		}
	}
	slices.SortStableFunc(all, func(a, b told) int { return a.when.Compare(b.when) })
	var ports []podPorts
	for _, one := range all {
		ports = append(ports, one.ports)
	}
	return ports
}

// watchFolder calls changed after each change of a folder, which it makes, until the context ends.
func watchFolder(ctx context.Context, folder string, changed func()) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	if err := watcher.Add(folder); err != nil {
		watcher.Close()
		return err
	}
	go func() {
		defer watcher.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case <-watcher.Events:
			case err := <-watcher.Errors: // such as too many events at once: what there is now is read anew
				klog.ErrorS(err, "watching", "folder", folder)
			}
			changed()
		}
	}()
	return nil
}

// addHostPorts adds what pods have on the node's addresses to what is to be listened on. A Service that has a port is
// first.
func (p *proxy) addHostPorts(wanted map[frontend]*pool, used map[poolName]bool) {
	for _, pod := range p.hostPorts.read() {
		for _, port := range pod.Ports {
			protocol := v1.Protocol(strings.ToUpper(port.Protocol))
			if protocol != v1.ProtocolTCP && protocol != v1.ProtocolUDP {
				continue // gVisor has no SCTP
			}
			name := poolName{pod: pod.UID, port: kubeproxy.ServicePortName{
				NamespacedName: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name},
				Port:           fmt.Sprint(port.HostPort), Protocol: protocol,
			}}
			used[name] = true
			if p.pools[name] == nil {
				p.pools[name] = p.newPool(name)
			}
			p.pools[name].set([]netip.AddrPort{netip.AddrPortFrom(pod.Address, port.ContainerPort)}, 0, nil)
			for _, address := range p.hostAddresses(port.HostIP) {
				front := frontend{protocol, netip.AddrPortFrom(address, port.HostPort)}
				if has := wanted[front]; has != nil && has.name != name {
					p.tell(front, name, fmt.Errorf("%s has it", has.name))
					continue
				}
				wanted[front] = p.pools[name]
			}
		}
	}
}

// hostAddresses are where a host port is served: everywhere, unless the pod names an address.
func (p *proxy) hostAddresses(hostIP string) []netip.Addr {
	address, err := netip.ParseAddr(hostIP)
	if err != nil || address.IsUnspecified() {
		return p.nodeAddresses
	}
	return []netip.Addr{address}
}
