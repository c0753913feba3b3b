package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor-k3s/node/init/facade"
	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/proc"
	"gvisor-k3s/node/init/service"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// inMachine tells the test program that it is in a machine of its own.
	inMachine = "SANDBOX_INIT_TEST_IN_MACHINE"
	// asSomebody has it do nothing, whatever its arguments say it is.
	asSomebody = "SANDBOX_INIT_TEST_AS_SOMEBODY"
)

// Where the node's programs are in that machine, and this one, which is also its sandbox-init.
const (
	artifacts = "/var/lib/artifacts"
	program   = artifacts + "/init-test/sandbox-init"
)

// TestMain has the tests run on a machine that is theirs: in gVisor it is the sandbox, elsewhere it is made of
// namespaces.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asSomebody) != "":
		fmt.Println(os.Environ(), "end")
		unix.Pause()
		return
	case len(os.Args) == 2 && os.Args[1] == "run":
		if err := service.Run(service.Socket, service.NotesFile, service.ProcessesFile); err != nil {
			fmt.Fprintln(os.Stderr, "sandbox-init:", err)
			os.Exit(1)
		}
		return
	case os.Getenv(inMachine) == "entered":
		os.Exit(m.Run())
	case os.Getenv(inMachine) == "made":
		fmt.Fprintln(os.Stderr, "a machine of the tests' own:", enter())
		os.Exit(1)
	case os.Geteuid() != 0:
		fmt.Println("a machine of the tests' own takes root")
		return
	}
	os.Setenv(inMachine, "made")
	if _, isGVisor, err := kernel(); err == nil && isGVisor && os.Getpid() < 10 {
		fmt.Fprintln(os.Stderr, "a machine of the tests' own:", enter())
		os.Exit(1)
	}
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET}
	if err := command.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// enter empties the folders that a node uses, and becomes the program in the artifacts' folder. It returns only if it
// fails.
func enter() error {
	content, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := setUp(); err != nil {
		return err
	}
	for _, folder := range []string{"/etc", "/opt", "/run", "/var/lib", "/var/log"} {
		if err := unmountBelow(folder); err != nil {
			return err
		}
		if err := unix.Mount("machine-test", folder, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("%s: %w", folder, err)
		}
	}
	if err := files.Write(program, 0o755, content); err != nil {
		return err
	}
	os.Setenv(inMachine, "entered")
	return unix.Exec(program, os.Args, os.Environ())
}

// setUp sets the loopback device up, which then has its own address.
func setUp() error {
	device, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(device)
}

var node = Node{Version: 1, Name: "dev", Home: "/var/lib/gvisor-k3s"}
var nodeNetwork = network{Address: "10.107.0.1", Bridge: "cni0"}

func started(revision string, incarnation int) Start {
	return Start{
		Node: node, network: nodeNetwork, Owner: "stack dev of ann", Artifacts: artifacts,
		Revision: revision, Incarnation: incarnation,
		Environment: []string{"PATH=/usr/bin:/bin", "GIVEN=yes"},
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func read(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

func start(t *testing.T, with Start) Record {
	t.Helper()
	record, err := with.Run()
	must(t, err)
	return record
}

func observe(t *testing.T, paths ...string) Observed {
	t.Helper()
	observed, err := Observe{Node: node, Files: paths}.Run()
	must(t, err)
	return observed
}

func stop(t *testing.T) bool {
	t.Helper()
	stopped, err := Stop{node, nodeNetwork}.Run()
	must(t, err)
	return stopped.Removed
}

func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("got %v, want %q", err, word)
		}
	}
}

// traces are all that a node could leave.
func traces(t *testing.T) string {
	t.Helper()
	var all []string
	for _, folder := range []string{"/etc", "/opt", "/run", "/var/lib", "/var/log"} {
		must(t, filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && path != folder {
				all = append(all, path+" "+entry.Type().String())
			}
			return err
		}))
	}
	links, err := netlink.LinkList()
	must(t, err)
	for _, link := range links {
		all = append(all, "link "+link.Attrs().Name)
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		must(t, err)
		for _, address := range addresses {
			all = append(all, "address "+address.IPNet.String())
		}
	}
	if _, err := os.Lstat("/dev/kmsg"); err == nil {
		all = append(all, "/dev/kmsg")
	}
	for _, pid := range running(t) {
		all = append(all, "process "+strings.Join(proc.CommandLine(pid), " "))
	}
	return strings.Join(append(all, read("/proc/self/mounts")), "\n")
}

