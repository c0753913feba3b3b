// Package plugintest is the engine's side of a plugin in tests: it serves a plugin on loopback and keeps its log.
package plugintest

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Serve serves what register adds to a gRPC server and returns a connection to it. Both end with the test.
func Serve(t *testing.T, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	return Dial(t, Listen(t, register))
}

// Listen serves what register adds to a gRPC server and returns its address. The server ends with the test.
func Listen(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// Dial connects to a server until the test's end.
func Dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return connection
}

// Engine is a Pulumi engine that only takes log messages.
type Engine struct {
	pulumirpc.UnimplementedEngineServer
	// Address is where it listens.
	Address string

	mu     sync.Mutex
	logged []*pulumirpc.LogRequest
	news   chan struct{}
}

// StartEngine starts an engine that ends with the test.
func StartEngine(t *testing.T) *Engine {
	t.Helper()
	engine := &Engine{news: make(chan struct{}, 1)}
	engine.Address = Listen(t, func(server *grpc.Server) { pulumirpc.RegisterEngineServer(server, engine) })
	return engine
}

// Log takes a message.
func (e *Engine) Log(_ context.Context, req *pulumirpc.LogRequest) (*emptypb.Empty, error) {
	e.mu.Lock()
	e.logged = append(e.logged, req)
	e.mu.Unlock()
	select {
	case e.news <- struct{}{}:
	default:
	}
	return &emptypb.Empty{}, nil
}

// Messages are the messages so far.
func (e *Engine) Messages() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var messages []string
	for _, req := range e.logged {
		messages = append(messages, req.GetMessage())
	}
	return messages
}

// Await returns when message was logged, or fails the test when ctx ends first.
func (e *Engine) Await(ctx context.Context, t *testing.T, message string) {
	t.Helper()
	for {
		for _, logged := range e.Messages() {
			if logged == message {
				return
			}
		}
		select {
		case <-e.news:
		case <-ctx.Done():
			t.Fatalf("%q was not logged; so far: %q", message, e.Messages())
		}
	}
}

// AwaitGone returns when a process has ended, or fails the test after a minute. An orphan may stay a zombie where
// nobody reaps it.
func AwaitGone(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(text), ") Z ") {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("process %d lives: %s", pid, text)
		}
	}
}
