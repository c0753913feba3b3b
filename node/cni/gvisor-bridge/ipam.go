package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// ipamType is the only IPAM plugin there is a use for on one node. It is found in CNI_PATH.
const ipamType = "host-local"

// takeLease asks host-local for addresses. It refuses a second lease for one
// attachment, so an old one that a killed ADD left is given back and the request
// repeated.
func takeLease(conf []byte) (*current.Result, error) {
	result, err := invoke.DelegateAdd(context.Background(), ipamType, conf, nil)
	if err != nil {
		if releaseErr := releaseLease(conf); releaseErr != nil {
			return nil, join(err, releaseErr)
		}
		if result, err = invoke.DelegateAdd(context.Background(), ipamType, conf, nil); err != nil {
			return nil, err
		}
	}
	lease, err := current.NewResultFromResult(result)
	if err == nil && len(lease.IPs) == 0 {
		err = errors.New(ipamType + " gave no address")
	}
	if err != nil {
		return nil, join(err, releaseLease(conf))
	}
	return lease, nil
}

// releaseLease gives back the lease of the attachment that this process's
// environment names; none is no error.
func releaseLease(conf []byte) error {
	return invoke.DelegateDel(context.Background(), ipamType, conf, nil)
}

func checkLease(conf []byte) error {
	return invoke.DelegateCheck(context.Background(), ipamType, conf, nil)
}

// ipamStatus looks whether host-local is there. It is not asked, which would take a process every five seconds: it has
// nothing to tell.
func ipamStatus() error {
	_, err := invoke.FindInPath(ipamType, filepath.SplitList(os.Getenv("CNI_PATH")))
	return err
}

// gcLeases gives back the leases in dir whose attachments are not valid.
// host-local has no GC of its own, so each takes a DEL.
func gcLeases(dir string, valid map[types.GCAttachment]bool, conf []byte) error {
	attachments, err := leases(dir)
	if err != nil {
		return err
	}
	var failed []error
	for _, a := range attachments {
		if valid[a] {
			continue
		}
		err := errors.Join(
			os.Setenv("CNI_CONTAINERID", a.ContainerID),
			os.Setenv("CNI_IFNAME", a.IfName),
			releaseLease(conf),
		)
		if err != nil {
			failed = append(failed, fmt.Errorf("releasing the lease of container %s: %w", a.ContainerID, err))
		}
	}
	return join(failed...)
}

// leaseDir is where host-local keeps a network's leases; its default is part of its documented interface.
func leaseDir(dataDir, network string) string {
	if dataDir == "" {
		dataDir = "/var/lib/cni/networks"
	}
	return filepath.Join(dataDir, network)
}

// leases reads host-local's folder: one file for each address, which holds the
// container ID and the interface name, a line each.
func leases(dir string) ([]types.GCAttachment, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading leases: %w", err)
	}
	var all []types.GCAttachment
	for _, entry := range entries {
		if net.ParseIP(entry.Name()) == nil {
			continue // the lock, and the last address given
		}
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // given back meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("reading lease: %w", err)
		}
		id, ifName, ok := strings.Cut(strings.TrimSpace(string(content)), "\n")
		if !ok {
			continue // not host-local's format: leave it alone
		}
		all = append(all, types.GCAttachment{ContainerID: strings.TrimSpace(id), IfName: strings.TrimSpace(ifName)})
	}
	return all, nil
}