func running(t *testing.T) []int {
	t.Helper()
	all, err := proc.Others()
	must(t, err)
	return all
}

// untouched wants that nothing is left of what a test does.
func untouched(t *testing.T) {
	t.Helper()
	before := traces(t)
	t.Cleanup(func() {
		if after := traces(t); after != before {
			t.Errorf("left is\n%s\nand there was before\n%s", after, before)
		}
	})
}

// process starts a program that has this command line, and is killed after the test.
func process(t *testing.T, commandLine ...string) int {
	t.Helper()
	command := exec.Command(program)
	command.Args = commandLine
	command.Env = []string{asSomebody + "=1"}
	command.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	must(t, command.Start())
	pid := command.Process.Pid
	go command.Wait()
	t.Cleanup(func() {
		unix.Kill(-pid, unix.SIGKILL)
		if !proc.Until(10*time.Second, func() bool { return proc.StartTime(pid) == "" }) {
			t.Errorf("process %d is left", pid)
		}
	})
	return pid
}

// put has the node's sandbox-init run a service, and returns its process when it has told its environment.
func put(t *testing.T, name, log string) int {
	t.Helper()
	log = filepath.Join(logFolder, log)
	description, err := json.Marshal(service.Service{
		Name: name, Command: []string{program}, Env: []string{asSomebody + "=1"}, Log: log, StopSeconds: 5,
	})
	must(t, err)
	_, err = client().Put(description)
	must(t, err)
	if !proc.Until(10*time.Second, func() bool { return strings.Contains(read(log), " end\n") }) {
		t.Fatalf("the service says %q", read(log))
	}
	states, err := client().Status()
	must(t, err)
	return states[name].PID
}

func TestANodeFromItsStartToItsEnd(t *testing.T) {
	untouched(t)
	if first := observe(t, "/etc/none"); first.Record != nil || first.Alive || first.Answers || len(first.Taken) != 0 ||
		first.Free == 0 ||
		!reflect.DeepEqual(first.Files, map[string]files.Sum{"/etc/none": {Absent: true}}) ||
		first.Services == nil ||
		first.Arch != map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH] {
		t.Errorf("an empty machine: %+v", first)
	}
	if stop(t) {
		t.Error("an empty machine had a node")
	}

	record := start(t, started("1", 7))
	want := Record{
		Version:     2,
		Kind:        "inside",
		Owner:       "stack dev of ann",
		Incarnation: 7,
		Revision:    "1",
		Process:     proc.Of(record.PID),
		network:     nodeNetwork,
	}
	if record != want || record.StartTime == "" {
		t.Errorf("got %+v, want %+v", record, want)
	}
	written := fmt.Sprintf(
		`{"version":2,"kind":"inside","owner":"stack dev of ann","incarnation":7,"revision":"1","pid":%d,`+
			`"startTime":"%s","address":"10.107.0.1","bridge":"cni0"}`,
		record.PID,
		record.StartTime,
	)
	if got := read("/var/lib/gvisor-k3s/sandboxes/dev/machine.json"); got != written {
		t.Errorf("written down is %s, want %s", got, written)
	}
	for path, mode := range map[string]fs.FileMode{
		"/var/lib/gvisor-k3s": fs.ModeDir | 0o700, "/var/lib/gvisor-k3s/sandboxes/dev": fs.ModeDir | 0o700,
		"/var/log/gvisor-k3s": fs.ModeDir | 0o700, "/run/gvisor-k3s": fs.ModeDir | 0o755,
		"/var/log/gvisor-k3s/sandbox.log": 0o600,
	} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if got := proc.CommandLine(record.PID); !slices.Equal(
		got,
		[]string{"/opt/gvisor-k3s/init-test/sandbox-init", "run"},
	) {
		t.Errorf("it runs as %q", got)
	}
	if session := proc.Stat(record.PID)[3]; session != fmt.Sprint(record.PID) {
		t.Error("it is in the session of whoever started it")
	}
	if mounts := read("/proc/self/mounts"); !strings.Contains(mounts, " /run/gvisor-k3s tmpfs ") {
		t.Errorf("mounted are\n%s", mounts)
	}
	if _, held, err := loopback(nodeNetwork.Address); err != nil || !held {
		t.Errorf("the machine has no address: %v", err)
	}

	// One that is as it should be is left alone.
	if again := start(t, started("1", 8)); again != record {
		t.Errorf("again: %+v", again)
	}
	first := put(t, "web", "first.log")
	if got, want := read(logFolder+"/first.log"), "["+asSomebody+"=1] end\n"; got != want {
		t.Errorf("a service has %q, want %q", got, want)
	}
	must(t, files.Write("/etc/rancher/k3s/config.yaml", 0o600, []byte("abc")))
	sum := files.Sum{SHA256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
	observed := observe(t, "/etc/rancher/k3s/config.yaml")
	if *observed.Record != record || !observed.Alive || !observed.Answers || observed.Services["web"].PID != first ||
		observed.Files["/etc/rancher/k3s/config.yaml"] != sum ||
		!slices.Contains(observed.Taken, "/etc/rancher") {
		t.Errorf("observed: %+v", observed)
	}

	// What is described otherwise is ended first.
	other := start(t, started("2", 8))
	if other.PID == record.PID || other.Incarnation != 8 || proc.StartTime(record.PID) != "" ||
		proc.StartTime(first) != "" {
		t.Errorf("another revision: %+v, and the service of before: %q", other, proc.StartTime(first))
	}

	// With another address the one of before is nobody's.
	moved := started("3", 8)
	moved.Address = "10.107.0.5"
	other = start(t, moved)
	for address, wanted := range map[string]bool{nodeNetwork.Address: false, moved.Address: true} {
		if _, held, err := loopback(address); err != nil || held != wanted {
			t.Errorf("the machine has %s: %v, %v", address, held, err)
		}
	}
	other = start(t, started("2", 8))

	// One that was killed has left its service, which would be there twice.
	second := put(t, "web", "second.log")
	unix.Kill(other.PID, unix.SIGKILL)
	if !proc.Until(10*time.Second, func() bool { return !observe(t).Alive }) {
		t.Error("killed, and alive")
	}
	if proc.StartTime(second) == "" {
		t.Error("the service has ended with it, so this test shows nothing")
	}
	third := start(t, started("2", 9))
	if third.PID == other.PID || proc.StartTime(second) != "" {
		t.Errorf("started again: %+v, and the service of before: %q", third, proc.StartTime(second))
	}
	put(t, "web", "third.log")
	if stopped, err := (Stop{Node: node}).Run(); err != nil || !stopped.Removed { // by its record alone
		t.Error("there was no node")
	}
	if stop(t) {
		t.Error("there is a node still")
	}
}

