package meshlink

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor-k3s/node/init/nstest"

	"golang.org/x/sys/unix"
)

const patience = 30 * time.Second

func TestMain(m *testing.M) {
	nstest.Enter(unix.CLONE_NEWNET)
	os.Exit(m.Run())
}

func link(t *testing.T) Link {
	return Link{
		Device: "gk-nodes", MTU: 65000, Address: netip.MustParseAddr("198.51.100.6"),
		Networks: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		Socket:   filepath.Join(t.TempDir(), "link.sock"),
	}
}

// served has a link served until the test ends.
func served(t *testing.T, l Link) {
	t.Helper()
	nstest.Need(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := net.InterfaceByName(l.Device); err == nil {
			t.Error("the device is there still")
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(l.Socket); err == nil {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatal(err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody listens")
		}
	}
}

// carrier is who carries the frames of a link, by the program for that.
type carrier struct {
	io.Writer
	io.Reader
	ended chan error
}

func attach(t *testing.T, l Link) carrier {
	input, said := io.Pipe()
	heard, output := io.Pipe()
	c := carrier{said, heard, make(chan error, 1)}
	go func() {
		err := Attach(l.Socket, input, output)
		output.CloseWithError(io.EOF)
		c.ended <- err
	}()
	t.Cleanup(func() { said.Close() })
	return c
}

func (c carrier) say(t *testing.T, frame []byte) {
	t.Helper()
	_, err := c.Write(slices.Concat(binary.BigEndian.AppendUint16(nil, uint16(len(frame))), frame))
	if err != nil {
		t.Fatal(err)
	}
}

// hear waits for a frame that begins so.
func (c carrier) hear(t *testing.T, beginning []byte) []byte {
	t.Helper()
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			t.Fatal(err)
		}
		frame := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, frame); err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(frame, beginning) {
			return frame
		}
	}
}

var (
	node  = []byte{2, 0, 198, 51, 100, 6}
	other = []byte{2, 0, 198, 51, 100, 2}
)

// question asks everybody who has the node's address (RFC 826).
func question() []byte {
	return slices.Concat(bytes.Repeat([]byte{255}, 6), other, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1},
		other, other[2:], make([]byte, 6), node[2:])
}

func TestTheNodeAnswersByTheNameThatTheBridgeKnows(t *testing.T) {
	l := link(t)
	served(t, l)
	first := attach(t, l)
	first.hear(t, nil)
	first.say(t, question())
	answer := first.hear(t, slices.Concat(other, node, []byte{8, 6}))
	if !bytes.Equal(answer[22:28], node) || !bytes.Equal(answer[28:32], node[2:]) {
		t.Errorf("the answer is % x", answer)
	}
	// Who comes later carries on, on the same device.
	second := attach(t, l)
	second.hear(t, nil)
	if err := <-first.ended; err != nil && !strings.Contains(err.Error(), "closed") {
		t.Error(err)
	}
	second.say(t, question())
	second.hear(t, slices.Concat(other, node, []byte{8, 6}))
}

func TestProblems(t *testing.T) {
	err := Link{Device: strings.Repeat("x", 16), MTU: 1, Socket: "here"}.Serve(context.Background())
	for _, want := range []string{"device", "mtu 1", "address", "here"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if err := Attach("/nowhere", strings.NewReader(""), io.Discard); err == nil {
		t.Error("attached to nobody")
	}
}
