package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"time"

	"gvisor-k3s/node/init/facade"
	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/input"

	"golang.org/x/sys/unix"
)

// patience is how long process 1 has for an answer that it has at hand. It takes milliseconds, on a machine that is not
// very busy.
const patience = 15 * time.Second

// checkPatience is how long a service's check has.
const checkPatience = 60 * time.Second

// ErrNotRunning says that there is no process that supervises anything.
var ErrNotRunning = errors.New("no sandbox-init supervises services here; `gvisor-k3s up` starts one")

// Client asks process 1. No request waits for ever: it may hang, or be stopped by whoever is root here.
type Client struct {
	patience time.Duration
	http     *http.Client
}

// NewClient asks at a socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{patience, &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Within has every answer be there after this time.
func (c *Client) Within(patience time.Duration) *Client {
	return &Client{patience, c.http}
}

// Status tells the state of every service by name.
func (c *Client) Status() (states map[string]State, err error) {
	return states, c.ask(context.Background(), "/status", &states)
}

// Details tells more of every service by name.
func (c *Client) Details(ctx context.Context) (details map[string]Detail, err error) {
	return details, c.ask(ctx, "/details", &details)
}

// Put starts the service that is described, or restarts it if the description changed, and returns the state of all.
func (c *Client) Put(description []byte) ([]byte, error) {
	var service Service
	if err := input.Decode(bytes.NewReader(description), &service); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	details, err := c.Details(context.Background())
	if err != nil {
		return nil, err
	}
	running := details[service.Name]
	if running.State.PID != 0 {
		if err := service.check(); err != nil {
			return nil, err
		}
	}
	return c.change("/put", bytes.NewReader(description), max(service.StopSeconds, running.StopSeconds))
}

// Restart ends a service's process, starts it anew, and returns the state of all.
func (c *Client) Restart(name string) ([]byte, error) { return c.changeNamed("/restart", name) }

// Stop ends a service, forgets it, and returns the state of all.
func (c *Client) Stop(name string) ([]byte, error) { return c.changeNamed("/stop", name) }

func (c *Client) changeNamed(path, name string) ([]byte, error) {
	details, err := c.Details(context.Background())
	if err != nil {
		return nil, err
	}
	return c.change(path+"?name="+url.QueryEscape(name), nil, details[name].StopSeconds)
}

// change asks for something that may take as long as a service has to end.
func (c *Client) change(path string, body io.Reader, stopSeconds int) ([]byte, error) {
	limit := c.patience + time.Duration(stopSeconds)*time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return c.request(ctx, http.MethodPost, path, body, limit)
}

// NoteFacade has the facade applied again in the next life.
func (c *Client) NoteFacade(plan facade.Plan) error {
	content, err := json.Marshal(plan)
	if err == nil {
		_, err = c.change("/facade", bytes.NewReader(content), 0)
	}
	return err
}

// Forget has nothing of this life be there again in the next one.
func (c *Client) Forget() error {
	_, err := c.change("/forget", nil, 0)
	return err
}

// Note tells what is noted of this life or, as long as nothing was put, of the last one; and why that is not known, if
// so.
func (c *Client) Note() (note Note, problem string, err error) {
	var answer noted
	err = c.ask(context.Background(), "/note", &answer)
	return answer.Note, answer.Problem, err
}

// ask asks for something that is at hand.
func (c *Client) ask(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	answer, err := c.request(ctx, http.MethodGet, path, nil, c.patience)
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, into)
}

func (c *Client) request(
	ctx context.Context,
	method, path string,
	body io.Reader,
	limit time.Duration,
) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://sandbox-init"+path, body)
	if err != nil {
		return nil, err
	}
	answer, err := c.answer(request)
	switch {
	case errors.Is(err, unix.ECONNREFUSED) || files.IsAbsent(err):
		return nil, fmt.Errorf("%w (%w)", ErrNotRunning, err)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf(
			"sandbox-init has not answered within %s: it hangs, or somebody has stopped it; restart "+
				"the sandbox, or end the process, and run `gvisor-k3s up` (%w)",
			limit,
			err,
		)
	}
	return answer, err
}

func (c *Client) answer(request *http.Request) ([]byte, error) {
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSuffix(string(answer), "\n"))
	}
	return answer, err
}

// check runs the service's check. It is run here and not by process 1, which reaps whatever ends.
func (s Service) check() error {
	if len(s.Check) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkPatience)
	defer cancel()
	command := exec.CommandContext(ctx, s.Check[0], s.Check[1:]...)
	command.Env = s.Env
	command.WaitDelay = time.Second // a child may have the output still open
	output, err := command.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("it has not ended within %s", checkPatience)
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(s.Check, " "), err, output)
	}
	return nil
}
