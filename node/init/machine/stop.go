package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gvisor-k3s/node/init/facade"
	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/proc"
	"gvisor-k3s/node/init/service"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Stop is which node is removed. Address and bridge are those of its record, unless they are given.
type Stop struct {
	Node
	network
}

// Stopped is what came of it.
type Stopped struct {
	Removed bool `json:"removed"` // there was a node
}

// Run ends the node and its pods, and removes everything of them; what is gone already is no error. Where no record
// tells of a node nothing was made, and what is there is somebody else's.
func (s Stop) Run() (Stopped, error) {
	if err := asked(s.Node.problems()); err != nil {
		return Stopped{}, err
	}
	record, err := s.readRecord()
	if errors.Is(err, errDamaged) { // it tells that there is a node, and its processes are found without it
		record, err = &Record{Version: recordVersion}, nil
	}
	if err != nil || record == nil {
		return Stopped{}, err
	}
	its := s.network
	if its == (network{}) {
		its = record.network
	}
	if err := asked(its.problems()); err != nil {
		return Stopped{}, err
	}
	return Stopped{Removed: true}, remove(s.Node, its, record)
}

// remove removes the node. Its record goes last, so that what was cut off can be done again.
func remove(node Node, its network, record *Record) error {
	if record != nil && !record.endInit() {
		record.Signal(unix.SIGKILL)
		proc.Until(stopPatience, func() bool { return !record.Runs() })
	}
	if record != nil && record.Version == 1 {
		if err := noteMade(node, record); err != nil {
			return err
		}
	}
	if err := proc.KillAll("the node's and the pods' processes", isNodes); err != nil {
		return err
	}
	problems := []error{
		removeNamespaces(its.Bridge),
		removeLink(its.Bridge),
		removeAddress(its.Address),
		facade.Unmake(facade.MadeFile),
	}
	for _, folder := range ownFolders {
		problems = append(problems, unmountBelow(folder))
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	own := append(
		slices.Clone(ownFolders),
		service.Socket,
		service.ProcessesFile,
		fmt.Sprintf("/run/gvisor-bridge-%s.lock", its.Bridge),
	)
	if info, err := os.Lstat(artifactsLink); err == nil && info.Mode()&os.ModeSymlink != 0 {
		own = append(own, artifactsLink)
	}
	if err := files.Remove(own); err != nil {
		return err
	}
	if err := files.Remove([]string{node.state()}); err != nil {
		return err
	}
	for _, folder := range []string{filepath.Dir(node.state()), node.Home} { // unless something else is in them
		os.Remove(folder)
	}
	return nil
}

// removeNamespaces removes the network namespaces of the pods, that of the bridge, and that in which policies are held.
func removeNamespaces(bridge string) error {
	own := []string{bridge, bridge + "-filter"}
	entries, err := os.ReadDir(namespaces)
	if files.IsAbsent(err) {
		return nil
	}
	problems := []error{err}
	for _, entry := range entries {
		if name := entry.Name(); strings.HasPrefix(name, "cni-") || slices.Contains(own, name) {
			path := filepath.Join(namespaces, name)
			problems = append(problems, unmountBelow(path), files.Remove([]string{path}))
		}
	}
	return errors.Join(problems...)
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("ip link delete %s: %w", name, err)
	}
	return nil
}

func removeAddress(address string) error {
	device, held, err := loopback(address)
	if err != nil || !held {
		return err
	}
	// Not as it is listed, with a label: gVisor removes that, and says that it is not supported.
	if err := netlink.AddrDel(device, hostAddress(address)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("ip address del %s/32 dev lo: %w", address, err)
	}
	return nil
}

// unmountBelow takes off what is mounted on a folder or below it. What is still in use leaves the tree at once, and
// goes with its last user.
func unmountBelow(folder string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(folder))
	if err != nil {
		return err
	}
	var problems []error
	for _, mount := range slices.Backward(mounts) {
		err := unix.Unmount(mount.Mountpoint, 0)
		if err == unix.EBUSY {
			err = unix.Unmount(mount.Mountpoint, unix.MNT_DETACH)
		}
		if err != nil && err != unix.EINVAL && err != unix.ENOENT { // it has just gone
			problems = append(problems, fmt.Errorf("umount %s: %w", mount.Mountpoint, err))
		}
	}
	return errors.Join(problems...)
}
