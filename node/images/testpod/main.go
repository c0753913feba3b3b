// Command testpod is the program of the test pod: a small HTTP server that says
// where it runs, and the few commands that tests and probes run in a container
// that has no shell.
//
//	testpod [--port N]   serves / (host name and address) and /healthz until SIGTERM
//	testpod get URL      prints a URL's body; fails unless the status is 2xx
//	testpod resolve NAME prints a name's addresses, sorted, one on a line
//	testpod measure URL  gets / and then /zeros of a server, and prints the times as JSON; see measurement
//	testpod id           prints the real and the effective user id
//	testpod echo PORT    answers each datagram with itself
//	testpod sleep        waits for SIGTERM
//	testpod true         does nothing, for exec probes
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

const (
	defaultPort = 8080
	// getTimeout ends a request to something that does not answer.
	getTimeout = 10 * time.Second
)

func main() {
	// From the start: PID 1 has no default action for SIGTERM.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testpod:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("testpod", flag.ContinueOnError)
	port := flags.Int("port", defaultPort, "TCP `port` to serve on, 1 to 65535")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: testpod [--port N] | testpod get URL | testpod resolve NAME | "+
			"testpod measure URL | testpod id | testpod echo PORT | testpod sleep | testpod true")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch command, rest := flags.Arg(0), flags.NArg()-1; {
	case command == "" && *port >= 1 && *port <= 65535:
		return serve(ctx, *port, out)
	case command == "":
		return fmt.Errorf("--port %d is not within 1 to 65535", *port)
	case command == "get" && rest == 1:
		return get(ctx, flags.Arg(1), out)
	case command == "resolve" && rest == 1:
		return resolve(ctx, flags.Arg(1), out)
	case command == "measure" && rest == 1:
		return measure(ctx, flags.Arg(1), out)
	case command == "id" && rest == 0:
		_, err := fmt.Fprintln(out, os.Getuid(), os.Geteuid())
		return err
	case command == "echo" && rest == 1:
		return echo(ctx, flags.Arg(1))
	case command == "sleep" && rest == 0:
		<-ctx.Done()
		return nil
	case command == "true" && rest == 0:
		return nil
	default:
		return fmt.Errorf("unknown command %q: allowed are get URL, resolve NAME, measure URL, id, echo PORT, sleep, "+
			"true, or none to serve", flags.Args())
	}
}

// serve answers until ctx ends; open connections are cut then, so that a pod is gone at once.
func serve(ctx context.Context, port int, out io.Writer) error {
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	var kernel syscall.Utsname
	if err := syscall.Uname(&kernel); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	fmt.Fprintf(out, "gvisor-k3s test pod %s is running on kernel %s\n", hostname, release(&kernel))

	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/zeros", func(w http.ResponseWriter, _ *http.Request) { io.CopyN(w, zeros{}, zeroBytes) })
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		// The address that this request came to: the pod's own.
		local := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
		fmt.Fprintf(w, "%s %s\n", hostname, local.IP)
	})
	mux.HandleFunc("/grpc.health.v1.Health/Check", healthy)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: getTimeout, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// healthy answers a gRPC probe: a message of two bytes, which is HealthCheckResponse{status: SERVING}.
func healthy(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.Write([]byte{0, 0, 0, 0, 2, 0x08, 0x01})
	w.Header().Set("Grpc-Status", "0")
}

func get(ctx context.Context, url string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client, err := clusterClient(request)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(out, response.Body); err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("get %s: status %s", url, response.Status)
	}
	return nil
}

// echo answers until ctx ends.
func echo(ctx context.Context, port string) error {
	conn, err := net.ListenPacket("udp", net.JoinHostPort("", port))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	buffer := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo(buffer[:n], from); err != nil {
			return err
		}
	}
}

const (
	requests  = 200
	zeroBytes = 256 << 20
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// measurement is how fast a server is reached.
type measurement struct {
	Milliseconds []float64 `json:"milliseconds"` // of requests with a connection each
	BytesPerSec  float64   `json:"bytesPerSecond"`
}

func measure(ctx context.Context, url string, out io.Writer) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int64, time.Duration, error) {
		start := time.Now()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+path, nil)
		if err != nil {
			return 0, 0, err
		}
		response, err := client.Do(request)
		if err != nil {
			return 0, 0, err
		}
		defer response.Body.Close()
		n, err := io.Copy(io.Discard, response.Body)
		return n, time.Since(start), err
	}
	var m measurement
	for range requests {
		_, took, err := get("/")
		if err != nil {
			return err
		}
		m.Milliseconds = append(m.Milliseconds, float64(took.Microseconds())/1000)
	}
	n, took, err := get("/zeros")
	if err != nil {
		return err
	}
	m.BytesPerSec = float64(n) / took.Seconds()
	return json.NewEncoder(out).Encode(m)
}

func resolve(ctx context.Context, name string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	slices.Sort(addresses)
	for _, address := range addresses {
		fmt.Fprintln(out, address)
	}
	return err
}

// serviceAccount is where a pod finds what it needs to call its cluster's API server.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// clusterClient is, for HTTPS within a pod, a client that trusts the cluster's CA only and sends the pod's token; else
// a plain one.
func clusterClient(request *http.Request) (*http.Client, error) {
	ca, err := os.ReadFile(filepath.Join(serviceAccount, "ca.crt"))
	if errors.Is(err, os.ErrNotExist) || request.URL.Scheme != "https" {
		return http.DefaultClient, nil
	}
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(serviceAccount, "token"))
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(ca)
	request.Header.Set("Authorization", "Bearer "+string(token))
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}}, nil
}

// release is uname -r. The field's element type differs between architectures.
func release(u *syscall.Utsname) string {
	var b []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}
