package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// A node that joins another one's server runs a kubelet alone. It comes with the server's address, a token, and the two
// authorities, and asks the server for certificates of its own, which the kubelet renews. Who serves Services on the
// node calls the API server by the kubelet's kubeconfig. Where the server is k3s, its own agent runs in place of that
// kubelet, and everything else is the same.

const (
	joinCommand   = "join"
	podsNote      = "pods" // the network of the node's pods, as the controller manager gives it
	joinLookEvery = 200 * time.Millisecond
)

func (c *Config) agentPath(name string) string { return c.path("agent", name) }

// runJoin runs a node that joins, until the context's end.
// official is k3s' program, whose agent is the kubelet and reads the config's file; empty for that of this program.
func runJoin(ctx context.Context, c *Config, file, official string) error {
	if c.Server == "" || c.TokenFile == "" {
		return errors.New("server and token-file: both are needed to join")
	}
	if err := awaitPorts(ctx, c); err != nil {
		return err
	}
	if err := forgetOtherServer(c); err != nil {
		return err
	}
	kubelet, err := joiningKubelet(c, file, official)
	if err != nil {
		return err
	}
	stages := newStages(c)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	components := newComponents(c, nil, cancel)
	started := time.Now()
	components.start(ctx, "kubelet", kubelet)
	components.start(ctx, "volumes", func(ctx context.Context) error {
		client := joinedClient(ctx, c)
		if client == nil {
			return nil
		}
		go noteJoined(ctx, client, c.NodeName, started, stages)
		volumes := &nodeVolumes{folder: c.LocalStoragePath, node: c.NodeName, noted: c.agentPath("volumes")}
		return volumes.keep(ctx, client)
	})
	<-ctx.Done()
	components.wait()
	return endOf(ctx)
}

// joiningKubelet is what runs as the node's kubelet.
func joiningKubelet(c *Config, file, official string) (func(context.Context) error, error) {
	if official != "" {
		// It asks for certificates at each start. With one of before, whose node was deleted, it would do so for ever in vain
		// (k3s: pkg/agent/config, its fallback sends a body twice), and with the token alone it does not.
		err := os.Remove(c.agentPath("client-kubelet.crt"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return func(ctx context.Context) error { return runOfficialAgent(ctx, official, file) }, nil
	}
	if err := writeBootstrap(c); err != nil {
		return nil, err
	}
	identity := kubeletIdentity{
		kubeconfig: c.agentPath("kubelet.kubeconfig"),
		clientCA:   c.agentPath("client-ca.crt"),
		provider:   joinedID(c.NodeName),
		flags: map[string]string{
			"bootstrap-kubeconfig": c.agentPath("bootstrap.kubeconfig"),
			"cert-dir":             c.agentPath("pki"),
		},
	}
	return func(ctx context.Context) error { return runKubelet(ctx, c, identity) }, nil
}

// runOfficialAgent runs k3s' agent until the context's end. It does not outlive this process, whatever becomes of that.
func runOfficialAgent(ctx context.Context, program, file string) error {
	runtime.LockOSThread() // with the thread that started it, it would end too
	command := agentProcess(ctx, program, file)
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmp.Or(command.Run(), errors.New("it should not"))
}

// forgetOtherServer takes away what the node has of a server that is no more: another authority is another cluster.
func forgetOtherServer(c *Config) error {
	authority, err := os.ReadFile(c.agentPath("server-ca.crt"))
	if err != nil {
		return err
	}
	hash := sha256.Sum256(authority)
	now := hex.EncodeToString(hash[:])
	before, err := os.ReadFile(c.agentPath("joined"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(before) != now {
		// The latter are those of k3s' agent, which asks for them again.
		for _, pattern := range []string{"pki", "*.kubeconfig", "client-kube*", "client-k3s*", "serving-*"} {
			found, err := filepath.Glob(c.agentPath(pattern))
			for _, path := range found {
				err = errors.Join(err, os.RemoveAll(path))
			}
			if err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(c.agentPath("pki"), 0o700); err != nil {
		return err
	}
	return writePrivate(c.agentPath("joined"), []byte(now))
}

// writeBootstrap writes by what the kubelet asks for its first certificate.
func writeBootstrap(c *Config) error {
	token, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return err
	}
	content, err := clientcmd.Write(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{
			"server": {Server: c.Server, CertificateAuthority: c.agentPath("server-ca.crt")},
		},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"token": {Token: strings.TrimSpace(string(token))}},
		Contexts:       map[string]*clientcmdapi.Context{"server": {Cluster: "server", AuthInfo: "token"}},
		CurrentContext: "server",
	})
	if err != nil {
		return err
	}
	return writePrivate(c.agentPath("bootstrap.kubeconfig"), content)
}

// noteJoined notes when the node has its pods' network, and when it is Ready since this start.
func noteJoined(ctx context.Context, client kubernetes.Interface, name string, started time.Time, stages *stages) {
	noted := ""
	_ = wait.PollUntilContextCancel(ctx, joinLookEvery, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, answer)
		defer cancel()
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, nil
		}
		if node.Spec.PodCIDR != "" && node.Spec.PodCIDR != noted {
			noted = node.Spec.PodCIDR
			stages.note(podsNote, noted)
		}
		for _, condition := range node.Status.Conditions {
			isNew := condition.LastHeartbeatTime.Unix() >= started.Unix() // times there have no fraction of a second
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue && isNew {
				stages.reached(stageNames[stageNode])
				return true, nil
			}
		}
		return false, nil
	})
}

// joinedClient calls the API server as the kubelet does, once that has credentials; nil where the context ends before.
func joinedClient(ctx context.Context, c *Config) (client kubernetes.Interface) {
	_ = wait.PollUntilContextCancel(ctx, joinLookEvery, true, func(context.Context) (bool, error) {
		config, err := clientcmd.BuildConfigFromFlags("", c.agentPath("kubelet.kubeconfig"))
		if err != nil {
			return false, nil
		}
		made, err := kubernetes.NewForConfig(config)
		if err == nil {
			client = made
		}
		return err == nil, nil
	})
	return client
}
