package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"testing"
	"testing/synctest"
)

// tap is a device in memory: what is said to it is what its other half hears, frame by frame.
type tap struct {
	net.Conn // has the deadline
	in, out  chan []byte
	refuses  bool
}

func (t *tap) Read(buffer []byte) (int, error) {
	ended := make(chan error, 1)
	go func() { // the deadline of the connection that nobody writes to
		_, err := t.Conn.Read(make([]byte, 1))
		ended <- err
	}()
	select {
	case frame := <-t.in:
		return copy(buffer, frame), nil
	case err := <-ended:
		return 0, err
	}
}

func (t *tap) Write(frame []byte) (int, error) {
	if t.refuses {
		return 0, errors.New("no such frame")
	}
	t.out <- bytes.Clone(frame)
	return len(frame), nil
}

func newTap(t *testing.T) *tap {
	near, far := net.Pipe()
	t.Cleanup(func() { errors.Join(near.Close(), far.Close()) })
	return &tap{Conn: near, in: make(chan []byte), out: make(chan []byte, 1000)}
}

// streams are the two ends of a stream.
func streams() (a, b Stream) {
	toB, fromA := io.Pipe()
	toA, fromB := io.Pipe()
	return Stream{toA, fromA}, Stream{toB, fromB}
}

func TestFramesOfEveryLengthArriveWhole(t *testing.T) {
	left, right := newTap(t), newTap(t)
	a, b := streams()
	ctx, cancel := context.WithCancel(t.Context())
	ended, there := make(chan error, 2), make(chan bool, 2)
	for device, stream := range map[*tap]Stream{left: a, right: b} {
		go func() { ended <- Carry(ctx, device, stream, func() { there <- true }) }()
	}
	<-there
	<-there
	random := rand.New(rand.NewSource(1))
	for _, length := range []int{1, 2, 14, 60, 255, 256, 1500, 65014, mostFrame} {
		for _, way := range []struct{ from, to *tap }{{left, right}, {right, left}} {
			frame := make([]byte, length)
			random.Read(frame)
			way.from.in <- frame
			if got := <-way.to.out; !bytes.Equal(got, frame) {
				t.Errorf("%d bytes are %d at the other end, or others", length, len(got))
			}
		}
	}
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) && !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
	}
}

func TestADeviceIsCarriedAgainAfterAStreamThatBroke(t *testing.T) {
	left, right := newTap(t), newTap(t)
	for round := range 3 {
		a, b := streams()
		first, second := make(chan error, 1), make(chan error, 1)
		there := make(chan bool, 1)
		go func() { first <- Carry(t.Context(), left, a, func() { there <- true }) }()
		go func() { second <- Carry(t.Context(), right, b, func() {}) }()
		<-there
		left.in <- fmt.Append(nil, "frame ", round)
		if got := string(<-right.out); got != fmt.Sprint("frame ", round) {
			t.Errorf("round %d: %q", round, got)
		}
		b.Out.Close()
		for _, end := range []chan error{first, second} {
			if err := <-end; err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("round %d ended with %v", round, err)
			}
		}
	}
}

func TestWhatADeviceDoesNotTakeIsLostAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device := &tap{in: make(chan []byte), out: make(chan []byte, 9), refuses: true}
		frames := []byte{0, 0, 0, 2, 'a', 'b', 0, 3, 'c', 'd', 'e', 0, 9, 'f'}
		times := 0
		err := toDevice(device, bytes.NewReader(append([]byte{0, 0}, frames...)), func() { times++ })
		if times != 1 {
			t.Errorf("it is told %d times that the other end is there", times)
		}
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a frame that is cut off: %v", err)
		}
		device.refuses = false
		err = toDevice(device, bytes.NewReader(frames[2:11]), func() {})
		if !errors.Is(err, io.EOF) || len(device.out) != 2 {
			t.Errorf("%v, and %d frames", err, len(device.out))
		}
	})
}
