package command

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"google.golang.org/protobuf/types/known/emptypb"
)

const remoteURN = "urn:pulumi:stack::project::command:remote:Command::name"

// A machine is an SSH server on loopback that runs commands by sh.
type machine struct {
	port    float64
	hostKey string
	// key is the one private key that its user root may have.
	key ed25519.PrivateKey
}

func newKey(t *testing.T) (ed25519.PrivateKey, ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, signer
}

func pemOf(t *testing.T, key ed25519.PrivateKey, passphrase string) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

func startMachine(t *testing.T) machine {
	t.Helper()
	t.Setenv("SSH_AUTH_SOCK", "")
	userKey, user := newKey(t)
	_, host := newKey(t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if meta.User() != "root" || string(key.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, errors.New("not this key")
		}
		return nil, nil
	}}
	config.AddHostKey(host)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	acceptAll(t, listener, func(connection net.Conn) { serve(connection, config) })
	return machine{
		port:    float64(listener.Addr().(*net.TCPAddr).Port),
		hostKey: string(ssh.MarshalAuthorizedKey(host.PublicKey())),
		key:     userKey,
	}
}

func acceptAll(t *testing.T, listener net.Listener, serve func(net.Conn)) {
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(connection)
		}
	}()
}

func serve(connection net.Conn, config *ssh.ServerConfig) {
	_, channels, requests, err := ssh.NewServerConn(connection, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go serveSession(channel, requests)
	}
}

func serveSession(channel ssh.Channel, requests <-chan *ssh.Request) {
	var environment []string
	var command *exec.Cmd
	for request := range requests {
		switch request.Type {
		case "env":
			var variable struct{ Name, Value string }
			_ = ssh.Unmarshal(request.Payload, &variable)
			accepted := strings.HasPrefix(variable.Name, "OK_")
			if accepted {
				environment = append(environment, variable.Name+"="+variable.Value)
			}
			_ = request.Reply(accepted, nil)
		case "exec":
			var line struct{ Command string }
			_ = ssh.Unmarshal(request.Payload, &line)
			command = exec.Command("/bin/sh", "-c", line.Command)
			command.Env = environment
			command.Stdout, command.Stderr = channel, channel.Stderr()
			// Its standard input stays open as long as the client's.
			stdin, _ := command.StdinPipe()
			_ = command.Start()
			go func() {
				_, _ = io.Copy(stdin, channel)
				_ = stdin.Close()
			}()
			_ = request.Reply(true, nil)
			go func(command *exec.Cmd) {
				_ = command.Wait()
				status := struct{ Code uint32 }{uint32(command.ProcessState.ExitCode())}
				_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(status))
				_ = channel.Close()
			}(command)
		case "signal":
			_ = command.Process.Signal(syscall.SIGTERM)
		}
	}
}

func (m machine) connection(t *testing.T, changes map[string]any) map[string]any {
	t.Helper()
	connection := map[string]any{"host": "127.0.0.1", "port": m.port, "privateKey": pemOf(t, m.key, ""), "hostKey": m.hostKey}
	for name, value := range changes {
		if connection[name] = value; value == nil {
			delete(connection, name)
		}
	}
	return connection
}

func TestRemoteCommand(t *testing.T) {
	client, engine := start(t)
	m := startMachine(t)
	secret := resource.MakeSecret(resource.NewPropertyValue(m.connection(t, nil)))
	file := filepath.Join(t.TempDir(), "file")
	inputs := map[string]any{
		"connection": secret, "create": "cat; echo shown >&2; echo $OK_A > " + file, "delete": "rm " + file,
		"stdin": "what it reads", "environment": map[string]any{"OK_A": "b"},
	}
	created, err := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: remoteURN, Properties: properties(t, inputs)})
	if err != nil {
		t.Fatal(err)
	}
	got := state(t, created.GetProperties())
	expect(t, got, "stdout", "what it reads")
	expect(t, got, "stderr", "shown")
	if !got["connection"].IsSecret() {
		t.Errorf("the connection is no secret: %v", got["connection"])
	}
	engine.Await(deadline(t), t, "shown")

	inputs["update"] = "cat " + file
	updated, err := client.Update(t.Context(), &pulumirpc.UpdateRequest{Urn: remoteURN, Olds: created.GetProperties(), News: properties(t, inputs)})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, state(t, updated.GetProperties()), "stdout", "b")
	if _, err := client.Delete(t.Context(), &pulumirpc.DeleteRequest{Urn: remoteURN, Properties: updated.GetProperties()}); err != nil {
		t.Fatal(err)
	}
	_, err = client.Delete(t.Context(), &pulumirpc.DeleteRequest{Urn: remoteURN, Properties: updated.GetProperties()})
	if err == nil || !strings.Contains(err.Error(), "status 1") || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("a failing command: %v", err)
	}
}

