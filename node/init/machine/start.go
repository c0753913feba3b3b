package machine

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gvisor-k3s/node/init/facade"
	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/proc"
	"gvisor-k3s/node/init/service"

	"github.com/google/renameio/v2"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// startPatience is how long sandbox-init has to answer.
const startPatience = 20 * time.Second

var background = context.Background()

// Start is what a node is started with.
type Start struct {
	Node
	network
	Owner       string   `json:"owner"`
	Artifacts   string   `json:"artifacts"` // the folder of the node's programs
	Revision    string   `json:"revision"`
	Incarnation int      `json:"incarnation"`
	Environment []string `json:"environment"` // NAME=value; of sandbox-init
}

func (s Start) problems() []error {
	var problems []error
	if err := files.CheckPath(s.Artifacts); err != nil {
		problems = append(problems, fmt.Errorf("artifacts: %w", err))
	}
	if s.Owner == "" {
		problems = append(problems, errors.New("owner: it is missing"))
	}
	if s.Revision == "" {
		problems = append(problems, errors.New("revision: it is missing"))
	}
	if s.Incarnation < 1 {
		problems = append(problems, fmt.Errorf("incarnation %d: 1 or more is allowed", s.Incarnation))
	}
	for _, entry := range s.Environment {
		if name, _, found := strings.Cut(entry, "="); !found || name == "" {
			problems = append(problems, fmt.Errorf("environment %q: NAME=value is needed", entry))
		}
	}
	return problems
}

// Run has sandbox-init supervise services on this machine, and gives the machine the node's address. One that runs with
// the same revision is left alone. A first start that fails leaves nothing behind.
func (s Start) Run() (Record, error) {
	if err := asked(s.Node.problems(), s.network.problems(), s.problems()); err != nil {
		return Record{}, err
	}
	previous, err := s.readRecord()
	if err != nil {
		return Record{}, err
	}
	if previous.isAlive() && previous.Revision == s.Revision {
		return s.keep(*previous)
	}
	if previous == nil {
		if err := refuseOthers(); err != nil {
			return Record{}, err
		}
	}
	if err := needBusybox(); err != nil {
		return Record{}, err
	}
	record, err := s.start(previous)
	if err != nil && previous == nil {
		err = errors.Join(err, remove(s.Node, s.network, nil))
	}
	return record, err
}

// refuseOthers keeps a machine that has something like a node from being taken for an empty one: a stop would remove
// that.
func refuseOthers() error {
	found, err := taken()
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf(
			"this machine has a container runtime or a node already, or what one left: %s; a node needs these "+
				"for itself: remove them, or take another machine",
			strings.Join(found, ", "),
		)
	}
	if _, err := client().Within(observePatience).Status(); !errors.Is(err, service.ErrNotRunning) {
		return fmt.Errorf(
			"a sandbox-init serves %s already, and not for this node; end it, or take another machine",
			service.Socket,
		)
	}
	return nil
}

// record is what is written down of the process that this starts.
func (s Start) record(process proc.Process) Record {
	return Record{
		Version: recordVersion, Kind: recordKind, Owner: s.Owner, Incarnation: s.Incarnation, Revision: s.Revision,
		Process: process, network: s.network,
	}
}

// keep leaves alone what runs; what an older release has written down of it is written anew.
func (s Start) keep(running Record) (Record, error) {
	if running.Version == recordVersion {
		return running, nil
	}
	if err := noteMade(s.Node, &running); err != nil {
		return Record{}, err
	}
	record := s.record(running.Process)
	record.Incarnation = running.Incarnation
	return record, record.write(s.Node)
}

func (s Start) start(previous *Record) (Record, error) {
	if previous != nil {
		if !previous.endInit() {
			return Record{}, fmt.Errorf(
				"sandbox-init, process %d, was asked to end and has not; it hangs: `gvisor-k3s destroy` "+
					"kills it, with the node",
				previous.PID,
			)
		}
		strays := proc.KillAll("sandbox-inits that nobody has written down", isInit)
		if err := errors.Join(strays, service.EndLeft(service.ProcessesFile)); err != nil {
			return Record{}, err
		}
	}
	if previous != nil && previous.Address != "" && previous.Address != s.Address {
		if err := removeAddress(previous.Address); err != nil {
			return Record{}, err
		}
	}
	// From here on there is something to remove, and only what is written down is removed.
	if previous == nil {
		if err := s.record(proc.Process{}).write(s.Node); err != nil {
			return Record{}, err
		}
	}
	if _, err := files.EnsureFolder(logFolder, 0o700); err != nil {
		return Record{}, err
	}
	steps := []func() error{
		func() error { return noteMade(s.Node, previous) },
		func() error { return linkArtifacts(s.Artifacts) },
		mountRunFolder,
		func() error { return addAddress(s.Address) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return Record{}, err
		}
	}
	return s.startInit()
}

// noteMade has the facade note what it makes from now on. What an older release has made is not noted anywhere.
func noteMade(node Node, previous *Record) error {
	if _, err := files.EnsureFolder(stateFolder, 0o700); err != nil {
		return err
	}
	made := facade.Plan{}
	if previous != nil && previous.Version == 1 {
		legacy, err := facade.Legacy(node.Name)
		if err != nil {
			return err
		}
		made = legacy
	}
	return facade.NoteMade(made, facade.MadeFile)
}

