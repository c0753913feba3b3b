package nodewire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gvisor-k3s/host/internal/isolated"
	"gvisor-k3s/host/netns"
	"gvisor-k3s/host/network"
)

const (
	patience = 30 * time.Second
	mesh     = "gk-wired.nodes"
	far      = "198.51.100.6"
)

// as says what this program is in the place of ssh.
const as = "GVISOR_K3S_NODEWIRE_TEST_AS"

func TestMain(m *testing.M) {
	switch os.Getenv(as) {
	case "":
		isolated.Main(m)
	case "mirror":
		mirror()
	case "noise":
		_, _ = os.Stderr.WriteString(strings.Repeat("noise ", 10_000) + "\x1b[2Jlast words\n")
	}
}

// mirror is another machine, which sends each frame back to where it came from.
func mirror() {
	for {
		var length [2]byte
		if _, err := io.ReadFull(os.Stdin, length[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(os.Stdin, frame); err != nil {
			return
		}
		if len(frame) >= 12 {
			copy(frame, slices.Concat(frame[6:12], frame[:6]))
		}
		if _, err := os.Stdout.Write(slices.Concat(length[:], frame)); err != nil {
			return
		}
	}
}

// near is a node of this host.
func near() network.Network {
	return network.Network{
		Namespace: "gk-near", Host: netip.MustParsePrefix("198.51.100.1/30"), Node: netip.MustParsePrefix("198.51.100.2/30"),
		Mesh: &network.Mesh{
			Namespace: mesh, Device: "eth1", MTU: 65000, Networks: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		},
	}
}

// wired keeps a link whose program is this one, and ends it after the test.
func wired(t *testing.T, is string) Spec {
	t.Setenv(as, is)
	spec := Spec{
		Namespace: mesh, Link: "gk-far", Node: netip.MustParseAddr(far), MTU: 65000,
		Command: []string{"/proc/self/exe"}, Log: filepath.Join(t.TempDir(), "wire.log"),
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- spec.keep(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(network.File(mesh)); err == nil {
			t.Error("the namespace is there still")
		}
	})
	return spec
}

// logged waits until the log says something.
func logged(t *testing.T, spec Spec, words string) string {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(spec.Log)
		if strings.Contains(string(text), words) {
			return string(text)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q (%v):\n%s", words, err, text)
		}
	}
}

func TestANodeElsewhereIsOnTheBridge(t *testing.T) {
	spec := wired(t, "mirror")
	logged(t, spec, Attached)
	if err := network.Up(near()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(network.Down(ctx, "gk-near"), network.LeaveMesh(ctx, mesh, "gk-near")); err != nil {
			t.Error(err)
		}
	})
	_, err := netns.In(network.File("gk-near"), func() (any, error) { return nil, echoed() })
	if err != nil {
		t.Fatal(err)
	}
}

// echoed sends a frame to the node elsewhere by the one name that the bridge knows of it, and wants it back.
func echoed() error {
	link, err := netlink.LinkByName("eth1")
	if err != nil {
		return err
	}
	const protocol, inNetworkOrder = 0x88b5, 0xb588 // for experiments
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, inNetworkOrder)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	at := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Protocol: inNetworkOrder}
	err = errors.Join(unix.Bind(socket, at),
		unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	if err != nil {
		return err
	}
	there, here := netip.MustParseAddr(far).As4(), near().Node.Addr().As4()
	sent := slices.Concat([]byte{2, 0}, there[:], []byte{2, 0}, here[:], []byte{protocol >> 8, protocol & 0xff},
		make([]byte, 60_000))
	if err := unix.Sendto(socket, sent, 0, at); err != nil {
		return err
	}
	got := make([]byte, 1<<16)
	count, err := unix.Read(socket, got)
	if err != nil {
		return err
	}
	if want := slices.Concat(sent[6:12], sent[:6], sent[12:]); !slices.Equal(got[:count], want) {
		return fmt.Errorf("%d bytes come back, from %x to %x", count, got[6:12], got[:6])
	}
	return nil
}

func TestAProgramThatEndsIsStartedAgainAndItsLastWordsAreKept(t *testing.T) {
	spec := wired(t, "noise")
	text := logged(t, spec, "last words")
	if len(text) > 3*mostSaid {
		t.Errorf("the log has %d bytes after one failure", len(text))
	}
	if strings.Contains(text, "\x1b") {
		t.Error("what a terminal would follow is in the log")
	}
	for deadline := time.Now().Add(patience); strings.Count(logged(t, spec, "it has ended"), "it has ended") < 2; {
		if time.Now().After(deadline) {
			t.Fatal("it is not started again")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestProblems(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                    "command and log",
		`{"command":["true"]}`:  "command and log",
		`{"unknown":1}`:         "unknown field",
		`{"node":"nobody"}`:     "nobody",
		`{"command":"rm -r /"}`: "cannot unmarshal",
	} {
		if _, err := parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	log := filepath.Join(t.TempDir(), "log")
	wrong := Spec{Namespace: "../x", Link: "a/b", MTU: 1, Command: []string{"true"}, Log: log}
	err := wrong.keep(context.Background())
	for _, want := range []string{"../x", "a/b", "mtu is 1", "no IPv4 address"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
}
