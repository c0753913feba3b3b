// Command sandbox-init is process 1 of a managed sandbox and the tool that the host runs in it.
//
//	sandbox-init run                      be process 1: reap orphans, supervise services, stop them on SIGTERM
//	sandbox-init service put              start the service that standard input describes (a Service as JSON); restart it if that changed
//	sandbox-init service restart NAME     restart a service and return when the new process runs
//	sandbox-init service stop NAME        stop a service and forget it
//	sandbox-init service status           print the state of every service as JSON
//	sandbox-init facade                   apply the facade plan on standard input (see Plan), idempotently
//	sandbox-init probe                    run the probes on standard input (a list of probe.Probe) and print a list of probe.Answer
//	sandbox-init can WHAT ARGUMENTS       exit code 0 if the kernel can do that, else 1 and its answer (see probe.Can)
//	sandbox-init write PATH MODE          write standard input to PATH atomically, with an octal file mode
//	sandbox-init remove PATH              remove a file; one that is not there is no error
//
// A file that a process in the sandbox watches must be written with `write`: gVisor's inotify does not report what the host
// changes below a bind mount.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"gvisor-k3s/node/init/probe"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const controlSocket = "/run/sandbox-init.sock"

const usage = "usage: sandbox-init run | service put|restart NAME|stop NAME|status | facade | probe | can WHAT | write PATH MODE | remove PATH"

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox-init:", err)
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	command := func(name string, n int) bool { return len(args) == n && args[0] == name }
	switch {
	case command("run", 1):
		return run()
	case len(args) >= 2 && args[0] == "service":
		return serviceCommand(args[1], args[2:])
	case command("facade", 1):
		var plan Plan
		if err := decodeStrict(os.Stdin, &plan); err != nil {
			return fmt.Errorf("facade plan: %w", err)
		}
		return plan.Apply()
	case command("probe", 1):
		return probe.Run(os.Stdin, os.Stdout)
	case len(args) >= 1 && args[0] == "can":
		return probe.Can(args[1:])
	case command("write", 3):
		return writeAtomically(args[1], args[2], os.Stdin)
	case command("remove", 2):
		if err := os.Remove(args[1]); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	return errors.New(usage)
}

// run serves the control socket until SIGTERM or SIGINT, then stops every service in the reverse order of its start.
func run() error {
	supervisor := NewSupervisor()
	os.Remove(controlSocket) // of a previous run, where /run is not a tmpfs
	listener, err := net.Listen("unix", controlSocket)
	if err != nil {
		return err
	}
	if err := os.Chmod(controlSocket, 0o600); err != nil {
		return err
	}
	server := &http.Server{Handler: controlHandler(supervisor)}
	go server.Serve(listener)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	<-stop
	server.Close()
	supervisor.StopAll()
	return nil
}

// controlHandler maps POST /put, /restart?name=, /stop?name= and GET /status to the supervisor.
func controlHandler(supervisor *Supervisor) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, act func(*http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := act(r); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			json.NewEncoder(w).Encode(supervisor.Status())
		})
	}
	handle("POST /put", func(r *http.Request) error {
		var service Service
		if err := decodeStrict(r.Body, &service); err != nil {
			return fmt.Errorf("service: %w", err)
		}
		return supervisor.Put(service)
	})
	handle("POST /restart", func(r *http.Request) error { return supervisor.Restart(r.URL.Query().Get("name")) })
	handle("POST /stop", func(r *http.Request) error { return supervisor.Stop(r.URL.Query().Get("name")) })
	handle("GET /status", func(*http.Request) error { return nil })
	return mux
}

// serviceCommand is the client of controlHandler; it prints the state of all services.
func serviceCommand(verb string, args []string) error {
	method, path, body := http.MethodPost, "/"+verb, io.Reader(nil)
	switch {
	case verb == "put" && len(args) == 0:
		description, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		if err := checkBeforehand(description); err != nil {
			return err
		}
		body = bytes.NewReader(description)
	case (verb == "restart" || verb == "stop") && len(args) == 1:
		path += "?name=" + args[0]
	case verb == "status" && len(args) == 0:
		method = http.MethodGet
	default:
		return errors.New(usage)
	}
	answer, err := control(method, path, body)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(answer)
	return err
}

// control makes one request of controlHandler.
func control(method, path string, body io.Reader) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", controlSocket)
	}}}
	request, err := http.NewRequest(method, "http://sandbox-init"+path, body)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(string(answer))
	}
	return answer, err
}

// checkBeforehand runs a description's check if such a service runs. It is run here and not by process 1, which reaps whatever ends.
func checkBeforehand(description []byte) error {
	var service Service
	if err := decodeStrict(bytes.NewReader(description), &service); err != nil || len(service.Check) == 0 {
		return err
	}
	answer, err := control(http.MethodGet, "/status", nil)
	if err != nil {
		return err
	}
	var states map[string]State
	if err := json.Unmarshal(answer, &states); err != nil || states[service.Name].PID == 0 {
		return err
	}
	command := exec.Command(service.Check[0], service.Check[1:]...)
	command.Env = service.Env
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(service.Check, " "), err, output)
	}
	return nil
}

func decodeStrict(r io.Reader, into any) error {
	decoder := json.NewDecoder(r)
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}

// writeAtomically writes through a temporary file beside path, so that a watcher never reads half a file.
func writeAtomically(path, mode string, content io.Reader) error {
	bits, err := strconv.ParseUint(mode, 8, 9)
	if err != nil {
		return fmt.Errorf("mode %q: an octal number from 0 to 777 is needed", mode)
	}
	temporary, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, os.FileMode(bits))
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, err = io.Copy(temporary, content)
	if err := errors.Join(err, temporary.Chmod(os.FileMode(bits)), temporary.Close()); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}
