package main

import (
	"fmt"
	"net"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// portMapping is a port of the node's that leads to one of the pod's, as the runtime passes it with the capability
// portMappings (CNI's CONVENTIONS.md).
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// podPorts is what the service proxy is told of a pod's host ports: a file in the folder HostPorts, named by the
// container. See node/server/service-proxy/hostports.go.
type podPorts struct {
	Namespace string        `json:"namespace"`
	Name      string        `json:"name"`
	UID       string        `json:"uid"`
	Address   net.IP        `json:"address"`
	Ports     []portMapping `json:"ports"`
}

// hostPortsFile is where a container's are told.
func hostPortsFile(conf *pluginConf, container string) string {
	return filepath.Join(conf.HostPorts, container)
}

// tellHostPorts tells of a pod's host ports, if it has any.
func tellHostPorts(conf *pluginConf, container, cniArgs string, ips []*current.IPConfig) error {
	var ports []portMapping
	for _, port := range conf.RuntimeConfig.PortMappings {
		if port.HostPort != 0 {
			ports = append(ports, port)
		}
	}
	if len(ports) == 0 || len(ips) == 0 {
		return nil
	}
	args := cniArguments(cniArgs)
	err := writeWhole(conf.HostPorts, container, podPorts{
		Namespace: args["K8S_POD_NAMESPACE"], Name: args["K8S_POD_NAME"], UID: args["K8S_POD_UID"],
		Address: ips[0].Address.IP, Ports: ports,
	})
	if err != nil {
		return fmt.Errorf("telling of the pod's host ports: %w", err)
	}
	return nil
}

// forgetHostPorts is for a pod that is gone; also for one that never had any.
func forgetHostPorts(conf *pluginConf, container string) error {
	if conf.HostPorts == "" {
		return nil
	}
	return removeIfThere(hostPortsFile(conf, container))
}

// gcHostPorts forgets those of containers that are not among the valid ones.
func gcHostPorts(conf *pluginConf, valid map[types.GCAttachment]bool) error {
	if conf.HostPorts == "" {
		return nil
	}
	return removeOthers(conf.HostPorts, containersOf(valid))
}