// All that a node makes while it runs goes with it, and nothing of anybody else's.
func TestStartKeepsWhatItWasGiven(t *testing.T) {
	untouched(t)
	lock := filepath.Join(t.TempDir(), "lock")
	descriptor, err := unix.Open(lock, unix.O_RDWR|unix.O_CREAT, 0o600) // which programs that are started get
	must(t, err)
	defer unix.Close(descriptor)
	record := start(t, started("1", 1))
	given, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", record.PID))
	must(t, err)
	if len(given) < 3 {
		t.Fatalf("sandbox-init has %q", given)
	}
	for _, link := range given {
		if target, _ := os.Readlink(link); target == lock {
			t.Error("sandbox-init has the lock of who started it")
		}
	}
	stop(t)
}

func TestStopTakesAllOfTheNode(t *testing.T) {
	theirs := []string{
		"/etc/hostname",
		"/opt/theirs",
		"/run/theirs",
		"/var/lib/gvisor-k3s/sandboxes/other/machine.json",
		"/var/log/theirs",
	}
	for _, path := range theirs {
		must(t, files.Write(path, 0o644, []byte("theirs")))
	}
	t.Cleanup(func() { must(t, files.Remove(append(theirs, "/var/lib/gvisor-k3s"))) })
	kept := []int{
		process(t, "/usr/bin/theirs"),
		process(t, "/opt/gvisor-k3s/init-test/sandbox-init", "hold", "/x"), // a tool beside: it may hold the lock
		process(t, "/opt/gvisor-k3s-of-another-kind/x"),
	}
	untouched(t)
	start(t, started("1", 1))

	pods := []int{
		process(t, "/opt/gvisor-k3s/containerd-1/containerd-shim-runc-v2"),
		process(t, "/usr/local/bin/shim", "-address", "/run/containerd/containerd.sock", "-id", "x"),
	}
	if pid, done := inCgroup(t); done {
		pods = append(pods, pid)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = nodeNetwork.Bridge
	must(t, netlink.LinkAdd(bridge))
	namespace(t, "cni-1234")
	namespace(t, nodeNetwork.Bridge+"-filter")
	namespace(t, nodeNetwork.Bridge)
	namespace(t, "theirs")
	t.Cleanup(func() {
		unix.Unmount("/run/netns/theirs", unix.MNT_DETACH)
		must(t, files.Remove([]string{"/run/netns"}))
	})
	for _, folder := range ownFolders {
		must(t, files.Write(filepath.Join(folder, "deep/er/file"), 0o600, []byte("the node's")))
	}
	must(t, files.Write("/run/gvisor-bridge-cni0.lock", 0o600, []byte{}))
	// A volume of a pod that is a folder of somebody else's, mounted where the kubelet has volumes.
	must(t, os.MkdirAll("/var/lib/kubelet/pods/1/volumes/theirs", 0o755))
	must(
		t,
		unix.Mount(
			"/var/lib/gvisor-k3s/sandboxes/other",
			"/var/lib/kubelet/pods/1/volumes/theirs",
			"",
			unix.MS_BIND,
			"",
		),
	)
	must(t, unix.Mount("tmpfs", "/var/lib/kubelet/pods/1", "tmpfs", 0, ""))
	// Something that is mounted is in use.
	user, err := os.Open("/var/lib/kubelet/pods/1")
	must(t, err)
	defer user.Close()
	plan := facade.Plan{
		Files:  []facade.File{{Path: "/etc/machine-id", Content: "x\n"}, {Path: "/etc/hostname", Content: "theirs"}},
		Mounts: []facade.Mount{{Type: "tmpfs", Source: "cgroup", Target: "/run/facade"}},
	}
	must(t, facade.Apply(plan, facade.MadeFile))

	if !stop(t) {
		t.Error("there was no node")
	}
	for _, pid := range pods {
		if proc.StartTime(pid) != "" {
			t.Errorf("process %d, %q, is left", pid, proc.CommandLine(pid))
		}
	}
	for _, pid := range kept {
		if proc.StartTime(pid) == "" {
			t.Errorf("process %d is gone, and was not the node's", pid)
		}
	}
	for _, path := range theirs {
		if got := read(path); got != "theirs" {
			t.Errorf("%s: %s", path, got)
		}
	}
	if _, err := os.Lstat("/run/netns/theirs"); err != nil {
		t.Error(err)
	}
	must(t, os.Remove("/run/facade"))
}

// inCgroup starts a process in a pod's cgroup, where that can be made.
func inCgroup(t *testing.T) (pid int, done bool) {
	t.Helper()
	mounted := t.TempDir()
	if _, isGVisor, err := kernel(); err != nil || !isGVisor { // elsewhere the cgroups are the host's
		return 0, false
	}
	must(t, unix.Mount("cgroup", mounted, "cgroup", 0, "memory"))
	t.Cleanup(func() { unix.Unmount(mounted, unix.MNT_DETACH) })
	group := filepath.Join(mounted, "k8s.io", "pod")
	must(t, os.MkdirAll(group, 0o755))
	pid = process(t, "/pause")
	must(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, pid), 0o600))
	return pid, true
}