func TestRemotePreviewConnectsToNothing(t *testing.T) {
	client, _ := start(t)
	inputs := map[string]any{"create": "true", "connection": map[string]any{"host": "nowhere.invalid"}}
	created, err := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: remoteURN, Properties: properties(t, inputs), Preview: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := state(t, created.GetProperties()); !got["stdout"].IsComputed() {
		t.Errorf("stdout is %v, want unknown", got["stdout"])
	}
}

func TestRemoteKeys(t *testing.T) {
	client, _ := start(t)
	m := startMachine(t)
	stranger, _ := newKey(t)
	_, other := newKey(t)
	keyring := agent.NewKeyring()
	if err := keyring.Add(agent.AddedKey{PrivateKey: &m.key}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	acceptAll(t, listener, func(connection net.Conn) { _ = agent.ServeAgent(keyring, connection) })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := float64(closed.Addr().(*net.TCPAddr).Port)
	_ = closed.Close()

	for name, test := range map[string]struct {
		changes map[string]any
		refused string // "" where the command runs
	}{
		"a key":                      {nil, ""},
		"any host key":               {map[string]any{"hostKey": nil}, ""},
		"a key with a passphrase":    {map[string]any{"privateKey": pemOf(t, m.key, "open"), "privateKeyPassword": "open"}, ""},
		"the keys of an agent":       {map[string]any{"privateKey": nil, "agentSocketPath": socket}, ""},
		"a wrong passphrase":         {map[string]any{"privateKey": pemOf(t, m.key, "open"), "privateKeyPassword": "shut"}, "privateKey: "},
		"a stranger's key":           {map[string]any{"privateKey": pemOf(t, stranger, "")}, "unable to authenticate"},
		"another user":               {map[string]any{"user": "ops"}, "as ops: "},
		"a machine with another":     {map[string]any{"hostKey": string(ssh.MarshalAuthorizedKey(other.PublicKey()))}, "another machine answers in its place"},
		"no host key at all":         {map[string]any{"hostKey": "nonsense"}, "hostKey is no public key"},
		"a port that nobody has":     {map[string]any{"port": port, "dialErrorLimit": 1.0}, "not reached after 2 attempts"},
		"an agent that is not there": {map[string]any{"agentSocketPath": socket + "-gone"}, "the SSH agent: "},
	} {
		t.Run(name, func(t *testing.T) {
			inputs := map[string]any{"create": "echo done", "connection": m.connection(t, test.changes)}
			created, err := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: remoteURN, Properties: properties(t, inputs)})
			if test.refused == "" {
				if err != nil {
					t.Fatal(err)
				}
				expect(t, state(t, created.GetProperties()), "stdout", "done")
			} else if err == nil || !strings.Contains(err.Error(), test.refused) {
				t.Errorf("got %v, want an error with %q", err, test.refused)
			}
		})
	}
}

func TestRemoteEnvironmentThatIsNotAccepted(t *testing.T) {
	client, _ := start(t)
	m := startMachine(t)
	inputs := map[string]any{"create": "true", "connection": m.connection(t, nil), "environment": map[string]any{"NO": "1"}}
	_, err := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: remoteURN, Properties: properties(t, inputs)})
	if err == nil || !strings.Contains(err.Error(), "does not accept the variable NO") {
		t.Errorf("got %v", err)
	}
}

func TestRemoteCheckNamesWhatIsWrong(t *testing.T) {
	client, _ := start(t)
	response, err := client.Check(t.Context(), &pulumirpc.CheckRequest{Urn: remoteURN, News: properties(t, map[string]any{
		"create": 1.0, "logging": "loud", "connection": map[string]any{"host": "h", "port": "many"},
	})})
	if err != nil {
		t.Fatal(err)
	}
	var wrong []string
	for _, failure := range response.GetFailures() {
		wrong = append(wrong, failure.GetProperty())
	}
	if !slices.Contains(wrong, "create") || !slices.Contains(wrong, "logging") || len(wrong) != 3 {
		t.Errorf("got %v", response.GetFailures())
	}
}

// The command is told to stop, and what it was in the middle of ends before the connection does.
func TestRemoteCancel(t *testing.T) {
	client, engine := start(t)
	m := startMachine(t)
	file := filepath.Join(t.TempDir(), "told")
	inputs := map[string]any{"connection": m.connection(t, nil), "create": "trap 'touch " + file + "; exit' TERM; echo ready; while :; do sleep 0.05; done"}
	failed := make(chan error, 1)
	go func() {
		_, err := client.Create(context.Background(), &pulumirpc.CreateRequest{Urn: remoteURN, Properties: properties(t, inputs)})
		failed <- err
	}()
	engine.Await(deadline(t), t, "ready")
	if _, err := client.Cancel(t.Context(), &emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "stopped: the operation was cancelled") {
		t.Errorf("got %v", err)
	}
	if matches, _ := filepath.Glob(file); len(matches) == 0 {
		t.Error("the command was not told to stop")
	}
}
