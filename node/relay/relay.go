// Package relay joins two connections: what one end says the other hears, and so do their ends and their resets.
//
// A connection that says nothing costs no buffer, of which there are more than connections that say something: 10,000
// idle ones are two goroutines each.
package relay

import (
	"io"
	"sync"
	"sync/atomic"
)

// Buffer is what is read at once; see [Take].
type Buffer [64 << 10]byte

var buffers = sync.Pool{New: func() any { return new(Buffer) }}

// Take gets a buffer. It is for a [Conn], which takes one when there is something to read.
func Take() *Buffer { return buffers.Get().(*Buffer) }

// Give takes a buffer back.
func Give(buffer *Buffer) { buffers.Put(buffer) }

// Conn is a connection to one of the two ends. One goroutine reads while another one writes, and either may end it.
type Conn interface {
	// Receive waits for what the end says, in a buffer that becomes the caller's. It returns [io.EOF] once the end has
	// said all, and that only: a connection that broke off is another error, also if it broke before this was called.
	Receive() (*Buffer, int, error)
	io.Writer
	// CloseWrite tells the end that all was said.
	CloseWrite() error
	// Broken waits, after Receive has returned [io.EOF], until the connection has broken off or is closed here.
	Broken()
	// Close ends the connection in good order. It may be called again, and wakes who waits.
	Close() error
	// Reset ends the connection so that the end sees an error, and not the end of what was said.
	Reset()
}

// Join copies both ways until both ends have said all. A connection that breaks off breaks off the other: no answer is
// better than half of one.
func Join(a, b Conn) {
	var open atomic.Int32
	open.Store(2)
	var other sync.WaitGroup
	other.Go(func() { oneWay(a, b, &open) })
	oneWay(b, a, &open)
	other.Wait()
}

// oneWay copies to an end what the other one says. Who is the last of the two to have copied all closes both.
func oneWay(to, from Conn, open *atomic.Int32) {
	if err := pass(to, from); err != io.EOF {
		reset(to, from)
		return
	}
	// Before the end hears of it: from then on the connection may look broken and be well, if it is the last one.
	last := open.Add(-1) == 0
	if err := to.CloseWrite(); err != nil {
		reset(to, from)
		return
	}
	if last {
		to.Close()
		from.Close()
		return
	}
	// It has said all and listens still. Nobody reads from it any more, so nobody else would see it break off.
	if from.Broken(); open.Load() > 0 {
		reset(to, from)
	}
}

func pass(to, from Conn) error {
	for {
		buffer, n, err := from.Receive()
		if err != nil {
			return err
		}
		_, err = to.Write(buffer[:n])
		Give(buffer)
		if err != nil {
			return err
		}
	}
}

func reset(a, b Conn) {
	a.Reset()
	b.Reset()
}
