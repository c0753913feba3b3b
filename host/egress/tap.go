package egress

import (
	"fmt"
	"net"

	"gvisor-k3s/host/netns"
	"gvisor-k3s/host/network"
)

// openTap takes hold of a tap device in another network namespace. The device is persistent, so it outlives this
// process, and the sandbox keeps it.
func openTap(namespace, name string) (int, error) {
	return netns.In(namespace, func() (int, error) { return openTapHere(namespace, name) })
}

func openTapHere(namespace, name string) (int, error) {
	// The kernel would make one that is not there, and nothing would ever come out of it.
	if _, err := net.InterfaceByName(name); err != nil {
		return -1, fmt.Errorf("%s in %s: %w", name, namespace, err)
	}
	return network.OpenTap(name, 0)
}
