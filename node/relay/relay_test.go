package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Nothing here is to take long; a test that hangs ends with this.
const patience = 30 * time.Second

// pair makes a connection through the loopback device, and returns both of its ends.
func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialed, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{dialed, accepted} {
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(patience))
	}
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// joined is a client and a server with a relay between them.
type joined struct {
	client, server *net.TCPConn
	ended          chan struct{}
}

func join(t *testing.T) joined {
	t.Helper()
	client, a := pair(t)
	server, b := pair(t)
	for _, conn := range []net.Conn{a, b} {
		conn.SetDeadline(time.Time{})
	}
	j := joined{client, server, make(chan struct{})}
	go func() {
		Join(TCP(a), TCP(b))
		close(j.ended)
	}()
	return j
}

// over fails the test unless the relay ends.
func (j joined) over(t *testing.T) {
	t.Helper()
	select {
	case <-j.ended:
	case <-time.After(patience):
		t.Fatal("the relay has not ended")
	}
}

// turned is the same relay, seen from its other end.
func (j joined) turned() joined { return joined{j.server, j.client, j.ended} }

// bothWays runs a test with each end as the client.
func bothWays(t *testing.T, test func(t *testing.T, j joined)) {
	t.Run("one way", func(t *testing.T) { test(t, join(t)) })
	t.Run("the other way", func(t *testing.T) { test(t, join(t).turned()) })
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

func breakOff(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}

// isBroken fails the test unless nothing is to be read from a connection but that it has broken off.
func isBroken(t *testing.T, conn net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) || len(rest) > 0 {
		t.Errorf("got %q, %v, want a reset", rest, err)
	}
}

// isOver fails the test unless an end has said all.
func isOver(t *testing.T, conn net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(conn); err != nil || len(rest) > 0 {
		t.Errorf("got %q, %v, want nothing more", rest, err)
	}
}

func TestMuchBothWaysAtOnce(t *testing.T) {
	j := join(t)
	much := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	var talking sync.WaitGroup
	for _, conn := range []*net.TCPConn{j.client, j.server} {
		talking.Go(func() {
			conn.Write(much)
			conn.CloseWrite()
		})
		talking.Go(func() {
			if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, much) {
				t.Errorf("%d bytes of %d arrived, %v", len(got), len(much), err)
			}
		})
	}
	talking.Wait()
	j.over(t)
}

func TestWhoHasSaidAllListensStill(t *testing.T) {
	bothWays(t, func(t *testing.T, j joined) {
		send(t, j.client, "question")
		j.client.CloseWrite()
		receive(t, j.server, "question")
		isOver(t, j.server)
		send(t, j.server, "answer")
		receive(t, j.client, "answer")
		send(t, j.server, "more")
		receive(t, j.client, "more")
		j.server.Close()
		isOver(t, j.client)
		j.over(t)
	})
}

func TestAReset(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, j joined){
		"at once": func(*testing.T, joined) {},
		"in the midst": func(t *testing.T, j joined) {
			send(t, j.client, "question")
			receive(t, j.server, "question")
		},
		"of who has said all": func(t *testing.T, j joined) {
			j.client.CloseWrite()
			isOver(t, j.server)
		},
		"of who was told all": func(t *testing.T, j joined) {
			j.server.CloseWrite()
			isOver(t, j.client)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, j joined) {
				prepare(t, j)
				breakOff(j.client)
				j.over(t)
				if name == "of who has said all" {
					// The end has read that all was said, and reads no error again; writing tells, once the reset is there.
					var err error
					for err == nil {
						_, err = j.server.Write([]byte("?"))
					}
					if !errors.Is(err, syscall.EPIPE) {
						t.Errorf("writing: %v", err)
					}
					return
				}
				isBroken(t, j.server)
			})
		})
	}
}

// failureOf is what ends a connection. It is read as a relay reads it, since the test is in the same plight.
func failureOf(conn Conn) error {
	for {
		buffer, _, err := conn.Receive()
		if err != nil {
			return err
		}
		Give(buffer)
	}
}

// Two goroutines use a connection that breaks off, and the kernel tells only one of them. The other must not take it
// for the end of what was said.
func TestABrokenDownloadNeverLooksWhole(t *testing.T) {
	for range 300 {
		j := join(t)
		writing := make(chan struct{})
		go func() {
			defer close(writing)
			for {
				if _, err := j.client.Write([]byte("the client talks meanwhile")); err != nil {
					return
				}
			}
		}()
		send(t, j.server, "half of a download")
		breakOff(j.server)
		if err := failureOf(TCP(j.client)); err == io.EOF {
			t.Fatal("it looks whole")
		}
		j.client.Close()
		<-writing
		j.over(t)
	}
}

// A buffer for each would be 128 KiB for each connection.
func TestIdleConnectionsHaveNoBuffers(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what is in pools is gone with the second one
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	const count = 200
	before := heap()
	var all []joined
	for range count {
		j := join(t)
		send(t, j.client, "question")
		receive(t, j.server, "question")
		send(t, j.server, "answer")
		receive(t, j.client, "answer")
		all = append(all, j)
	}
	if each := (int64(heap()) - int64(before)) / count; each > 32<<10 {
		t.Errorf("%d bytes for each connection", each)
	}
	for _, j := range all {
		j.client.Close()
		j.server.Close()
		j.over(t)
	}
}

// TestInSandbox runs the tests in gVisor, whose sockets the service proxy relays. RUNSC names the program, and
// RUNSC_PLATFORM the platform, if it is another one than systrap.
func TestInSandbox(t *testing.T) {
	runsc := os.Getenv("RUNSC")
	if runsc == "" {
		t.Skip("runs where RUNSC names a runsc binary")
	}
	platform := os.Getenv("RUNSC_PLATFORM")
	if platform == "" {
		platform = "systrap"
	}
	binary := filepath.Join(t.TempDir(), "relay.test")
	if output, err := exec.Command("go", "test", "-c", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	cmd := exec.Command(runsc, "--platform="+platform, "--network=none", "--ignore-cgroups", "do", "--", binary,
		"-test.v", "-test.timeout=5m", "-test.skip=TestInSandbox")
	output, err := cmd.CombinedOutput()
	t.Log(strings.ReplaceAll(string(output), "--- ", "in gVisor: "))
	if err != nil {
		t.Errorf("the tests failed in gVisor: %v", err)
	}
	if !strings.Contains(string(output), "PASS: TestABrokenDownloadNeverLooksWhole") {
		t.Error("a test was not run in gVisor")
	}
}
