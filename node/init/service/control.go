package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"gvisor-k3s/node/init/facade"
	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/input"

	"golang.org/x/sys/unix"
)

// Socket is where process 1 is asked.
const Socket = "/run/sandbox-init.sock"

// Run serves the control socket until SIGTERM or SIGINT, then stops every service in the reverse order of its start.
func Run(socket, notesFile, processesFile string) error {
	unix.Umask(0o022) // of every service, whoever starts this
	notes := OpenNotes(notesFile)
	if _, err := notes.Note(); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox-init:", err)
	}
	supervisor := NewSupervisor(notes, processesFile)
	os.Remove(socket) // of a previous run, where /run is not a tmpfs
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	server := &http.Server{Handler: controlHandler(supervisor, notes)}
	go server.Serve(listener)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	var lost <-chan error
	if os.Getpid() == 1 {
		lost = watch(context.Background(), socket, watchEvery)
	}
	var problem error
	select {
	case <-stop:
	case problem = <-lost:
		fmt.Fprintln(os.Stderr, "sandbox-init:", problem)
	}
	server.Close()
	supervisor.StopAll()
	return errors.Join(problem, files.Remove([]string{processesFile}))
}

// watchEvery is how often process 1 looks whether it can still be asked.
const watchEvery = 5 * time.Second

// watch tells when the socket has been away, or another one has been in its place, at two looks. A pod that may mount
// can have its node lose the tmpfs on /run, and containerd's sockets and what runc knows of containers with it. Nobody
// can be asked to repair that then, so process 1 ends, and the sandbox with it; its supervisor starts it again with its
// pods and data.
func watch(ctx context.Context, socket string, every time.Duration) <-chan error {
	lost := make(chan error, 1)
	own, err := os.Lstat(socket)
	if err != nil {
		lost <- err
		return lost
	}
	go func() {
		for misses := 0; misses < 2; misses++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(every):
			}
			if now, err := os.Lstat(socket); err == nil && os.SameFile(own, now) {
				misses = -1
			}
		}
		lost <- fmt.Errorf("%s is gone, and with it probably all of its folder: the sandbox starts again", socket)
	}()
	return lost
}

// noted is the answer of GET /note.
type noted struct {
	Note    Note   `json:"note"`
	Problem string `json:"problem,omitempty"` // why there is nothing in it
}

// controlHandler maps POST /put, /restart?name=, /stop?name= and GET /status and /details to the supervisor, and POST
// /facade, /forget and GET /note to the notes.
func controlHandler(supervisor *Supervisor, notes *Notes) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, act func(*http.Request) error, answer func() any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := act(r); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			json.NewEncoder(w).Encode(answer())
		})
	}
	nothing := func(*http.Request) error { return nil }
	status := func() any { return supervisor.Status() }
	note := func() any {
		note, err := notes.Note()
		if err != nil {
			return noted{note, err.Error()}
		}
		return noted{Note: note}
	}
	named := func(act func(string) error) func(*http.Request) error {
		return func(r *http.Request) error { return act(r.URL.Query().Get("name")) }
	}
	handle("POST /put", func(r *http.Request) error {
		var service Service
		if err := input.Decode(r.Body, &service); err != nil {
			return fmt.Errorf("service: %w", err)
		}
		return supervisor.Put(service)
	}, status)
	handle("POST /restart", named(supervisor.Restart), status)
	handle("POST /stop", named(supervisor.Stop), status)
	handle("GET /status", nothing, status)
	handle("GET /details", nothing, func() any { return supervisor.Details() })
	handle("POST /facade", func(r *http.Request) error {
		var plan facade.Plan
		if err := input.Decode(r.Body, &plan); err != nil {
			return fmt.Errorf("facade plan: %w", err)
		}
		return notes.SetFacade(plan)
	}, note)
	handle("POST /forget", func(*http.Request) error { return notes.Forget() }, note)
	handle("GET /note", nothing, note)
	return mux
}