// namespace makes a network namespace that is kept by its name.
func namespace(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join(namespaces, name)
	must(t, files.Write(path, 0o600, []byte{}))
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	must(t, <-made)
}

func TestFirstStartThatFailsLeavesNothing(t *testing.T) {
	must(t, files.Write("/opt/gvisor-k3s/theirs", 0o600, []byte("theirs")))
	t.Cleanup(func() { must(t, files.Remove([]string{"/opt/gvisor-k3s"})) })
	untouched(t)
	_, err := started("1", 1).Run()
	refused(t, err, "/opt/gvisor-k3s is in the way: the node's programs are linked there; move it elsewhere")
	if got := read("/opt/gvisor-k3s/theirs"); got != "theirs" {
		t.Errorf("it holds %q", got)
	}
}

func TestSandboxInitThatEndsAtOnceIsTold(t *testing.T) {
	untouched(t)
	// Its socket cannot be there.
	must(t, files.Write(service.Socket+"/x", 0o600, []byte{}))
	_, err := started("1", 1).Run()
	refused(t, err, "sandbox-init ended: exit status 1\nthe last lines of /var/log/gvisor-k3s/sandbox.log:\n"+
		"sandbox-init: listen unix "+service.Socket)
}

// A start that was cut off is written down, so it can be undone, and done again.
func TestStartThatWasCutOff(t *testing.T) {
	untouched(t)
	must(
		t,
		started("1", 1).record(proc.Process{}).write(node),
		linkArtifacts(artifacts),
		mountRunFolder(),
		addAddress(nodeNetwork.Address),
	)
	if observed := observe(t); observed.Record == nil || observed.Alive {
		t.Errorf("observed: %+v", observed)
	}
	// Its sandbox-init runs, and nobody has written down its process.
	stray := exec.Command("/opt/gvisor-k3s/init-test/sandbox-init", "run")
	must(t, stray.Start())
	ended := make(chan error, 1)
	go func() { ended <- stray.Wait() }()
	if !proc.Until(10*time.Second, func() bool { return observe(t).Answers }) {
		t.Fatal("it does not answer")
	}
	record := start(t, started("1", 1))
	if err := <-ended; err == nil || record.PID == stray.Process.Pid {
		t.Errorf("two of them run: %v, %+v", err, record)
	}
	stop(t)
	must(
		t,
		started("1", 1).record(proc.Process{}).write(node),
		linkArtifacts(artifacts),
		mountRunFolder(),
		addAddress(nodeNetwork.Address),
	)
	if !stop(t) {
		t.Error("there was no node")
	}
}

