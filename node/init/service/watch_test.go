package service

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatch(t *testing.T) {
	listen := func(socket string) {
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
	}
	for what, act := range map[string]func(socket string){
		"gone": func(socket string) { os.Remove(socket) },
		"another in its place": func(socket string) {
			os.Rename(socket, socket+".old")
			listen(socket)
		},
	} {
		socket := filepath.Join(t.TempDir(), "s")
		listen(socket)
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			lost := watch(ctx, socket, watchEvery)
			time.Sleep(10 * watchEvery)
			select {
			case err := <-lost:
				t.Fatalf("nothing has happened: %v", err)
			default:
			}
			act(socket)
			if err := <-lost; err == nil {
				t.Errorf("%s: nothing is told", what)
			}
		})
	}
}
