package main

import (
	"context"
	"net"
	"os"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/generic"
	"github.com/k3s-io/kine/pkg/drivers/sqlite"
	"github.com/k3s-io/kine/pkg/server"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
)

func (c *Config) datastoreSocket() string { return c.path("server", "kine.sock") }
func (c *Config) datastoreFile() string   { return c.path("server", "db", "state.db") }

// startDatastore serves the etcd API on a Unix socket from an SQLite file. It uses kine's SQLite driver directly:
// kine's own endpoint package links every other driver too (NATS, MySQL, PostgreSQL, an S3 store), which would be a
// third of the binary.
func startDatastore(ctx context.Context, c *Config) (server.Backend, error) {
	_, backend, err := sqlite.New(ctx, &sync.WaitGroup{}, &drivers.Config{
		DataSourceName:       c.datastoreFile() + "?" + sqlite.DefaultParams,
		ConnectionPoolConfig: generic.ConnectionPoolConfig{},
		// Compaction is off here: the API server asks for it every five minutes.
		CompactTimeout:   5 * time.Second,
		CompactMinRetain: 1000,
		CompactBatchSize: 1000,
		PollBatchSize:    500,
		PollInterval:     time.Second,
	})
	if err != nil {
		return nil, err
	}
	if err := backend.Start(ctx); err != nil {
		return nil, err
	}
	os.Remove(c.datastoreSocket())
	listener, err := net.Listen("unix", c.datastoreSocket())
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(c.datastoreSocket(), 0o600); err != nil {
		return nil, err
	}
	service := grpc.NewServer(grpc.MaxRecvMsgSize(2 << 20))
	server.New(backend, "unix", 5*time.Second, "3.6.11").Register(service)
	go func() {
		if err := service.Serve(listener); err != nil {
			klog.ErrorS(err, "the datastore ended")
		}
	}()
	context.AfterFunc(ctx, service.Stop)
	return backend, nil
}