func TestStartRefusesAMachineOfSomebodyElses(t *testing.T) {
	for _, folder := range ownFolders {
		must(t, files.Write(filepath.Join(folder, "theirs"), 0o600, []byte("theirs")))
		before := traces(t)
		_, err := started("1", 1).Run()
		refused(t, err, "this machine has a container runtime or a node already, or what one left: "+folder+
			"; a node needs these for itself")
		if observed := observe(t); !slices.Equal(observed.Taken, []string{folder}) {
			t.Errorf("taken are %q", observed.Taken)
		}
		if stop(t) {
			t.Error("it had a node")
		}
		if after := traces(t); after != before {
			t.Errorf("there is\n%s\nand there was before\n%s", after, before)
		}
		must(t, files.Remove([]string{folder}))
	}
	// Empty folders are no node.
	for _, folder := range ownFolders {
		must(t, os.MkdirAll(folder, 0o755))
	}
	if observed := observe(t); len(observed.Taken) != 0 {
		t.Errorf("taken are %q", observed.Taken)
	}
	must(t, files.Remove(ownFolders))

	other := exec.Command(program, "run")
	must(t, other.Start())
	if !proc.Until(10*time.Second, func() bool { return observe(t).Answers }) {
		t.Fatal("it does not answer")
	}
	before := traces(t)
	_, err := started("1", 1).Run()
	refused(t, err, "a sandbox-init serves /run/sandbox-init.sock already, and not for this node")
	if after := traces(t); after != before {
		t.Errorf("there is\n%s\nand there was before\n%s", after, before)
	}
	must(t, other.Process.Signal(unix.SIGTERM), other.Wait(), files.Remove([]string{service.Socket}))
}

// What config/facade.ts asks for goes with the node, whether it is noted or was made by gvisor-k3s 0.2.0. It takes
// gVisor: elsewhere the cgroups and the device are the host's.
func TestFacadeGoesWithTheNode(t *testing.T) {
	if _, isGVisor, err := kernel(); err != nil || !isGVisor {
		t.Skip("this is not gVisor")
	}
	untouched(t)
	legacy, err := facade.Legacy(node.Name)
	must(t, err)
	upper, work := runFolder+"/proc-sys/upper", runFolder+"/proc-sys/work"
	plan := facade.Plan{
		Settings: []facade.File{{Path: "/proc/sys/net/ipv4/ip_forward", Content: "1"}},
		Files: append(legacy.Files, facade.File{Path: upper + "/vm/overcommit_memory", Content: "1\n"},
			facade.File{Path: runFolder + "/cgroup-mounts"}),
		Mounts: []facade.Mount{
			{Type: "overlay", Source: "overlay", Target: "/proc/sys", Folders: []string{work},
				Options: "lowerdir=/proc/sys,upperdir=" + upper + ",workdir=" + work},
			{Type: "tmpfs", Source: "cgroup", Target: "/sys/fs/cgroup", Options: "mode=0755"},
			{Type: "cgroup", Source: "memory", Target: "/sys/fs/cgroup/memory", Options: "memory", Optional: true},
			{Type: "cgroup", Source: "none", Target: "/sys/fs/cgroup/none", Options: "none", Optional: true},
		},
		Nodes: []facade.Node{{Path: "/dev/kmsg", Major: 1, Minor: 3}},
	}
	for _, noted := range []bool{true, false} {
		record := start(t, started("1", 1))
		if !noted {
			writeAsBefore(t, record)
		}
		for range 2 {
			must(t, facade.Apply(plan, facade.MadeFile))
		}
		mounts := read("/proc/self/mounts")
		if !strings.Contains(mounts, " /proc/sys overlay ") ||
			!strings.Contains(mounts, " /sys/fs/cgroup/memory cgroup ") ||
			read("/proc/sys/vm/overcommit_memory") != "1\n" {
			t.Errorf("mounted are\n%s", mounts)
		}
		stop(t)
	}
}

