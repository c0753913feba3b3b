package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// RemoteProcess says how a command runs on another machine, by SSH.
type RemoteProcess struct {
	// Connection is how the machine is reached.
	Connection Connection `pulumi:"connection"`
	// Stdin is what the process reads from its standard input. Default: nothing.
	Stdin *string `pulumi:"stdin,optional"`
	// Logging says which output is shown while the command runs. The outputs are kept either way. Default: both.
	Logging *Logging `pulumi:"logging,optional"`
	// Environment is set for the process, if the server accepts each name (AcceptEnv).
	Environment *map[string]string `pulumi:"environment,optional"`
	// AddPreviousOutputInEnv is as with local commands; a server that does not accept the variables is no error.
	AddPreviousOutputInEnv *bool `pulumi:"addPreviousOutputInEnv,optional"`
}

// Connection is how a machine is reached. The SDKs fill in the defaults.
type Connection struct {
	// Host is its name or address.
	Host string `pulumi:"host"`
	// Port is that of its SSH server. Default: 22.
	Port *float64 `pulumi:"port,optional"`
	// User is who logs in. Default: root.
	User *string `pulumi:"user,optional"`
	// Password is tried after PrivateKey.
	Password *string `pulumi:"password,optional"`
	// PrivateKey is a key in OpenSSH's or PEM form.
	PrivateKey *string `pulumi:"privateKey,optional"`
	// PrivateKeyPassword is what PrivateKey is encrypted with.
	PrivateKeyPassword *string `pulumi:"privateKeyPassword,optional"`
	// AgentSocketPath is where an SSH agent listens. Default: SSH_AUTH_SOCK, if it is set.
	AgentSocketPath *string `pulumi:"agentSocketPath,optional"`
	// DialErrorLimit is how many failed attempts to connect are followed by another; -1: no limit. Default: 10.
	DialErrorLimit *float64 `pulumi:"dialErrorLimit,optional"`
	// PerDialTimeout is how many seconds an attempt may take; 0: no limit. Default: 15.
	PerDialTimeout *float64 `pulumi:"perDialTimeout,optional"`
	// HostKey is the machine's public key, as in an authorized_keys file. Default: any key is taken.
	HostKey *string `pulumi:"hostKey,optional"`
	// Proxy is a machine to go through, which is not done here.
	Proxy *map[string]any `pulumi:"proxy,optional"`
}

func (r RemoteProcess) run(ctx context.Context, command string, out *ProcessOutputs, log func(line string)) error {
	client, err := r.Connection.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	defer session.Close()
	if err := r.setEnvironment(session, *out); err != nil {
		return err
	}
	if r.Stdin != nil {
		session.Stdin = strings.NewReader(*r.Stdin)
	}

	streams := newStreams(r.Logging, log)
	session.Stdout, session.Stderr = streams.stdout, streams.stderr
	err = runSession(ctx, session, command)
	streams.flush()
	if err != nil {
		return fmt.Errorf("%w: running %q on %s:\n%s", err, command, r.Connection.Host, streams.both.String())
	}
	streams.keep(out)
	return nil
}

func (r RemoteProcess) setEnvironment(session *ssh.Session, last ProcessOutputs) error {
	if r.Environment != nil {
		for _, name := range slices.Sorted(maps.Keys(*r.Environment)) {
			if err := session.Setenv(name, (*r.Environment)[name]); err != nil {
				return fmt.Errorf("environment: %s does not accept the variable %s (AcceptEnv in its sshd_config): %w", r.Connection.Host, name, err)
			}
		}
	}
	if r.AddPreviousOutputInEnv == nil || *r.AddPreviousOutputInEnv {
		for name, value := range map[string]string{previousStdout: last.Stdout, previousStderr: last.Stderr} {
			if value != "" {
				_ = session.Setenv(name, value) // few servers accept them, and few commands want them
			}
		}
	}
	return nil
}

