package command

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"google.golang.org/protobuf/types/known/emptypb"

	"gvisor-k3s/standins/internal/plugintest"
)

const remoteURN = "urn:pulumi:stack::project::command:remote:Command::name"

// TestMain keeps the agent of who runs the tests out of them.
func TestMain(m *testing.M) {
	_ = os.Unsetenv("SSH_AUTH_SOCK")
	os.Exit(m.Run())
}

// keyText is key as a file has it, encrypted if there is a passphrase.
func keyText(t *testing.T, key ed25519.PrivateKey, passphrase string) string {
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

// startRemote starts a server and returns a connection that logs in to it.
func startRemote(t *testing.T) (*sshServer, map[string]any) {
	t.Helper()
	_, hostKey := newKey(t)
	key, signer := newKey(t)
	server := startSSH(t, hostKey, onlyKey(signer.PublicKey()))
	return server, server.connection(map[string]any{"privateKey": keyText(t, key, "")})
}

func (s *sshServer) connection(options map[string]any) map[string]any {
	return with(map[string]any{"host": s.host, "port": s.port, "hostKey": s.hostKey, "dialErrorLimit": 0}, options)
}

// with is values with changes; nil removes one.
func with(values, changes map[string]any) map[string]any {
	values = maps.Clone(values)
	maps.Copy(values, changes)
	maps.DeleteFunc(values, func(_ string, value any) bool { return value == nil })
	return values
}

func createRemote(t *testing.T, client pulumirpc.ResourceProviderClient, inputs map[string]any) (resource.PropertyMap, error) {
	t.Helper()
	response, err := client.Create(t.Context(), &pulumirpc.CreateRequest{Urn: remoteURN, Properties: properties(t, inputs)})
	if err != nil {
		return nil, err
	}
	return state(t, response.GetProperties()), nil
}

// expectLogin fails the test unless want is the error of a command over connection; "" is none.
func expectLogin(t *testing.T, connection map[string]any, want string) {
	t.Helper()
	client, _ := start(t)
	got, err := createRemote(t, client, map[string]any{"connection": connection, "create": "echo ok"})
	switch {
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error %v, want %q in it", err, want)
	case want == "" && err != nil:
		t.Error(err)
	case want == "":
		expect(t, got, "stdout", "ok")
	}
}

func TestRemoteLifeCycle(t *testing.T) {
	client, engine := start(t)
	server, connection := startRemote(t)
	file := filepath.Join(t.TempDir(), "deleted")
	inputs := map[string]any{
		"connection":  resource.MakeSecret(resource.NewPropertyValue(connection)),
		"create":      `cat; echo "$OWN"; echo err >&2`,
		"update":      `echo "after $PULUMI_COMMAND_STDOUT"`,
		"delete":      `echo "$PULUMI_COMMAND_STDOUT" > ` + file,
		"stdin":       "given\n",
		"environment": map[string]any{"OWN": resource.MakeSecret(resource.NewStringProperty("own"))},
	}
	created, err := createRemote(t, client, inputs)
	if err != nil {
		t.Fatal(err)
	}
	<-server.ended
	expect(t, created, "stdout", "given\nown")
	expect(t, created, "stderr", "err")
	for _, line := range []string{"given", "own", "err"} {
		engine.Await(deadline(t), t, line)
	}
	if !created["connection"].IsSecret() || !created["environment"].ObjectValue()["OWN"].IsSecret() {
		t.Errorf("secrets are in the state as %v, %v", created["connection"], created["environment"])
	}

	olds, err := marshal(created)
	if err != nil {
		t.Fatal(err)
	}
	updated, err := client.Update(t.Context(), &pulumirpc.UpdateRequest{
		Id: "id", Urn: remoteURN, Olds: olds, News: properties(t, inputs),
	})
	if err != nil {
		t.Fatal(err)
	}
	<-server.ended
	expect(t, state(t, updated.GetProperties()), "stdout", "after given\nown")

	if _, err := client.Delete(t.Context(), &pulumirpc.DeleteRequest{
		Id: "id", Urn: remoteURN, Properties: updated.GetProperties(),
	}); err != nil {
		t.Fatal(err)
	}
	<-server.ended
	if text, err := os.ReadFile(file); err != nil || string(text) != "after given\nown\n" {
		t.Errorf("the delete command wrote %q (%v), want the last stdout", text, err)
	}
}

func TestRemoteEnvironmentThatTheServerRefuses(t *testing.T) {
	client, engine := start(t)
	_, connection := startRemote(t)
	_, err := createRemote(t, client, map[string]any{
		"connection": connection, "create": "true", "environment": map[string]any{"OTHER": "x"},
	})
	if err == nil || !strings.Contains(err.Error(), `"OTHER"`) || !strings.Contains(err.Error(), "AcceptEnv") {
		t.Errorf("error %v, want one that names the variable and AcceptEnv", err)
	}

	// The last stdout is taken, stderr is not, which is no failure.
	response, err := client.Update(t.Context(), &pulumirpc.UpdateRequest{
		Id: "id", Urn: remoteURN, Olds: properties(t, map[string]any{"stdout": "out", "stderr": "err"}),
		News: properties(t, map[string]any{
			"connection": connection, "create": "echo $PULUMI_COMMAND_STDOUT, $PULUMI_COMMAND_STDERR",
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, state(t, response.GetProperties()), "stdout", "out,")
	if shown := strings.Join(engine.Messages(), "\n"); !strings.Contains(shown, previousStderr) {
		t.Errorf("no warning about %s in %q", previousStderr, shown)
	}
}

func TestRemoteFailuresCarryTheOutput(t *testing.T) {
	client, _ := start(t)
	server, connection := startRemote(t)
	for command, want := range map[string]string{
		"echo out; echo err >&2; exit 3":  "Process exited with status 3",
		"echo out; echo err >&2; kill $$": "Process exited with status 143 from signal TERM",
	} {
		_, err := createRemote(t, client, map[string]any{"connection": connection, "create": command})
		for _, part := range []string{want, strconv.Quote(command), "out\n", "err\n"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("error %v lacks %q", err, part)
			}
		}
		<-server.ended
	}
}

func TestRemoteStdinMayBeLeftUnread(t *testing.T) {
	client, _ := start(t)
	_, connection := startRemote(t)
	if _, err := createRemote(t, client, map[string]any{
		"connection": connection, "create": "true", "stdin": strings.Repeat("x", 3<<20), // more than SSH's window
	}); err != nil {
		t.Error(err)
	}
}

func TestRemoteCheckFillsInDefaultsAndMarksSecrets(t *testing.T) {
	client, _ := start(t)
	check := func(connection any) resource.PropertyValue {
		t.Helper()
		response, err := client.Check(t.Context(), &pulumirpc.CheckRequest{
			Urn: remoteURN, News: properties(t, map[string]any{"connection": connection}),
		})
		if err != nil || len(response.GetFailures()) > 0 {
			t.Fatal(response, err)
		}
		return state(t, response.GetInputs())["connection"]
	}
	defaults := map[string]any{"user": "root", "port": 22.0, "dialErrorLimit": 10.0, "perDialTimeout": 15.0}
	secret := func(value any) resource.PropertyValue { return resource.MakeSecret(resource.NewPropertyValue(value)) }
	for name, test := range map[string]struct{ given, want any }{
		"plain":  {map[string]any{"host": "h"}, secret(with(defaults, map[string]any{"host": "h"}))},
		"secret": {secret(map[string]any{"host": "h"}), secret(with(defaults, map[string]any{"host": "h"}))},
		"given": {
			map[string]any{"host": "h", "user": "u", "port": 1.0, "dialErrorLimit": -1.0, "perDialTimeout": 0.0, "password": "p"},
			secret(map[string]any{"host": "h", "user": "u", "port": 1.0, "dialErrorLimit": -1.0, "perDialTimeout": 0.0, "password": secret("p")}),
		},
		"proxy": {
			map[string]any{"host": "h", "proxy": map[string]any{"host": "p", "password": "p"}},
			secret(with(defaults, map[string]any{
				"host": "h", "proxy": with(defaults, map[string]any{"host": "p", "password": secret("p")}),
			})),
		},
		"unknown host": {map[string]any{"host": unknown}, secret(with(defaults, map[string]any{"host": unknown}))},
		"unknown":      {unknown, resource.MakeSecret(unknown)},
	} {
		if got := check(test.given); !got.DeepEquals(resource.NewPropertyValue(test.want)) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestRemoteCheckReportsEveryProblem(t *testing.T) {
	client, _ := start(t)
	key, _ := newKey(t)
	for want, inputs := range map[string]map[string]any{
		"connection": {},
		"connection.host connection.password connection.port connection.proxy.host connection.proxy.typo create dir logging": {
			"connection": resource.MakeSecret(resource.NewPropertyValue(map[string]any{
				"password": true, "port": "22", "proxy": map[string]any{"typo": 1.0},
			})),
			"create": 1.0, "dir": "/", "logging": "loud",
		},
		"connection.hostKey connection.port connection.proxy.privateKeyPassword": {"connection": map[string]any{
			"host": "h", "port": 70000.0, "hostKey": "nonsense", "proxy": map[string]any{
				"host": "h", "privateKey": keyText(t, key, "phrase"), "privateKeyPassword": "another",
			},
		}},
		"connection.typo": {"connection": map[string]any{
			"host": unknown, "typo": 1.0, "privateKey": keyText(t, key, "phrase"), "privateKeyPassword": unknown,
		}},
	} {
		response, err := client.Check(t.Context(), &pulumirpc.CheckRequest{Urn: remoteURN, News: properties(t, inputs)})
		if err != nil {
			t.Fatal(err)
		}
		var paths []string
		for _, failure := range response.GetFailures() {
			paths = append(paths, failure.GetProperty())
		}
		if got := strings.Join(paths, " "); got != want {
			t.Errorf("failures for %q, want %q", got, want)
		}
	}
}

func TestRemotePreviewDoesNotConnect(t *testing.T) {
	client, _ := start(t)
	for name, connection := range map[string]any{
		"known":        map[string]any{"host": "does.not.exist.invalid"},
		"unknown host": resource.MakeSecret(resource.NewPropertyValue(map[string]any{"host": unknown})),
		"unknown":      resource.MakeSecret(unknown),
	} {
		response, err := client.Create(t.Context(), &pulumirpc.CreateRequest{
			Urn: remoteURN, Preview: true,
			Properties: properties(t, map[string]any{"connection": connection, "create": "true"}),
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := state(t, response.GetProperties())
		if !got["stdout"].IsComputed() || !got["stderr"].IsComputed() {
			t.Errorf("%s: stdout %v, stderr %v; want both unknown", name, got["stdout"], got["stderr"])
		}
	}
}

func TestRemoteDiff(t *testing.T) {
	client, _ := start(t)
	old := map[string]any{"connection": map[string]any{"host": "h", "user": "a"}, "triggers": []any{"a"}}
	response, err := client.Diff(t.Context(), &pulumirpc.DiffRequest{
		Id: "id", Urn: remoteURN, OldInputs: properties(t, old),
		News: properties(t, map[string]any{"connection": map[string]any{"host": "h", "user": "b"}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := response.GetDetailedDiff(); len(got) != 2 ||
		got["connection.user"].GetKind() != pulumirpc.PropertyDiff_UPDATE ||
		got["triggers"].GetKind() != pulumirpc.PropertyDiff_DELETE_REPLACE {
		t.Errorf("detailed diff %v", got)
	}
}

func TestRemoteHostKey(t *testing.T) {
	server, connection := startRemote(t)
	_, other := newKey(t)
	expectLogin(t, with(connection, map[string]any{"hostKey": nil}), "")
	line := string(ssh.MarshalAuthorizedKey(other.PublicKey()))
	shown, _, _, _, err := ssh.ParseAuthorizedKey([]byte(server.hostKey))
	if err != nil {
		t.Fatal(err)
	}
	// Ten attempts may fail: a refusal is none of them.
	expectLogin(t, with(connection, map[string]any{"hostKey": line, "dialErrorLimit": nil}), fmt.Sprintf(
		"ssh: root@%s:%v: the host key is not the expected one (expected %s, got %s)",
		server.host, server.port, fingerprint(other.PublicKey()), fingerprint(shown)))

	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	key, signer := newKey(t)
	rsaServer := startSSH(t, rsaKey, onlyKey(signer.PublicKey()))
	connection = rsaServer.connection(map[string]any{"privateKey": keyText(t, key, "")})
	expectLogin(t, connection, "")
	expectLogin(t, with(connection, map[string]any{"hostKey": line}), "got ssh-rsa SHA256:") // has none of that type
}

func TestRemoteLogin(t *testing.T) {
	_, hostKey := newKey(t)
	key, signer := newKey(t)
	byKey := startSSH(t, hostKey, onlyKey(signer.PublicKey()))
	another, anotherSigner := newKey(t)
	const refused = "the login was refused"
	who := fmt.Sprintf("ssh: root@%s:%v: ", byKey.host, byKey.port)

	expectLogin(t, byKey.connection(map[string]any{"privateKey": keyText(t, another, ""), "dialErrorLimit": nil}),
		who+refused+" (tried: the private key of "+fingerprint(anotherSigner.PublicKey())+")")
	expectLogin(t, byKey.connection(nil), who+refused+" (tried: nothing")
	locked := byKey.connection(map[string]any{"privateKey": keyText(t, key, "phrase")})
	expectLogin(t, with(locked, map[string]any{"privateKeyPassword": "phrase"}), "")
	expectLogin(t, with(locked, map[string]any{"privateKeyPassword": "another"}), "privateKey: ")
	expectLogin(t, locked, "passphrase protected")

	socket := serveAgent(t, key)
	expectLogin(t, byKey.connection(map[string]any{"agentSocketPath": socket}), "")
	expectLogin(t, byKey.connection(map[string]any{"agentSocketPath": socket + ".gone"}), "agentSocketPath")
	t.Setenv("SSH_AUTH_SOCK", socket)
	expectLogin(t, byKey.connection(nil), "")
	t.Setenv("SSH_AUTH_SOCK", serveAgent(t, another))
	expectLogin(t, byKey.connection(nil), refused)
	t.Setenv("SSH_AUTH_SOCK", "")

	check := func(user, password string) (*ssh.Permissions, error) {
		if user != "somebody" || password != "s3cret" {
			return nil, errors.New("wrong")
		}
		return nil, nil
	}
	for name, allow := range map[string]func(*ssh.ServerConfig){
		"password": func(config *ssh.ServerConfig) {
			config.PasswordCallback = func(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
				return check(c.User(), string(password))
			}
		},
		"question": func(config *ssh.ServerConfig) {
			config.KeyboardInteractiveCallback = func(
				c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge,
			) (*ssh.Permissions, error) {
				answers, err := ask("", "", []string{"Password: "}, []bool{false})
				if err != nil {
					return nil, err
				}
				return check(c.User(), answers[0])
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := startSSH(t, hostKey, allow)
			connection := server.connection(map[string]any{"user": "somebody", "password": "s3cret"})
			expectLogin(t, connection, "")
			expectLogin(t, with(connection, map[string]any{"password": "guess"}), refused+" (tried: the password)")
		})
	}
}

// serveAgent serves an agent with key until the test's end and returns its socket.
func serveAgent(t *testing.T, key ed25519.PrivateKey) string {
	t.Helper()
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = agent.ServeAgent(keys, connection)
				_ = connection.Close()
			}()
		}
	}()
	return socket
}

func TestRemoteNothingListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	expectLogin(t, map[string]any{"host": "127.0.0.1", "port": float64(port), "dialErrorLimit": 1.0},
		fmt.Sprintf("ssh: 127.0.0.1:%d: connection refused after 2 attempts", port))
}

func TestRemoteServerThatIsNotReadyIsTriedAgain(t *testing.T) {
	server, connection := startRemote(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for attempt := 0; ; attempt++ {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			if attempt < 2 {
				_ = connection.Close()
				continue
			}
			go server.serve(connection)
		}
	}()
	connection = with(connection, map[string]any{"port": float64(listener.Addr().(*net.TCPAddr).Port)})
	expectLogin(t, connection, "after 1 attempt")
	expectLogin(t, with(connection, map[string]any{"dialErrorLimit": 1.0}), "")
}

func TestRemoteProxy(t *testing.T) {
	server, connection := startRemote(t)
	proxy, throughProxy := startRemote(t)
	expectLogin(t, with(connection, map[string]any{"proxy": throughProxy}), "")
	<-server.ended
	<-proxy.ended

	another, _ := newKey(t)
	expectLogin(t, with(connection, map[string]any{"proxy": with(throughProxy, map[string]any{"privateKey": keyText(t, another, "")})}),
		fmt.Sprintf("proxy: ssh: root@%s:%v: the login was refused", proxy.host, proxy.port))
	expectLogin(t, with(connection, map[string]any{"proxy": throughProxy, "privateKey": keyText(t, another, "")}),
		fmt.Sprintf("ssh: root@%s:%v: the login was refused", server.host, server.port))
	expectLogin(t, with(connection, map[string]any{"proxy": throughProxy, "port": 1.0}),
		"ssh: 127.0.0.1:1: the proxy says: connect failed (Connection refused) after 1 attempt")
}

// The cancelled command must get SIGTERM and be gone, even when it ignores that. What a server does about signals is its
// own business, but the call must return.
func TestRemoteStop(t *testing.T) {
	cancel := func(client pulumirpc.ResourceProviderClient) error {
		_, err := client.Cancel(context.Background(), &emptypb.Empty{})
		return err
	}
	for name, test := range map[string]struct {
		trap    string
		deaf    bool
		timeout float64
		stop    func(pulumirpc.ResourceProviderClient) error
		want    string
		signals []string
	}{
		"cancel":       {"", false, 0, cancel, "cancelled", []string{"TERM"}},
		"timeout":      {"", false, 1, nil, "customTimeouts", []string{"TERM"}},
		"deaf command": {"trap '' TERM; ", false, 0, cancel, "cancelled", []string{"TERM", "KILL"}},
		"deaf server":  {"", true, 0, cancel, "may still run", []string{"TERM", "KILL"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, engine := start(t)
			server, connection := startRemote(t)
			server.deaf = test.deaf
			done := make(chan error, 1)
			go func() {
				_, err := client.Create(t.Context(), &pulumirpc.CreateRequest{
					Urn: remoteURN, Timeout: test.timeout, Properties: properties(t, map[string]any{
						"connection": connection, "create": test.trap + "echo pid $$; echo started; sleep 600",
					}),
				})
				done <- err
			}()
			engine.Await(deadline(t), t, "started")
			pid, err := strconv.Atoi(strings.TrimPrefix(engine.Messages()[0], "pid "))
			if err != nil {
				t.Fatal(err)
			}
			if test.stop != nil {
				if err := test.stop(client); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
			for _, signal := range test.signals {
				if got := <-server.signals; got != signal {
					t.Errorf("signal %s, want %s", got, signal)
				}
			}
			<-server.ended
			if test.deaf {
				_ = syscall.Kill(-pid, syscall.SIGKILL)
			}
			plugintest.AwaitGone(t, pid)
		})
	}
}

func TestRemoteStopWhileItConnects(t *testing.T) {
	client, _ := start(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // which accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		_, err := createRemote(t, client, map[string]any{"create": "true", "connection": map[string]any{
			"host": "127.0.0.1", "port": float64(listener.Addr().(*net.TCPAddr).Port), "perDialTimeout": 0.0,
		}})
		done <- err
	}()
	silent, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if _, err := client.Cancel(t.Context(), &emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "cancelled") {
		t.Errorf("error %v, want the cancellation", err)
	}
}
