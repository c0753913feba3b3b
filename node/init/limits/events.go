package limits

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Containerd tells containerd of a container that is out of memory, as its shim does where the kernel tells the shim.
// By that its CRI plugin gives the reason OOMKilled. It is asked by ttrpc (containerd/ttrpc, PROTOCOL.md) for one thing
// only, which takes less than its client library with all that this needs.
func Containerd(socket string) func(ctx context.Context, container string) error {
	return func(ctx context.Context, container string) error {
		connection, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		defer connection.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = connection.SetDeadline(deadline)
		}
		if err := ask(connection, forward(container, time.Now())); err != nil {
			return fmt.Errorf("%s: %w", socket, err)
		}
		return nil
	}
}

// forward is a request to containerd.services.events.ttrpc.v1.Events/Forward with a TaskOOM in its envelope.
func forward(container string, now time.Time) []byte {
	var timestamp []byte
	timestamp = number64(timestamp, 1, uint64(now.Unix()))
	timestamp = number64(timestamp, 2, uint64(now.Nanosecond()))
	event := text(text(nil, 1, "containerd.events.TaskOOM"), 2, string(text(nil, 1, container)))
	envelope := text(nil, 1, string(timestamp))
	envelope = text(envelope, 2, "k8s.io") // the namespace
	envelope = text(envelope, 3, "/tasks/oom")
	envelope = text(envelope, 4, string(event))
	request := text(nil, 1, "containerd.services.events.ttrpc.v1.Events")
	request = text(request, 2, "Forward")
	return text(request, 3, string(text(nil, 1, string(envelope))))
}

func text(to []byte, field protowire.Number, value string) []byte {
	return protowire.AppendString(protowire.AppendTag(to, field, protowire.BytesType), value)
}

func number64(to []byte, field protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(to, field, protowire.VarintType), value)
}

// Of a message of ttrpc: its length, the stream's number, its type, and no flags.
const (
	header       = 10
	typeRequest  = 1
	typeResponse = 2
	largest      = 4 << 20
)

func ask(connection io.ReadWriter, request []byte) error {
	message := binary.BigEndian.AppendUint32(nil, uint32(len(request)))
	message = binary.BigEndian.AppendUint32(message, 1)
	message = append(message, typeRequest, 0)
	if _, err := connection.Write(append(message, request...)); err != nil {
		return err
	}
	var head [header]byte
	if _, err := io.ReadFull(connection, head[:]); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(head[:])
	if head[8] != typeResponse || length > largest {
		return fmt.Errorf("a message of type %d and %d bytes is no answer", head[8], length)
	}
	response := make([]byte, length)
	if _, err := io.ReadFull(connection, response); err != nil {
		return err
	}
	return refusal(response)
}

// refusal is the status of a response, of which nothing is good: its message is the second field of the first.
func refusal(response []byte) error {
	status, ok := field(response, 1)
	if !ok || len(status) == 0 {
		return nil
	}
	message, _ := field(status, 2)
	return errors.New(string(message))
}

// field is a field of a message, of bytes.
func field(message []byte, wanted protowire.Number) ([]byte, bool) {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return nil, false
		}
		size := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if size < 0 {
			return nil, false
		}
		if number == wanted && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message[tag:])
			return value, true
		}
		message = message[tag+size:]
	}
	return nil, false
}