// writeAsBefore has a node look as if gvisor-k3s 0.2.0 had started it, which noted nothing of what the facade made.
func writeAsBefore(t *testing.T, record Record) {
	t.Helper()
	must(t, files.Remove([]string{node.recordFile(), facade.MadeFile}))
	old := fmt.Sprintf(`{"incarnation":%d,"revision":%q,"pid":%d,"startTime":%q}`,
		record.Incarnation, record.Revision, record.PID, record.StartTime)
	must(t, files.Write(node.legacyRecordFile(), 0o600, []byte(old)))
}

// A cluster of gvisor-k3s 0.2.0 is taken over as it runs, and can be removed.
func TestLegacyRecord(t *testing.T) {
	untouched(t)
	name := node.legacyRecordFile()
	made := func() Record {
		record := start(t, started("1", 4))
		writeAsBefore(t, record)
		legacy, err := facade.Legacy("dev")
		must(t, err, facade.Plan{Files: legacy.Files}.Apply())
		if old := observe(t).Record; old.Version != 1 || old.Kind != "inside" || old.PID != record.PID ||
			!old.isAlive() {
			t.Errorf("it is read as %+v", old)
		}
		return record
	}
	record := made()
	if got := start(t, started("1", 9)); got != record || read(node.recordFile()) == "" ||
		!os.IsNotExist(statError(name)) {
		t.Errorf("taken over as %+v", got)
	}
	stop(t)
	if err := statError("/etc/machine-id"); !os.IsNotExist(err) {
		t.Errorf("the facade's file is left: %v", err)
	}

	made() // and it is removed without having been taken over
	stop(t)

	record = made() // and it is started with another revision
	if got := start(t, started("2", 5)); got.PID == record.PID || got.Version != 2 || !os.IsNotExist(statError(name)) {
		t.Errorf("started again as %+v", got)
	}
	stop(t)
}

func statError(path string) error {
	_, err := os.Lstat(path)
	return err
}

func TestRecordsOfOthersAndDamagedOnes(t *testing.T) {
	untouched(t)
	// A process that began as soon after the start of this machine as a sandbox-init did after that of the last.
	somebody := proc.Of(process(t, "/usr/bin/somebody", "run"))
	legacy := fmt.Sprintf(`{"incarnation":4,"revision":"1","pid":%d,"startTime":%q}`, somebody.PID, somebody.StartTime)
	note := `{"host":"x","port":22,"incarnation":3}`
	state := node.state()
	for _, c := range []struct {
		what     string
		files    map[string]string
		problem  string // of a start and of observe
		noRecord bool
	}{
		{"a managed sandbox", map[string]string{"sandbox.json": legacy, "bundle/config.json": "{}"}, "", true},
		{"a note of another machine", map[string]string{"machine.json": note}, "", true},
		{"a note, and an old record", map[string]string{"machine.json": note, "sandbox.json": legacy}, "", false},
		{"of a later time", map[string]string{"machine.json": `{"version":3,"kind":"inside"}`},
			state + `/machine.json is a record of version 3 and kind "inside", which this sandbox-init does not ` +
				"understand; use the gvisor-k3s that made it", true},
		{"of another kind", map[string]string{"machine.json": `{"version":2,"kind":"managed"}`},
			state + `/machine.json is a record of version 2 and kind "managed", which`, true},
		{"half", map[string]string{"machine.json": `{"version":2,"kind":"ins`},
			state + "/machine.json tells of a node on this machine, and it cannot be read (unexpected end of JSON " +
				"input); `gvisor-k3s destroy` removes the node, and `up` makes it anew", false},
		{"half of an old one", map[string]string{"sandbox.json": ``},
			state + "/sandbox.json tells of a node on this machine, and it cannot be read", false},
	} {
		for name, content := range c.files {
			must(t, files.Write(filepath.Join(state, name), 0o600, []byte(content)))
		}
		observed, err := Observe{Node: node}.Run()
		if c.problem != "" {
			refused(t, err, c.problem)
			_, err = started("1", 1).Run()
			refused(t, err, c.problem)
		} else if err != nil || (observed.Record == nil) != c.noRecord || observed.Alive {
			t.Errorf("%s: %+v, %v", c.what, observed, err)
		}
		stopped, err := Stop{node, nodeNetwork}.Run()
		switch {
		case c.noRecord && c.problem != "":
			refused(t, err, c.problem)
		case err != nil || stopped.Removed == c.noRecord:
			t.Errorf("%s: stopped %+v, %v", c.what, stopped, err)
		}
		if _, err := os.Lstat(state); (err == nil) != c.noRecord {
			t.Errorf("%s: after a stop the state is %v", c.what, err)
		}
		must(t, files.Remove([]string{node.Home}))
	}
	if !somebody.Runs() {
		t.Error("somebody else's process was ended")
	}
}

