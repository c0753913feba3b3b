package command

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"golang.org/x/crypto/ssh"
)

// killGrace is how long a command has to end after SIGKILL before its connection is closed. With [stopGrace] it stays
// below what the engine allows.
const killGrace = time.Second / 2

// run runs the command on the remote host. Its connection is made for it alone and closed afterwards.
func (in RemoteInputs) run(ctx context.Context, command string, out *ProcessOutputs, log logger) error {
	var proxy *ssh.Client
	if in.Connection.Proxy != nil {
		var err error
		if proxy, err = in.Connection.Proxy.dial(ctx, nil, log); err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
		defer proxy.Close()
	}
	client, err := in.Connection.dial(ctx, proxy, log)
	if err != nil {
		return err
	}
	defer client.Close()

	// Until the command runs there is nobody to signal.
	hangUp := context.AfterFunc(ctx, func() { _ = client.Close() })
	session, err := in.prepare(client, *out, log)
	if err != nil {
		return orStopped(ctx, err)
	}
	stdin, err := session.StdinPipe() // unlike session.Stdin it may be left unread
	if err != nil {
		return err
	}
	written := newRecording(in.Logging, log)
	session.Stdout, session.Stderr = written.stdout, written.stderr
	if err = orStopped(ctx, session.Start(command)); err == nil {
		hangUp()
		go func() {
			_, _ = io.WriteString(stdin, valueOr(in.Stdin, ""))
			_ = stdin.Close()
		}()
		err = wait(ctx, session, client)
	}
	return written.end(command, err, out)
}

// prepare opens a session with the command's environment.
func (in RemoteInputs) prepare(client *ssh.Client, last ProcessOutputs, log logger) (*ssh.Session, error) {
	session, err := client.NewSession()
	if err != nil {
		return nil, err
	}
	for _, variable := range in.variables() {
		if err := session.Setenv(variable.name, variable.value); err != nil {
			return nil, fmt.Errorf("could not set environment variable %q: %w; %s", variable.name, err, acceptEnv)
		}
	}
	for _, variable := range in.previousOutputs(last) {
		if err := session.Setenv(variable.name, variable.value); err != nil {
			log(diag.Warning, fmt.Sprintf("could not set environment variable %q: %v; %s; "+
				"with addPreviousOutputInEnv: false it is not tried", variable.name, err, acceptEnv))
		}
	}
	return session, nil
}

const acceptEnv = "the SSH server takes only what its AcceptEnv names " +
	"(in a shell, NAME=value before the command does the same)"

// wait waits for the command's end. When ctx ends first, the command is told to stop, then killed, then left: OpenSSH
// passes no signals on to what root runs.
func wait(ctx context.Context, session *ssh.Session, client *ssh.Client) error {
	ended := make(chan error, 1)
	go func() { ended <- session.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	endedBy := func(signal ssh.Signal, grace time.Duration) bool {
		go func() { _ = session.Signal(signal) }() // a dead connection would keep it
		select {
		case <-ended:
			return true
		case <-time.After(grace):
			return false
		}
	}
	if endedBy(ssh.SIGTERM, stopGrace) || endedBy(ssh.SIGKILL, killGrace) {
		return stopped(ctx)
	}
	_ = client.Close()
	<-ended
	return fmt.Errorf("%w, and the command may still run there: no signal has reached it", stopped(ctx))
}

// orStopped is err, unless it is but a consequence of ctx's end.
func orStopped(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return stopped(ctx)
	}
	return err
}
