package egress

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/netns"
)

const (
	inside  = "gk-egress-in"  // stands for the sandbox: its kernel is Linux's, which the far end of a tap cannot tell
	outside = "gk-egress-out" // what the host reaches and is not the host
	host    = "203.0.113.1"
	remote  = "203.0.113.2"
)

func ip(t *testing.T, args ...string) {
	t.Helper()
	if output, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v %s", strings.Join(args, " "), err, output)
	}
}

func namespaces(t *testing.T) {
	t.Helper()
	remove := func() {
		for _, name := range []string{inside, outside} {
			exec.Command("ip", "netns", "delete", name).Run()
		}
		exec.Command("ip", "link", "delete", outside).Run()
	}
	remove() // of a run that was killed
	t.Cleanup(remove)
	ip(t, "netns", "add", inside)
	ip(t, "-n", inside, "tuntap", "add", "dev", "tap0", "mode", "tap")
	ip(t, "-n", inside, "address", "add", "169.254.77.2/30", "dev", "tap0")
	ip(t, "-n", inside, "address", "add", "10.42.0.9/32", "dev", "tap0") // a pod's
	ip(t, "-n", inside, "link", "set", "tap0", "mtu", "65000", "up")
	ip(t, "-n", inside, "route", "add", "default", "via", "169.254.77.1")
	ip(t, "netns", "add", outside)
	ip(t, "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", outside)
	ip(t, "address", "add", host+"/24", "dev", outside)
	ip(t, "link", "set", outside, "up")
	ip(t, "-n", outside, "address", "add", remote+"/24", "dev", "eth0")
	ip(t, "-n", outside, "link", "set", "eth0", "up")
}

// dial connects from within the sandbox; Go would look for addresses on other threads, so both are given as numbers.
func dial(t *testing.T, from, to string) (net.Conn, error) {
	t.Helper()
	return netns.In("/run/netns/"+inside, func() (net.Conn, error) {
		return (&net.Dialer{Timeout: 10 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}).Dial("tcp4", to)
	})
}

func start(t *testing.T, resolvConf string) context.CancelFunc {
	t.Helper()
	o, err := parse([]string{"-netns=/run/netns/" + inside, "-tap=tap0", "-address=169.254.77.1/30", "-node=169.254.77.2", "-pods=10.42.0.0/16", "-resolv-conf=" + resolvConf})
	if err != nil {
		t.Fatal(err)
	}
	tap, err := openTap(o.namespace, o.tap)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := newGateway(tap, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := serveDNS(ctx, gateway, o); err != nil {
		t.Fatal(err)
	}
	return func() {
		cancel()
		gateway.Close()
		gateway.Wait()
		unix.Close(tap)
	}
}

// echo answers each connection with all that it said, once that is all; and each datagram with itself.
func echo(t *testing.T) {
	t.Helper()
	listener, err := netns.In("/run/netns/"+outside, func() (net.Listener, error) { return net.Listen("tcp4", remote+":8080") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				said, _ := io.ReadAll(conn)
				conn.Write(said)
				conn.Close()
			}()
		}
	}()
	packets, err := netns.In("/run/netns/"+outside, func() (net.PacketConn, error) { return net.ListenPacket("udp4", remote+":8080") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close() })
	go func() {
		buffer := make([]byte, 65535)
		for {
			n, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			packets.WriteTo(buffer[:n], from)
		}
	}()
}

func say(conn net.Conn, text []byte) ([]byte, error) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	go func() {
		conn.Write(text)
		conn.(*net.TCPConn).CloseWrite()
	}()
	return io.ReadAll(conn)
}

func TestEgress(t *testing.T) {
	namespaces(t)
	echo(t)
	stop := start(t, "/nonexistent")
	much := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	for _, from := range []string{"169.254.77.2", "10.42.0.9"} {
		conn, err := dial(t, from, remote+":8080")
		if err != nil {
			t.Fatalf("from %s: %v", from, err)
		}
		if got, err := say(conn, much); err != nil || !bytes.Equal(got, much) {
			t.Errorf("from %s: %d bytes came back of %d, %v", from, len(got), len(much), err)
		}
		packets, err := netns.In("/run/netns/"+inside, func() (net.Conn, error) {
			return net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(remote+":8080")))
		})
		if err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 100)
		packets.SetDeadline(time.Now().Add(10 * time.Second))
		packets.Write([]byte("datagram"))
		if n, err := packets.Read(buffer); err != nil || string(buffer[:n]) != "datagram" {
			t.Errorf("from %s: got %q, %v", from, buffer[:n], err)
		}
		packets.Close()
	}
	for _, to := range []string{remote + ":81", host + ":22", "169.254.169.254:80", "169.254.77.1:22"} {
		if conn, err := dial(t, "169.254.77.2", to); err == nil {
			conn.Close()
			t.Errorf("%s was reached", to)
		} else if !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%s: %v", to, err)
		}
	}
	// Another one takes over the tap.
	stop()
	defer start(t, "/nonexistent")()
	conn, err := dial(t, "169.254.77.2", remote+":8080")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := say(conn, []byte("again")); err != nil || string(got) != "again" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestRefusal(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1": "loopback", "127.9.9.9": "loopback", "0.0.0.0": "loopback", "169.254.169.254": "link-local", "224.0.0.1": "no single host",
		"255.255.255.255": "no single host", "192.0.3.9": "", "10.0.0.77": ""} {
		if got := refusal(netip.MustParseAddr(address)); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	namespaces(t)
	upstream := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
		answer := new(dns.Msg)
		answer.SetReply(question)
		record, _ := dns.NewRR(question.Question[0].Name + " 60 IN TXT \"an answer by " + w.LocalAddr().Network() + "\"")
		answer.Answer = append(answer.Answer, record)
		w.WriteMsg(answer)
	})}
	packets, err := net.ListenPacket("udp4", "127.0.0.153:53")
	if err != nil {
		t.Fatal(err)
	}
	upstream.PacketConn = packets
	go upstream.ActivateAndServe()
	defer upstream.Shutdown()
	resolvConf := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(server string) {
		if err := os.WriteFile(resolvConf, []byte("nameserver "+server+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	defer start(t, resolvConf)()
	ask := func() (*dns.Msg, error) {
		return netns.In("/run/netns/"+inside, func() (*dns.Msg, error) {
			question := new(dns.Msg)
			question.SetQuestion("name.example.", dns.TypeTXT)
			answer, _, err := (&dns.Client{Timeout: 10 * time.Second}).Exchange(question, "169.254.77.1:53")
			return answer, err
		})
	}
	if answer, err := ask(); err != nil || answer.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a name server: %v, %v", answer, err)
	}
	// A server on the host's loopback, which the sandbox could not ask; the file is read for each question.
	write("127.0.0.153")
	if answer, err := ask(); err != nil || !strings.Contains(fmt.Sprint(answer.Answer), "an answer by udp") {
		t.Errorf("got %v, %v", answer, err)
	}
}

func TestEverythingMissingIsToldAtOnce(t *testing.T) {
	_, err := parse(nil)
	for _, want := range []string{"-netns is missing", "-tap is missing", "-address is missing", "-node is missing", "-pods is missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