// Whoever is root here may stop process 1; nobody waits for it without end.
func TestProcess1ThatHangs(t *testing.T) {
	untouched(t)
	defer func(before time.Duration) { observePatience = before }(observePatience)
	observePatience = 100 * time.Millisecond
	record := start(t, started("1", 1))
	pid := put(t, "web", "web.log")
	must(t, unix.Kill(record.PID, unix.SIGSTOP))
	isStopped := func() bool {
		fields := proc.Stat(record.PID)
		return len(fields) > 0 && fields[0] == "T"
	}
	if !proc.Until(10*time.Second, isStopped) {
		t.Fatal("it is not stopped")
	}
	if observed := observe(t); !observed.Alive || observed.Answers || len(observed.Services) != 0 {
		t.Errorf("observed: %+v", observed)
	}
	if !stop(t) || proc.StartTime(record.PID) != "" || proc.StartTime(pid) != "" {
		t.Error("it was not stopped")
	}
}

func TestObserveIsInJSONAsDocumented(t *testing.T) {
	untouched(t)
	content, err := json.Marshal(observe(t, "/etc/none"))
	must(t, err)
	want := `^{"record":null,"alive":false,"answers":false,"files":{"/etc/none":{"absent":true}},"services":{},` +
		`"free":\d+,"arch":"\w+","gvisor":(true|false),"taken":\[\]}$`
	if !regexp.MustCompile(want).Match(content) {
		t.Errorf("got %s", content)
	}
	content, err = json.Marshal(Stopped{true})
	if string(content) != `{"removed":true}` {
		t.Errorf("got %s, %v", content, err)
	}
	var with Start
	must(
		t,
		json.Unmarshal([]byte(`{"version":1,"name":"dev","home":"/h","owner":"o","address":"10.0.0.1","bridge":"cni0",
		"artifacts":"/a","revision":"r","incarnation":2,"environment":["A=b"]}`), &with),
	)
	wanted := Start{Node{1, "dev", "/h"}, network{"10.0.0.1", "cni0"}, "o", "/a", "r", 2, []string{"A=b"}}
	if !reflect.DeepEqual(with, wanted) {
		t.Errorf("got %+v", with)
	}
}

func TestInputIsChecked(t *testing.T) {
	untouched(t)
	_, err := Start{Node: Node{Version: 2, Name: "../x", Home: "home"}, network: network{"::1", "a/b"}, Artifacts: "a",
		Environment: []string{"PATH"}}.Run()
	refused(
		t,
		err,
		"version 2: 1 is understood",
		`name "../x": `,
		`home: path "home": `,
		`address "::1": an IPv4 address is needed`,
		`bridge "a/b": the name of a link`,
		`artifacts: path "a": `,
		"owner: it is missing",
		"revision: it is missing",
		"incarnation 0: 1 or more",
		`environment "PATH": NAME=value is needed`,
	)
	_, err = Stop{}.Run()
	refused(t, err, "version 0: 1 is understood", `name "": `)
	_, err = Observe{Node: node, Files: []string{"x"}}.Run()
	refused(t, err, `path "x": an absolute path is needed`)
}
