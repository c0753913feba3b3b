package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

const (
	// What this process is in a test of load, by an environment variable.
	role = "SERVICE_PROXY_LOAD"
	many = 10000
)

func TestMain(m *testing.M) {
	var err error
	what, argument, _ := strings.Cut(os.Getenv(role), " ")
	switch what {
	case "client":
		err = client(argument)
	case "server":
		err = serve(argument)
	case "alone":
		if err = raiseLoopback(); err == nil {
			os.Exit(m.Run())
		}
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
}

func raiseLoopback() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(loopback)
}

// serve keeps so many connections, each after an answer to a question, and ends them as end does.
func serve(count string) error {
	conns := make([]*net.TCPConn, number(count))
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	for range conns {
		conn, err := listener.AcceptTCP()
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(60 * time.Second))
		line, err := bufio.NewReader(conn).ReadString('\n')
		var i int
		if _, malformed := fmt.Sscanf(line, "question %d\n", &i); err != nil || malformed != nil || i >= len(conns) {
			return fmt.Errorf("a question: %q, %v", line, err)
		}
		conns[i] = conn
		fmt.Fprintf(conn, "answer %d\n", i)
	}
	return end(conns, 0)
}

// client makes so many connections.
func client(count string) error {
	conns := make([]*net.TCPConn, number(count))
	problems := make(chan error, len(conns))
	var next atomic.Int64
	var working sync.WaitGroup
	for range 8 {
		working.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(conns); i = int(next.Add(1)) - 1 {
				conn, err := (&net.Dialer{Timeout: 60 * time.Second}).Dial("tcp4", clusterIP+":8000")
				if err != nil {
					problems <- fmt.Errorf("%d: %w", i, err)
					return
				}
				conns[i] = conn.(*net.TCPConn)
				conn.SetDeadline(time.Now().Add(60 * time.Second))
				fmt.Fprintf(conn, "question %d\n", i)
				line, err := bufio.NewReader(conn).ReadString('\n')
				if want := fmt.Sprintf("answer %d\n", i); line != want {
					problems <- fmt.Errorf("%d: got %q, %v", i, line, err)
					return
				}
			}
		})
	}
	working.Wait()
	select {
	case err := <-problems:
		return err
	default:
	}
	fmt.Println("open")
	return end(conns, 1)
}

func number(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

// end waits for a line, breaks every other connection off, and tells how many were broken off at the other end.
func end(conns []*net.TCPConn, mine int) error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	for i := mine; i < len(conns); i += 2 {
		conns[i].SetLinger(0)
		conns[i].Close()
	}
	broken := 0
	for i := 1 - mine; i < len(conns); i += 2 {
		conns[i].SetDeadline(time.Now().Add(60 * time.Second))
		if n, err := conns[i].Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("%d: read %d bytes, %v", i, n, err)
		}
		broken++
	}
	fmt.Println("broken", broken)
	return nil
}

// helper is a process that has one of the ends.
type helper struct {
	orders  *os.File
	answers *bufio.Reader
}

func start(t *testing.T, what string, count int) helper {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", role, what, count))
	cmd.Stderr = os.Stderr
	in, orders, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout = in, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return helper{orders, bufio.NewReader(answers)}
}

func (h helper) says(t *testing.T) string {
	t.Helper()
	line, err := h.answers.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// resident is the memory that this process has, in KiB.
func resident(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return number(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// TestTenThousandConnections has the proxy in this process, which has no other files, and its own network.
func TestTenThousandConnections(t *testing.T) {
	if os.Getenv(role) == "" {
		runAlone(t)
		return
	}
	count := many
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	// Root may not raise the limit everywhere: not without CAP_SYS_RESOURCE, as in containers.
	raised := unix.Rlimit{Cur: 2*many + 1000, Max: max(files.Max, 2*many+1000)}
	if files.Max < raised.Cur && unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) != nil {
		count = (int(files.Max) - 500) / 2
		t.Logf("this machine lets a process open %d files, so there are %d connections", files.Max, count)
	}
	c := newCluster(t)
	servers := start(t, "server", count)
	address, err := netip.ParseAddrPort(servers.says(t))
	if err != nil {
		t.Fatal(err)
	}
	c.service("s", spec())
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{address, "ready"})
	memory := resident(t)
	begin := time.Now()
	clients := start(t, "client", count)
	expect(t, "the clients", clients.says(t), "open")
	t.Logf("%d connections, each with a question and an answer, were open after %s", count, time.Since(begin))
	t.Logf("memory: %.1f KiB for each", float64(resident(t)-memory)/float64(count))
	begin = time.Now()
	fmt.Fprintln(servers.orders, "now")
	fmt.Fprintln(clients.orders, "now")
	expect(t, "resets at the clients", clients.says(t), fmt.Sprint("broken ", (count+1)/2))
	expect(t, "resets at the servers", servers.says(t), fmt.Sprint("broken ", count/2))
	t.Logf("%d resets were passed on within %s", count, time.Since(begin))
	// The same proxy serves others now.
	c.endpoints("s", "p", v1.ProtocolTCP, endpoint{tcpServer(t, "another"), "ready"})
	expect(t, "after that", ask(t, dial(t, "tcp4", clusterIP+":8000"), "?"), "another")
}

// runAlone runs the test in a process and a network of its own.
func runAlone(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^TestTenThousandConnections$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), role+"=alone")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	report(t, cmd, "alone")
}

// TestTenThousandConnectionsInSandbox runs it in gVisor, where it is at home. RUNSC names the program, and
// RUNSC_PLATFORM the platform, if it is another one than systrap.
func TestTenThousandConnectionsInSandbox(t *testing.T) {
	runsc := os.Getenv("RUNSC")
	if runsc == "" {
		t.Skip("runs where RUNSC names a runsc binary")
	}
	platform := os.Getenv("RUNSC_PLATFORM")
	if platform == "" {
		platform = "systrap"
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	report(t, exec.Command(runsc, "--platform="+platform, "--network=none", "--ignore-cgroups", "do", "--",
		"/usr/bin/env", role+"=alone", self, "-test.v", "-test.run=^TestTenThousandConnections$", "-test.timeout=2m"),
		"in gVisor")
}

func report(t *testing.T, cmd *exec.Cmd, where string) {
	t.Helper()
	output, err := cmd.CombinedOutput()
	t.Log(strings.ReplaceAll(string(output), "--- ", where+": "))
	if err != nil || !strings.Contains(string(output), "--- PASS: TestTenThousandConnections") {
		t.Errorf("it did not pass %s: %v", where, err)
	}
}
