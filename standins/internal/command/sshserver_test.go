package command

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

// sshServer is an SSH server on loopback that runs commands, as this user, and forwards connections.
type sshServer struct {
	host    string
	port    float64
	hostKey string // as in a .pub file
	signals chan string
	deaf    bool          // whether signals are not passed on
	ended   chan struct{} // one for each connection that has ended after its login

	config *ssh.ServerConfig
}

// startSSH starts a server that ends with the test. allow says who may log in.
func startSSH(t *testing.T, hostKey ssh.Signer, allow func(*ssh.ServerConfig)) *sshServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	address := listener.Addr().(*net.TCPAddr)
	server := &sshServer{
		host: address.IP.String(), port: float64(address.Port),
		hostKey: string(ssh.MarshalAuthorizedKey(hostKey.PublicKey())),
		signals: make(chan string, 10), ended: make(chan struct{}, 10),
		config: &ssh.ServerConfig{},
	}
	server.config.AddHostKey(hostKey)
	allow(server.config)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go server.serve(connection)
		}
	}()
	return server
}

// newKey returns a new key, twice.
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

// onlyKey allows who has the key.
func onlyKey(key ssh.PublicKey) func(*ssh.ServerConfig) {
	return func(config *ssh.ServerConfig) {
		config.PublicKeyCallback = func(_ ssh.ConnMetadata, offered ssh.PublicKey) (*ssh.Permissions, error) {
			if string(offered.Marshal()) != string(key.Marshal()) {
				return nil, errors.New("another key")
			}
			return nil, nil
		}
	}
}

func (s *sshServer) serve(connection net.Conn) {
	defer connection.Close()
	transport, channels, requests, err := ssh.NewServerConn(connection, s.config)
	if err != nil {
		return
	}
	defer func() { s.ended <- struct{}{} }()
	go ssh.DiscardRequests(requests)
	for channel := range channels {
		switch channel.ChannelType() {
		case "session":
			go s.session(channel)
		case "direct-tcpip":
			go forward(channel)
		default:
			_ = channel.Reject(ssh.UnknownChannelType, "")
		}
	}
	_ = transport.Wait()
}

func (s *sshServer) session(newChannel ssh.NewChannel) {
	channel, requests, err := newChannel.Accept()
	if err != nil {
		return
	}
	var environment []string
	var command *exec.Cmd
	for request := range requests {
		ok := true
		switch request.Type {
		case "env":
			var variable struct{ Name, Value string }
			_ = ssh.Unmarshal(request.Payload, &variable)
			if ok = slices.Contains([]string{"OWN", previousStdout}, variable.Name); ok {
				environment = append(environment, variable.Name+"="+variable.Value)
			}
		case "exec":
			var shell struct{ Command string }
			_ = ssh.Unmarshal(request.Payload, &shell)
			command = exec.Command("/bin/sh", "-c", shell.Command)
			command.Env = environment
			command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			command.Stdout, command.Stderr = channel, channel.Stderr()
			stdin, _ := command.StdinPipe()
			ok = command.Start() == nil
			go func() {
				_, _ = io.Copy(stdin, channel)
				_ = stdin.Close()
			}()
			_ = request.Reply(ok, nil) // before the command's end
			request.WantReply = false
			go finish(command, channel)
		case "signal":
			var signal struct{ Name string }
			_ = ssh.Unmarshal(request.Payload, &signal)
			s.signals <- signal.Name
			if s.deaf {
				break
			}
			number := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[signal.Name]
			_ = syscall.Kill(-command.Process.Pid, number)
		}
		if request.WantReply {
			_ = request.Reply(ok, nil)
		}
	}
}

func finish(command *exec.Cmd, channel ssh.Channel) {
	_ = command.Wait()
	if state := command.ProcessState.Sys().(syscall.WaitStatus); state.Signaled() {
		_, _ = channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name        string
			Core        bool
			Error, Lang string
		}{Name: map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGKILL: "KILL"}[state.Signal()]}))
	} else {
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(state.ExitStatus())}))
	}
	_ = channel.Close()
}

func forward(newChannel ssh.NewChannel) {
	var target struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	_ = ssh.Unmarshal(newChannel.ExtraData(), &target)
	connection, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.ParseIP(target.Host), Port: int(target.Port)})
	if err != nil {
		_ = newChannel.Reject(ssh.ConnectionFailed, "Connection refused")
		return
	}
	channel, requests, err := newChannel.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(channel, connection); _ = channel.Close() })
	both.Go(func() { _, _ = io.Copy(connection, channel); _ = connection.Close() })
	both.Wait()
}
