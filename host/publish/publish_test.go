package publish

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// server answers each line with its name.
func server(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
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
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					fmt.Fprintln(conn, name)
				}
			}()
		}
	}()
	return netip.MustParseAddrPort(listener.Addr().String())
}

func free(t *testing.T) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return netip.MustParseAddrPort(listener.Addr().String())
}

func dial(t *testing.T, address netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp4", address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

func ask(t *testing.T, conn net.Conn) string {
	t.Helper()
	fmt.Fprintln(conn, "?")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestPublishes(t *testing.T) {
	a, b := server(t, "a"), server(t, "b")
	first, second := free(t), free(t)
	var publisher Publisher
	defer publisher.Set(nil)
	if err := publisher.Set([]Port{{first, a}}); err != nil {
		t.Fatal(err)
	}
	open := dial(t, first)
	if got := ask(t, open); got != "a" {
		t.Errorf("%s is answered by %q", first, got)
	}
	if err := publisher.Set([]Port{{first, b}, {second, a}}); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[netip.AddrPort]string{first: "b", second: "a"} {
		if got := ask(t, dial(t, address)); got != want {
			t.Errorf("%s is answered by %q, want %q", address, got, want)
		}
	}
	if got := ask(t, open); got != "a" {
		t.Errorf("the open connection is answered by %q", got)
	}
	if err := publisher.Set(nil); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp4", second.String()); err == nil {
		conn.Close()
		t.Errorf("%s is still published", second)
	}
}

// A port that somebody has is told, and the others are published.
func TestPublishesTheRest(t *testing.T) {
	a := server(t, "a")
	mine := free(t)
	var publisher Publisher
	defer publisher.Set(nil)
	err := publisher.Set([]Port{{a, a}, {mine, a}})
	if err == nil || !strings.Contains(err.Error(), "ports: "+a.String()+" cannot be listened on: ") {
		t.Errorf("of a port that is taken it tells %v", err)
	}
	if got := ask(t, dial(t, mine)); got != "a" {
		t.Errorf("the other is answered by %q", got)
	}
}

func TestResetsWhereNobodyAnswers(t *testing.T) {
	mine := free(t)
	var publisher Publisher
	defer publisher.Set(nil)
	if err := publisher.Set([]Port{{mine, free(t)}}); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp4", mine.String())
	if err == nil {
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the caller gets %v", err)
	}
}
