// Package wire carries the frames of a network device over a stream of bytes, such as what an SSH session says and
// hears, to a device at its other end. Each frame is sent after its length, in two bytes; one of length zero says that
// the end is there.
package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// A Device is one end: a tap, each of whose reads and writes is a frame.
type Device interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
}

// Stream is what is heard of the other end, and what is said to it.
type Stream struct {
	In  io.ReadCloser
	Out io.WriteCloser
}

const (
	lengthSize = 2
	mostFrame  = 1<<16 - 1
	// What is read of the stream at once.
	bufferSize = 1 << 17
)

// Carry carries frames both ways until the stream or the device fails, or the context ends, and closes the stream. It
// returns why it ended. The device stays open, and may be carried again.
// there is called when the other end says that it is there, once.
func Carry(ctx context.Context, device Device, stream Stream, there func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := device.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	var both sync.WaitGroup
	both.Go(func() { cancel(toStream(device, stream.Out)) })
	both.Go(func() { cancel(toDevice(device, stream.In, there)) })
	<-ctx.Done()
	err := errors.Join(device.SetReadDeadline(time.Unix(1, 0)), stream.In.Close(), stream.Out.Close())
	both.Wait()
	return errors.Join(context.Cause(ctx), err)
}

func toStream(device Device, out io.Writer) error {
	buffer := make([]byte, lengthSize+mostFrame)
	for count := 0; ; {
		binary.BigEndian.PutUint16(buffer, uint16(count))
		if _, err := out.Write(buffer[:lengthSize+count]); err != nil {
			return fmt.Errorf("to the other end: %w", err)
		}
		var err error
		if count, err = device.Read(buffer[lengthSize:]); err != nil {
			return fmt.Errorf("from the device: %w", err)
		}
	}
}

func toDevice(device Device, in io.Reader, there func()) error {
	reader := bufio.NewReaderSize(in, bufferSize)
	buffer := make([]byte, mostFrame)
	for {
		length, err := readLength(reader)
		if err != nil {
			return fmt.Errorf("from the other end: %w", err)
		}
		if length == 0 {
			there()
			there = func() {}
			continue
		}
		frame := buffer[:length]
		if _, err := io.ReadFull(reader, frame); err != nil {
			return fmt.Errorf("from the other end: %w", err)
		}
		// One that the device does not take is lost, as it is on any wire.
		if _, err := device.Write(frame); errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("to the device: %w", err)
		}
	}
}

func readLength(reader io.Reader) (int, error) {
	var length [lengthSize]byte
	_, err := io.ReadFull(reader, length[:])
	return int(binary.BigEndian.Uint16(length[:])), err
}
