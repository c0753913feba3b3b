// Package machine puts a node on a machine that is a gVisor sandbox itself, and takes it off again: what runsc and its
// bundle are to a managed sandbox.
package machine

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"

	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/service"

	"golang.org/x/sys/unix"
)

const (
	// version is that of what the commands read.
	version = 1
	// artifactsLink is where every path in a config file expects the node's programs.
	artifactsLink = "/opt/gvisor-k3s"
	// runFolder is what the facade keeps.
	runFolder = "/run/gvisor-k3s"
	logFolder = "/var/log/gvisor-k3s"
	// stateFolder is sandbox-init's own.
	stateFolder = "/var/lib/sandbox-init"
	// namespaces are where `ip netns` and CNI plugins keep network namespaces.
	namespaces = "/run/netns"
	// dataFolder is where most of what a node has lies.
	dataFolder = "/var/lib"
)

// ownFolders are what the node keeps, below folders that may be others' too. They are removed with it, so none of it
// may be there before.
var ownFolders = []string{
	"/etc/cni",
	"/etc/containerd",
	"/etc/rancher",
	"/run/cni",
	"/run/containerd",
	runFolder,
	"/var/lib/cni",
	"/var/lib/containerd",
	"/var/lib/kubelet",
	"/var/lib/rancher",
	stateFolder,
	"/var/log/containers",
	logFolder,
	"/var/log/pods",
}

// Node is which node a command is about.
type Node struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	Home    string `json:"home"` // the folder of all nodes' state
}

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

func (n Node) problems() []error {
	var problems []error
	if n.Version != version {
		problems = append(
			problems,
			fmt.Errorf("version %d: %d is understood; the gvisor-k3s that asks and this sandbox-init "+
				"are of different releases, so run `gvisor-k3s up`", n.Version, version),
		)
	}
	if !nodeName.MatchString(n.Name) {
		problems = append(
			problems,
			fmt.Errorf("name %q: lower-case letters, digits, dots and dashes are allowed", n.Name),
		)
	}
	if err := files.CheckPath(n.Home); err != nil {
		problems = append(problems, fmt.Errorf("home: %w", err))
	}
	return problems
}

// state is the folder of the node's own.
func (n Node) state() string { return filepath.Join(n.Home, "sandboxes", n.Name) }

// network is what a node has of the machine's.
type network struct {
	Address string `json:"address"` // an address of the loopback device, and so of nobody else's
	Bridge  string `json:"bridge"`  // of the pods; it has a namespace of its own of the same name
}

var linkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}$`)

func (n network) problems() []error {
	var problems []error
	if address, err := netip.ParseAddr(n.Address); err != nil || !address.Is4() {
		problems = append(problems, fmt.Errorf("address %q: an IPv4 address is needed", n.Address))
	}
	if !linkName.MatchString(n.Bridge) {
		problems = append(problems, fmt.Errorf("bridge %q: the name of a link is needed", n.Bridge))
	}
	return problems
}

// taken are the folders of a node, or of another container runtime, that have something in them.
func taken() ([]string, error) {
	found := []string{}
	for _, folder := range ownFolders {
		names, err := firstName(folder)
		if files.IsAbsent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if names != "" {
			found = append(found, folder)
		}
	}
	return found, nil
}

// firstName is the name of something in a folder, empty if there is nothing.
func firstName(path string) (string, error) {
	folder, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer folder.Close()
	names, err := folder.Readdirnames(1)
	if len(names) == 0 {
		return "", nil
	}
	return names[0], err
}

func client() *service.Client { return service.NewClient(service.Socket) }

// asked joins what is wrong with a command's input.
func asked(problems ...[]error) error {
	var all []error
	for _, some := range problems {
		all = append(all, some...)
	}
	return errors.Join(all...)
}
