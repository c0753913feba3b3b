package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestTheKubeletAwaitsContainerd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close() // as a containerd that was killed leaves its socket
	ctx, cancel := context.WithTimeout(t.Context(), 3*pollEvery)
	defer cancel()
	if err := awaitRuntime(ctx, "unix://"+socket); err == nil {
		t.Error("a socket on which nobody listens is taken for containerd")
	}
	listens := make(chan error, 1)
	go func() { listens <- awaitRuntime(t.Context(), "unix://"+socket+".later") }()
	select {
	case err := <-listens:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(3 * pollEvery):
	}
	listener, err := net.Listen("unix", socket+".later")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := <-listens; err != nil {
		t.Error(err)
	}
}
