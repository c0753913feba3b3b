package command

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// Endpoint is an SSH server and the way to log in to it.
type Endpoint struct {
	// Host is its name or address.
	Host string `pulumi:"host"`
	// Port is where it listens. Default: 22.
	Port *float64 `pulumi:"port,optional"`
	// User is who logs in. Default: root.
	User *string `pulumi:"user,optional"`
	// PrivateKey logs in, as the text of a key file. With it the agent is not asked.
	PrivateKey *string `pulumi:"privateKey,optional"`
	// PrivateKeyPassword decrypts PrivateKey.
	PrivateKeyPassword *string `pulumi:"privateKeyPassword,optional"`
	// Password logs in when PrivateKey does not, and answers every question that the server has.
	Password *string `pulumi:"password,optional"`
	// AgentSocketPath is the socket of an agent with keys to log in. Default: the environment's SSH_AUTH_SOCK, if any.
	AgentSocketPath *string `pulumi:"agentSocketPath,optional"`
	// HostKey is the server's public key, as a line of its .pub file. Default: any key is accepted.
	HostKey *string `pulumi:"hostKey,optional"`
	// DialErrorLimit is how many attempts may fail before the one that has to succeed; -1 is any number. Default: 10.
	DialErrorLimit *int `pulumi:"dialErrorLimit,optional"`
	// PerDialTimeout is how many seconds an attempt may take; 0 is any time. Default: 15.
	PerDialTimeout *int `pulumi:"perDialTimeout,optional"`
}

// Connection is the way to the host that runs commands.
type Connection struct {
	Endpoint
	// Proxy is a host to go through.
	Proxy *Endpoint `pulumi:"proxy,optional"`
}

const (
	defaultUser           = "root"
	defaultPort           = 22
	defaultDialErrorLimit = 10
	defaultPerDialTimeout = 15
)

// completeConnection does to checked inputs what the real provider does: it fills in defaults and marks secrets.
func completeConnection(inputs resource.PropertyMap) {
	if connection, ok := inputs["connection"]; ok {
		changeObject(connection, completeEndpoint)
		inputs["connection"] = secret(connection)
	}
}

func completeEndpoint(endpoint resource.PropertyMap) {
	for key, value := range resource.NewPropertyMapFromMap(map[string]any{
		"user": defaultUser, "port": defaultPort,
		"dialErrorLimit": defaultDialErrorLimit, "perDialTimeout": defaultPerDialTimeout,
	}) {
		if _, given := endpoint[key]; !given {
			endpoint[key] = value
		}
	}
	for _, key := range []resource.PropertyKey{"password", "privateKey", "privateKeyPassword"} {
		if value, given := endpoint[key]; given {
			endpoint[key] = secret(value)
		}
	}
	changeObject(endpoint["proxy"], completeEndpoint)
}

// changeObject calls change with the object that value is or wraps, if there is one.
func changeObject(value resource.PropertyValue, change func(resource.PropertyMap)) {
	switch {
	case value.IsObject():
		change(value.ObjectValue())
	case value.IsSecret():
		changeObject(value.SecretValue().Element, change)
	case value.IsOutput():
		changeObject(value.OutputValue().Element, change)
	}
}

func secret(value resource.PropertyValue) resource.PropertyValue {
	if value.IsSecret() || value.IsOutput() && value.OutputValue().Secret {
		return value
	}
	return resource.MakeSecret(value)
}

// unusable names the options whose values can be of no use to any server.
func (e Endpoint) unusable(fail func(option, reason string)) {
	if port := valueOr(e.Port, defaultPort); port < 1 || port > math.MaxUint16 || port != math.Trunc(port) {
		fail("port", fmt.Sprintf("port is %v; it must be a whole number from 1 to %d", port, math.MaxUint16))
	}
	if _, err := e.hostKey(); err != nil {
		fail("hostKey", fmt.Sprintf("hostKey is not a public key: %v", err))
	}
	_, err := e.privateKey()
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked), errors.Is(err, x509.IncorrectPasswordError):
		fail("privateKeyPassword", fmt.Sprintf("privateKeyPassword does not open privateKey: %v", err))
	case err != nil:
		fail("privateKey", fmt.Sprintf("privateKey cannot be read: %v", err))
	}
}

// hostKey is nil for any key.
func (e Endpoint) hostKey() (ssh.PublicKey, error) {
	if e.HostKey == nil {
		return nil, nil
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(*e.HostKey))
	return key, err
}

// privateKey is nil without one.
func (e Endpoint) privateKey() (ssh.Signer, error) {
	switch {
	case e.PrivateKey == nil:
		return nil, nil
	case e.PrivateKeyPassword == nil:
		return ssh.ParsePrivateKey([]byte(*e.PrivateKey))
	default:
		return ssh.ParsePrivateKeyWithPassphrase([]byte(*e.PrivateKey), []byte(*e.PrivateKeyPassword))
	}
}

// The pauses between attempts, which are those of the real provider.
const (
	firstPause  = 100 * time.Millisecond
	longestWait = 5 * time.Second
)

// dial logs in, by way of proxy if that is not nil, as often as DialErrorLimit allows.
func (e Endpoint) dial(ctx context.Context, proxy *ssh.Client, log logger) (*ssh.Client, error) {
	address := net.JoinHostPort(e.Host, strconv.Itoa(int(valueOr(e.Port, defaultPort))))
	hostKey, err := e.hostKey()
	if err != nil {
		return nil, fmt.Errorf("hostKey: %w", err)
	}
	login, err := e.login(ctx)
	if err != nil {
		return nil, err
	}
	defer login.end()

	limit := valueOr(e.DialErrorLimit, defaultDialErrorLimit)
	pause := firstPause
	for attempts := 1; ; attempts++ {
		client, err := e.attempt(ctx, proxy, address, hostKey, login)
		var refused *refusedError
		switch {
		case err == nil:
			return client, nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("ssh: %s: %w", address, stopped(ctx))
		case errors.As(err, &refused):
			return nil, fmt.Errorf("ssh: %s@%s: %w", valueOr(e.User, defaultUser), address, refused)
		case limit >= 0 && attempts > limit:
			return nil, fmt.Errorf("ssh: %s: %w after %s", address, cause(err), counted(attempts, "attempt"))
		}
		log(diag.Info, fmt.Sprintf("ssh: %s: %v: trying again", address, cause(err)))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(pause*3/2, longestWait)
	}
}

