package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"gvisor-k3s/host/internal/testnet"
	"gvisor-k3s/host/netns"
	"gvisor-k3s/host/network"
)

// How many connections are open at once.
const many = 10000

// inParallel does something so many times, on threads in the sandbox's namespace.
func inParallel(t *testing.T, count int, do func(i int) error) {
	t.Helper()
	const threads = 8
	var next atomic.Int64
	var working sync.WaitGroup
	for range threads {
		working.Go(func() {
			_, err := netns.In(network.File(testnet.Inside), func() (any, error) {
				for i := int(next.Add(1)) - 1; i < count; i = int(next.Add(1)) - 1 {
					if err := do(i); err != nil {
						return nil, fmt.Errorf("%d: %w", i, err)
					}
				}
				return nil, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	working.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// server is the command that is asked, in a process of its own, since one may not have as many files open as both ends
// have. It takes so many connections, answers a question on each, and then does as it is told by lines on its standard
// input: "reset N" breaks off the connection of the question N, "await N" waits until that is broken off at the other
// end.
func server(args []string) error {
	file := os.NewFile(4, "listener")
	shared, err := net.FileListener(file)
	if err != nil {
		return err
	}
	listener := shared.(*net.TCPListener)
	conns := make([]*net.TCPConn, many)
	for range many {
		conn, err := listener.AcceptTCP()
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(60 * time.Second))
		line, err := bufio.NewReader(conn).ReadString('\n')
		var i int
		if _, malformed := fmt.Sscanf(line, "question %d\n", &i); err != nil || malformed != nil || i >= many {
			return fmt.Errorf("a question: %q, %v", line, err)
		}
		conns[i] = conn
		fmt.Fprintf(conn, "answer %d\n", i)
	}
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		var order string
		var i int
		if _, err := fmt.Sscan(orders.Text(), &order, &i); err != nil {
			return err
		}
		conns[i].SetDeadline(time.Now().Add(60 * time.Second))
		if order == "reset" {
			conns[i].SetLinger(0)
			conns[i].Close()
		} else if n, err := conns[i].Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("%d: read %d bytes, %v", i, n, err)
		} else {
			fmt.Println("broken", i)
		}
	}
	return nil
}

func TestTenThousandConnections(t *testing.T) {
	testnet.Up(t)
	listener := testnet.Listen(t, 8080)
	egress := startEgress(t)
	pid := egress.Process.Pid
	sockets, memory := openSockets(t, pid), resident(t, pid)

	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	serving := exec.Command("/proc/self/exe", "test-server")
	serving.Stderr, serving.ExtraFiles = os.Stderr, []*os.File{nil, file}
	orders, err := serving.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := serving.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serving.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		serving.Process.Kill()
		serving.Wait()
	})
	file.Close()
	dialed := make([]*net.TCPConn, many)
	begin := time.Now()
	inParallel(t, many, func(i int) error {
		conn, err := (&net.Dialer{Timeout: 60 * time.Second}).Dial("tcp4", listener.Addr().String())
		if err != nil {
			return err
		}
		dialed[i] = conn.(*net.TCPConn)
		conn.SetDeadline(time.Now().Add(60 * time.Second))
		fmt.Fprintf(conn, "question %d\n", i)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if want := fmt.Sprintf("answer %d\n", i); line != want {
			return fmt.Errorf("got %q, %v", line, err)
		}
		return nil
	})
	t.Logf("%d connections, each with a question and an answer, were open after %s", many, time.Since(begin))
	if open := openSockets(t, pid) - sockets; open != many {
		t.Errorf("%d sockets for %d connections", open, many)
	}
	t.Logf("memory: %.1f KiB for each", float64(resident(t, pid)-memory)/many)

	// Half of them is broken off at one end, and half at the other; each other end learns of that, and of nothing else.
	begin = time.Now()
	for i := 0; i < many; i += 2 {
		dialed[i].SetLinger(0)
		dialed[i].Close()
		fmt.Fprintln(orders, "reset", i+1)
	}
	go func() {
		for i := 0; i < many; i += 2 {
			fmt.Fprintln(orders, "await", i)
		}
		orders.Close()
	}()
	broken := 0
	for i := 1; i < many; i += 2 {
		dialed[i].SetDeadline(time.Now().Add(60 * time.Second))
		if n, err := dialed[i].Read(make([]byte, 1)); errors.Is(err, syscall.ECONNRESET) {
			broken++
		} else {
			t.Errorf("%d: read %d bytes, %v", i, n, err)
		}
		dialed[i].Close()
	}
	for lines := bufio.NewScanner(answers); lines.Scan(); {
		broken++
	}
	if broken != many {
		t.Errorf("%d resets arrived of %d", broken, many)
	}
	t.Logf("%d resets were passed on within %s", broken, time.Since(begin))
	testnet.Eventually(t, "all sockets are closed", func() bool { return openSockets(t, pid) == sockets })
	t.Logf("memory after that: %d KiB, and %d before", resident(t, pid), memory)
	// It takes connections as before. The server has ended, and so nobody else does.
	listener.SetDeadline(time.Now().Add(60 * time.Second))
	conn, err := testnet.Dial(testnet.Node, listener.Addr().String())
	if err != nil {
		t.Fatalf("after that: %v", err)
	}
	conn.Close()
}

// udpSockets counts those of the host that are connected to an address.
func udpSockets(t *testing.T, address string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/udp")
	if err != nil {
		t.Fatal(err)
	}
	remote := netip.MustParseAddr(address).As4()
	return strings.Count(string(text), fmt.Sprintf(" %02X%02X%02X%02X:", remote[3], remote[2], remote[1], remote[0]))
}

func TestAFloodOfDatagrams(t *testing.T) {
	testnet.Up(t)
	egress := startEgress(t)
	pid := egress.Process.Pid
	sockets, memory := openSockets(t, pid), resident(t, pid)
	// So many sources that the caps of all of them are more than that of all flows.
	sources := []string{testnet.Node, testnet.Pod}
	for i := range 3 {
		address := fmt.Sprintf("10.42.1.%d", i+1)
		testnet.AddAddress(t, testnet.Inside, "tap0", address+"/32")
		sources = append(sources, address)
	}
	const perSource, total, ending = 2048, 4096, 512
	// Nobody there answers, nor says that nobody is there: the datagrams are sent to an address that the machine behind
	// the link does not have.
	const nobody = "203.0.113.77"
	link, err := netlink.LinkByName(testnet.Outside)
	if err != nil {
		t.Fatal(err)
	}
	hardware := testnet.In(t, testnet.Outside, func() (net.HardwareAddr, error) {
		device, err := net.InterfaceByName("eth0")
		if err != nil {
			return nil, err
		}
		return device.HardwareAddr, nil
	})
	neighbour := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(nobody), HardwareAddr: hardware,
	}
	if err := netlink.NeighAdd(neighbour); err != nil {
		t.Fatal(err)
	}
	sent := func() uint64 {
		link, err := netlink.LinkByName(testnet.Outside)
		if err != nil {
			t.Fatal(err)
		}
		return link.Attrs().Statistics.TxPackets
	}
	most := 0
	flood := func(source string, limit int) {
		t.Helper()
		socket := testnet.In(t, testnet.Inside, func() (*net.UDPConn, error) {
			return net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(source)})
		})
		defer socket.Close()
		// So many at a time as there is room for in the tap's queue, or the kernel would lose them.
		const batch = 100
		for port := 20000; port < 20000+many; {
			before := sent()
			for range batch {
				to := netip.AddrPortFrom(netip.MustParseAddr(nobody), uint16(port))
				if _, err := socket.WriteToUDPAddrPort([]byte("flood"), to); err != nil {
					t.Fatal(err)
				}
				port++
			}
			testnet.Eventually(t, "all are sent", func() bool { return sent() >= before+batch })
			open := udpSockets(t, nobody)
			if open > limit+ending {
				t.Errorf("%d flows are open, of %d", open, limit)
			}
			most = max(most, open)
		}
		testnet.Eventually(t, "as many flows are open as may be", func() bool { return udpSockets(t, nobody) == limit })
	}
	begin := time.Now()
	flood(sources[0], perSource)
	t.Logf("%d datagrams to as many ports within %s; at most %d flows were open", many, time.Since(begin), most)
	t.Logf("memory: %.1f KiB for each of %d flows", float64(resident(t, pid)-memory)/perSource, perSource)
	for _, source := range sources[1:] {
		flood(source, min(total, udpSockets(t, nobody)+perSource))
	}
	t.Logf("of %d sources: at most %d flows were open", len(sources), most)

	// The host has its half of the ports, all that are left included.
	var own []*net.UDPConn
	for range 10000 {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(testnet.Host)})
		if err != nil {
			t.Fatalf("the host's %dth socket: %v", len(own), err)
		}
		own = append(own, conn)
	}
	for _, conn := range own {
		conn.Close()
	}
	// A flow of one who floods not is made all the same.
	packets := testnet.ListenPacket(t, 8080)
	conn := testnet.DialUDP(t, testnet.Node, 0, packets.LocalAddr().String())
	defer conn.Close()
	packets.SetDeadline(time.Now().Add(60 * time.Second))
	conn.Write([]byte("question"))
	buffer := make([]byte, 100)
	n, from, err := packets.ReadFromUDPAddrPort(buffer)
	if err != nil || string(buffer[:n]) != "question" {
		t.Fatalf("got %q, %v", buffer[:n], err)
	}
	packets.WriteToUDPAddrPort([]byte("answer"), from)
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != "answer" {
		t.Errorf("got %q, %v", buffer[:n], err)
	}
	if open := openSockets(t, pid) - sockets; open > total+ending {
		t.Errorf("%d sockets are open", open)
	}
}