// needBusybox wants what the runtime is tried with: a busybox that runs in an empty root.
func needBusybox() error {
	const advice = "install a static one (Debian: apt-get install busybox-static)"
	for _, path := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		program, err := elf.Open(path)
		if files.IsAbsent(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w; %s", path, err, advice)
		}
		defer program.Close()
		// A dynamic program asks for an interpreter.
		if slices.ContainsFunc(program.Progs, func(segment *elf.Prog) bool { return segment.Type == elf.PT_INTERP }) {
			return fmt.Errorf("%s is not static; %s", path, advice)
		}
		return nil
	}
	return errors.New("there is no /bin/busybox; " + advice)
}

// linkArtifacts has the artifacts be where every path in a config file expects them.
func linkArtifacts(target string) error {
	info, err := os.Lstat(artifactsLink)
	if err == nil && info.Mode()&os.ModeSymlink == 0 {
		return fmt.Errorf("%s is in the way: the node's programs are linked there; move it elsewhere", artifactsLink)
	}
	if current, err := os.Readlink(artifactsLink); err == nil && current == target {
		return nil
	}
	if err := files.MakeFolders(filepath.Dir(artifactsLink), 0o755); err != nil {
		return err
	}
	return renameio.Symlink(target, artifactsLink)
}

// mountRunFolder mounts what the facade's overlay wants its upper folder on, and /run is not everywhere: a tmpfs.
func mountRunFolder() error {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(runFolder))
	if err != nil || len(mounts) > 0 {
		return err
	}
	if _, err := files.EnsureFolder(runFolder, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("gvisor-k3s", runFolder, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount -t tmpfs gvisor-k3s %s: %w", runFolder, err)
	}
	return nil
}

// addAddress gives the loopback device the node's address, and sets it up.
func addAddress(address string) error {
	device, held, err := loopback(address)
	if err != nil {
		return err
	}
	if !held {
		if err := netlink.AddrAdd(device, hostAddress(address)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("ip address add %s/32 dev lo: %w", address, err)
		}
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("ip link set lo up: %w", err)
	}
	return nil
}

// loopback finds the loopback device, and tells whether the address is on it.
func loopback(address string) (device netlink.Link, held bool, err error) {
	device, err = netlink.LinkByName("lo")
	if err != nil {
		return nil, false, fmt.Errorf("ip link show lo: %w", err)
	}
	all, err := netlink.AddrList(device, netlink.FAMILY_V4)
	if err != nil {
		return nil, false, fmt.Errorf("ip address show dev lo: %w", err)
	}
	wanted := hostAddress(address)
	for _, one := range all {
		if one.IPNet.String() == wanted.IPNet.String() {
			held = true
		}
	}
	return device, held, nil
}

func hostAddress(address string) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address).To4(), Mask: net.CIDRMask(32, 32)}}
}

// startInit starts sandbox-init in a session of its own, writes it down, and waits until it answers.
func (s Start) startInit() (Record, error) {
	program, err := s.initProgram()
	if err != nil {
		return Record{}, err
	}
	output, err := openLog(filepath.Join(logFolder, "sandbox.log"))
	if err != nil {
		return Record{}, err
	}
	defer output.Close()
	command := exec.Command(program, "run")
	command.Env = append([]string{}, s.Environment...) // nil would be this process's own
	command.Dir = "/"
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := keepDescriptors(); err != nil {
		return Record{}, err
	}
	if err := command.Start(); err != nil {
		return Record{}, fmt.Errorf("sandbox-init cannot be started: %w", err)
	}
	record := s.record(proc.Of(command.Process.Pid))
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	err = record.write(s.Node)
	if err == nil {
		err = awaitAnswer(ended)
	}
	if err != nil {
		command.Process.Kill()
		return Record{}, fmt.Errorf(
			"%w\nthe last lines of %s:\n%s",
			err,
			output.Name(),
			files.LastLines(output.Name(), 15),
		)
	}
	return record, nil
}

// keepDescriptors keeps what this process was given from those that it starts: a lock at a descriptor would be held as
// long as they live.
func keepDescriptors() error {
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range descriptors {
		descriptor, err := strconv.Atoi(entry.Name())
		if err != nil {
			return err
		}
		if descriptor > unix.Stderr {
			unix.CloseOnExec(descriptor)
		}
	}
	return nil
}

// initProgram is this program, by the path that the node's programs have.
func (s Start) initProgram() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	artifacts, err := filepath.EvalSymlinks(s.Artifacts)
	if err != nil {
		return "", fmt.Errorf("artifacts: %w", err)
	}
	real, err := filepath.EvalSymlinks(self)
	if err != nil {
		return "", err
	}
	if below, found := strings.CutPrefix(real, artifacts+"/"); found {
		return filepath.Join(artifactsLink, below), nil
	}
	return self, nil
}

func openLog(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		file.Close()
		return nil, fmt.Errorf("%s is no regular file, and a log is to be written there; remove it", path)
	}
	return file, nil
}

// awaitAnswer waits until the sandbox-init that was started answers.
func awaitAnswer(ended <-chan error) error {
	ctx, cancel := context.WithTimeout(background, startPatience)
	defer cancel()
	looks := time.NewTicker(25 * time.Millisecond)
	defer looks.Stop()
	for asked := client(); ; {
		if _, err := asked.Details(ctx); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("sandbox-init ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("sandbox-init does not answer: not within %s", startPatience)
		case <-looks.C:
		}
	}
}