// runSession runs command to its end. When ctx ends first, the command is told to stop and, after stopGrace, left: the
// connection's end is all that is left to tell it.
func runSession(ctx context.Context, session *ssh.Session, command string) error {
	if err := session.Start(command); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- session.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_ = session.Signal(ssh.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopGrace):
		_ = session.Close()
	}
	return stopped(ctx)
}

// dial connects, again and again where another attempt may help: a machine that was just made does not answer yet.
func (c Connection) dial(ctx context.Context) (*ssh.Client, error) {
	config, err := c.clientConfig()
	if err != nil {
		return nil, fmt.Errorf("connection: %w", err)
	}
	address := net.JoinHostPort(c.Host, strconv.Itoa(int(orDefault(c.Port, 22))))
	limit := int(orDefault(c.DialErrorLimit, 10))
	wait := 100 * time.Millisecond
	for failed := 1; ; failed++ {
		client, err := ssh.Dial("tcp", address, config)
		if err == nil {
			return client, nil
		}
		var network net.Error
		if !errors.Is(err, io.EOF) && !errors.As(err, &network) {
			return nil, fmt.Errorf("%s as %s: %w", address, config.User, err) // a key that is refused is refused again
		}
		if limit >= 0 && failed > limit {
			return nil, fmt.Errorf("%s is not reached after %d attempts: %w", address, failed, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; %s is not reached: %w", stopped(ctx), address, err)
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
}

func (c Connection) clientConfig() (*ssh.ClientConfig, error) {
	if c.Proxy != nil {
		return nil, errors.New("proxy is not done by gvisor-k3s's stand-in for pulumi-command: use the real one")
	}
	config := &ssh.ClientConfig{
		User:            orDefault(c.User, "root"),
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:gosec // the documented meaning of no hostKey
		Timeout:         time.Duration(orDefault(c.PerDialTimeout, 15) * float64(time.Second)),
	}
	if c.HostKey != nil {
		expected, _, _, _, err := ssh.ParseAuthorizedKey([]byte(*c.HostKey))
		if err != nil {
			return nil, fmt.Errorf("hostKey is no public key such as \"ssh-ed25519 AAAA…\": %w", err)
		}
		config.HostKeyCallback = sameKey(expected)
		config.HostKeyAlgorithms = []string{expected.Type()}
		if expected.Type() == ssh.KeyAlgoRSA {
			config.HostKeyAlgorithms = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
		}
	}
	if c.PrivateKey != nil {
		parse := func() (ssh.Signer, error) { return ssh.ParsePrivateKey([]byte(*c.PrivateKey)) }
		if c.PrivateKeyPassword != nil {
			parse = func() (ssh.Signer, error) {
				return ssh.ParsePrivateKeyWithPassphrase([]byte(*c.PrivateKey), []byte(*c.PrivateKeyPassword))
			}
		}
		signer, err := parse()
		if err != nil {
			return nil, fmt.Errorf("privateKey: %w", err)
		}
		config.Auth = append(config.Auth, ssh.PublicKeys(signer))
	}
	if c.Password != nil {
		config.Auth = append(config.Auth, ssh.Password(*c.Password))
	}
	if socket := orDefault(c.AgentSocketPath, os.Getenv("SSH_AUTH_SOCK")); socket != "" {
		connection, err := net.Dial("unix", socket)
		if err != nil {
			return nil, fmt.Errorf("the SSH agent: %w", err)
		}
		config.Auth = append(config.Auth, ssh.PublicKeysCallback(agent.NewClient(connection).Signers))
	}
	return config, nil
}

func sameKey(expected ssh.PublicKey) ssh.HostKeyCallback {
	return func(_ string, _ net.Addr, key ssh.PublicKey) error {
		if bytes.Equal(key.Marshal(), expected.Marshal()) {
			return nil
		}
		return fmt.Errorf("its key is %s, and hostKey is %s: it was set up anew, or another machine answers in its place",
			ssh.FingerprintSHA256(key), ssh.FingerprintSHA256(expected))
	}
}

func orDefault[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}