// attempt logs in once. Its error is a refusedError when another attempt would not do better.
func (e Endpoint) attempt(
	ctx context.Context, proxy *ssh.Client, address string, hostKey ssh.PublicKey, login login,
) (*ssh.Client, error) {
	if timeout := valueOr(e.PerDialTimeout, defaultPerDialTimeout); timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(timeout)*time.Second)
		defer cancel()
	}
	dial := (&net.Dialer{}).DialContext
	if proxy != nil {
		dial = proxy.DialContext
	}
	connection, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}

	identified := false // what fails after the server has shown its key is the login
	config := &ssh.ClientConfig{
		User: valueOr(e.User, defaultUser),
		Auth: login.methods,
		HostKeyCallback: func(_ string, _ net.Addr, got ssh.PublicKey) error {
			if hostKey != nil && !bytes.Equal(got.Marshal(), hostKey.Marshal()) {
				return &refusedError{fmt.Sprintf("the host key is not the expected one (expected %s, got %s)",
					fingerprint(hostKey), fingerprint(got))}
			}
			identified = true
			return nil
		},
		HostKeyAlgorithms: hostKeyAlgorithms(hostKey),
	}
	hangUp := context.AfterFunc(ctx, func() { _ = connection.Close() })
	transport, channels, requests, err := ssh.NewClientConn(connection, address, config)
	switch {
	case !hangUp():
		_ = connection.Close()
		return nil, errors.New("no login within perDialTimeout")
	case err != nil && identified && !broken(err):
		return nil, &refusedError{fmt.Sprintf("the login was refused (tried: %s): %v", login, errors.Unwrap(err))}
	case err != nil:
		return nil, err
	}
	return ssh.NewClient(transport, channels, requests), nil
}

// refusedError is a refusal by either side, which stays.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return e.reason }

// broken is whether err is of the network, not the server's answer.
func broken(err error) bool {
	var network net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &network)
}

// cause is err without what it happened to, which is told by other means.
func cause(err error) error {
	var number syscall.Errno
	var operation *net.OpError
	var byProxy *ssh.OpenChannelError
	switch {
	case errors.As(err, &number):
		return number
	case errors.As(err, &operation):
		return operation.Err
	case errors.As(err, &byProxy):
		return fmt.Errorf("the proxy says: %s (%s)", byProxy.Reason, byProxy.Message)
	}
	return err
}

// hostKeyAlgorithms begins with those of key. The others let a server without such a key show the one that it has.
func hostKeyAlgorithms(key ssh.PublicKey) []string {
	if key == nil {
		return nil
	}
	wanted := []string{key.Type()}
	if key.Type() == ssh.KeyAlgoRSA {
		wanted = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	others := slices.DeleteFunc(ssh.SupportedAlgorithms().HostKeys, func(algorithm string) bool {
		return slices.Contains(wanted, algorithm)
	})
	return append(wanted, others...)
}

func fingerprint(key ssh.PublicKey) string { return key.Type() + " " + ssh.FingerprintSHA256(key) }

// login is what an endpoint has to log in with.
type login struct {
	methods []ssh.AuthMethod
	names   []string
	end     func()
}

func (l login) String() string {
	if len(l.names) == 0 {
		return "nothing, as there is no privateKey, password or agent"
	}
	return strings.Join(l.names, ", ")
}

// login prepares the methods in their order. Its end must be called after the last use.
func (e Endpoint) login(ctx context.Context) (login, error) {
	l := login{end: func() {}}
	key, err := e.privateKey()
	if err != nil {
		return l, fmt.Errorf("privateKey: %w", err)
	}
	if key != nil {
		l.methods = append(l.methods, ssh.PublicKeys(key))
		l.names = append(l.names, "the private key of "+fingerprint(key.PublicKey()))
	}
	if e.Password != nil {
		l.methods = append(l.methods, ssh.Password(*e.Password), ssh.KeyboardInteractive(
			func(_, _ string, questions []string, _ []bool) ([]string, error) {
				return slices.Repeat([]string{*e.Password}, len(questions)), nil
			}))
		l.names = append(l.names, "the password")
	}
	socket := valueOr(e.AgentSocketPath, os.Getenv("SSH_AUTH_SOCK"))
	if socket == "" || key != nil { // SSH asks for keys once, so the agent's would not be tried after key
		return l, nil
	}
	connection, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return l, fmt.Errorf("the SSH agent (agentSocketPath, SSH_AUTH_SOCK): %w", err)
	}
	closeEarly := context.AfterFunc(ctx, func() { _ = connection.Close() })
	l.end = func() {
		closeEarly()
		_ = connection.Close()
	}
	l.methods = append(l.methods, ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
		keys, err := agent.NewClient(connection).Signers()
		if err != nil {
			return nil, &refusedError{fmt.Sprintf("the SSH agent at %s gives no keys: %v", socket, err)}
		}
		return keys, nil
	}))
	l.names = append(l.names, "the agent's keys")
	return l, nil
}

func valueOr[T any](value *T, otherwise T) T {
	if value == nil {
		return otherwise
	}
	return *value
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
