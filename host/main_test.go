package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/internal/isolated"
	"gvisor-k3s/host/internal/testnet"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/process"
	"gvisor-k3s/host/ready"
)

// asProgram is an environment variable that has this file be the program, whatever its arguments are.
const asProgram = "GVISOR_K3S_PROGRAM"

// TestMain is also the program: what it starts, and what tests start, is this very file.
func TestMain(m *testing.M) {
	commands["test-server"] = server
	commands["test-runsc"] = fakeRunsc
	commands["test-gvisor"] = inGvisor
	commands["test-sandbox"] = fakeSandbox
	commands["test-no-cgroups"] = withoutCgroups
	commands["test-few-files"] = withFewFiles
	if os.Getenv(asProgram) != "" || len(os.Args) > 1 && commands[os.Args[1]] != nil {
		main()
		return
	}
	isolated.Main(m)
}

// program is a command that runs.
type program struct {
	*exec.Cmd
	said   error // what it told of being ready
	output *strings.Builder
}

// start runs a command of the program's until it is ready, or says that it will not be.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.Command("/proc/self/exe", args...), output: &strings.Builder{}}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p.Stdout, p.Stderr, p.ExtraFiles = p.output, p.output, []*os.File{w}
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = p.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	r.SetReadDeadline(time.Now().Add(60 * time.Second))
	p.said = ready.Await(r)
	return p
}

func startEgress(t *testing.T, args ...string) *program {
	t.Helper()
	p := start(t, append([]string{
		"egress", "-netns=" + network.File(testnet.Inside), "-tap=tap0", "-address=" + testnet.Gateway + "/30",
		"-node=" + testnet.Node, "-pods=10.42.0.0/16", "-resolv-conf=/nonexistent",
	}, args...)...)
	if p.said != nil {
		t.Fatalf("the way out is not ready: %v\n%s", p.said, p.output)
	}
	testnet.AwaitUp(t, testnet.Inside, "tap0")
	return p
}

// status is what the kernel tells of a thread, by the names of proc_pid_status(5); nothing of one that has ended.
func status(t *testing.T, folder string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, "status"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	all := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		all[name] = strings.Join(strings.Fields(value), " ")
	}
	return all
}

// resident is the memory that a process has, in KiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text := status(t, fmt.Sprintf("/proc/%d", pid))["VmRSS"]
	number, err := strconv.Atoi(strings.TrimSuffix(text, " kB"))
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// openSockets counts the sockets that a process has.
func openSockets(t *testing.T, pid int) int {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "socket:") {
			count++
		}
	}
	return count
}

func TestTheWayOutHasGivenUpItsRights(t *testing.T) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	p := startEgress(t)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.Process.Pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, thread := range threads {
		got := status(t, thread)
		if len(got) == 0 {
			continue // it has ended, as one does that was in the sandbox's namespace
		}
		for name, want := range map[string]string{
			"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "", "NoNewPrivs": "1",
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
			"CapAmb": "0000000000000000",
		} {
			if got[name] != want {
				t.Errorf("%s: %s is %q, want %q", thread, name, got[name], want)
			}
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		fields := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "Max data size") && fields[3] == "unlimited":
			t.Error(line)
		case strings.HasPrefix(line, "Max open files") && fields[3] != fields[4]:
			t.Error(line)
		}
	}
	conn, err := testnet.Dial(testnet.Node, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func hasLandlock() bool {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return errno == 0 && version > 0
}

// It reads resolv.conf for each question, as nobody, in the folder in which that was, and nowhere else.
func TestTheWayOutReadsResolvConfAlone(t *testing.T) {
	testnet.Up(t)
	packets, err := net.ListenPacket("udp4", "127.0.0.153:53")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		answer := new(dns.Msg)
		w.WriteMsg(answer.SetReply(m))
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
	allowed, forbidden := t.TempDir(), t.TempDir()
	for _, folder := range []string{filepath.Dir(allowed), allowed, filepath.Dir(forbidden), forbidden} {
		if err := os.Chmod(folder, 0o755); err != nil { // as the folders of such files are
			t.Fatal(err)
		}
	}
	for _, folder := range []string{allowed, forbidden} {
		if err := os.WriteFile(filepath.Join(folder, "real"), []byte("nameserver 127.0.0.153\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	resolvConf := filepath.Join(allowed, "resolv.conf")
	link := func(target string) {
		if err := errors.Join(os.Symlink(target, resolvConf+".new"), os.Rename(resolvConf+".new", resolvConf)); err != nil {
			t.Fatal(err)
		}
	}
	link("/nonexistent")
	startEgress(t, "-resolv-conf="+resolvConf)
	ask := func() int {
		t.Helper()
		return testnet.In(t, testnet.Inside, func() (int, error) {
			question := new(dns.Msg).SetQuestion("name.example.", dns.TypeA)
			answer, _, err := (&dns.Client{Timeout: 30 * time.Second}).Exchange(question, testnet.Gateway+":53")
			if err != nil {
				return 0, err
			}
			return answer.Rcode, nil
		})
	}
	if code := ask(); code != dns.RcodeServerFailure {
		t.Errorf("without a file: %s", dns.RcodeToString[code])
	}
	link("real")
	if code := ask(); code != dns.RcodeSuccess {
		t.Errorf("with a file beside it: %s", dns.RcodeToString[code])
	}
	if !hasLandlock() {
		t.Skip("the kernel has no Landlock")
	}
	link(filepath.Join(forbidden, "real"))
	if code := ask(); code != dns.RcodeServerFailure {
		t.Errorf("with a file elsewhere: %s", dns.RcodeToString[code])
	}
}

// What it was told when it was started it would have forgotten with root's rights.
func TestTheWayOutEndsWithWhoStartedIt(t *testing.T) {
	testnet.Up(t)
	shell := exec.Command("/bin/sh", "-c", `"$@" -parent=$$ & wait`, "sh", "/proc/"+strconv.Itoa(os.Getpid())+"/exe",
		"egress", "-netns="+network.File(testnet.Inside), "-tap=tap0", "-address="+testnet.Gateway+"/30",
		"-node="+testnet.Node, "-pods=10.42.0.0/16")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	shell.ExtraFiles = []*os.File{w}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	defer shell.Wait()
	if err := ready.Await(r); err != nil {
		t.Fatal(err)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", shell.Process.Pid, shell.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatal(err)
	}
	egress, ok := process.Of(pid)
	if !ok {
		t.Fatalf("the way out has ended: process %d", pid)
	}
	shell.Process.Kill()
	testnet.Eventually(t, "the way out ends", func() bool { return !egress.Alive() })
}

func TestTheWayOutTellsWhyItDoesNotStart(t *testing.T) {
	testnet.UpOutside(t)
	for want, args := range map[string][]string{
		"-tap is missing": {"egress"},
		"no such network interface": {
			"egress", "-netns=" + network.File(testnet.Outside), "-tap=tap0", "-address=169.254.77.1/30",
			"-node=169.254.77.2", "-pods=10.42.0.0/16",
		},
	} {
		p := start(t, args...)
		if p.said == nil || !strings.Contains(p.said.Error(), want) {
			t.Errorf("got %v, want %q", p.said, want)
		}
		if err := p.Wait(); err == nil || !strings.Contains(p.output.String(), want) {
			t.Errorf("it ended with %v and said %q", err, p.output)
		}
	}
}
