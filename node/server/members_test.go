package main

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestMembers(t *testing.T) {
	config := &Config{DataDir: t.TempDir(), NodeName: "a"}
	if err := os.MkdirAll(config.path("server", "tls"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := pki{config: config}
	for _, name := range []string{serverCA, clientCA} {
		if err := os.WriteFile(p.cert(name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a-w-1"}})
	address := netip.MustParseAddr("10.107.0.6")
	first, err := invite(t.Context(), config, client, "a-w-1", address)
	if err != nil {
		t.Fatal(err)
	}
	again, err := invite(t.Context(), config, client, "a-w-1", address)
	if err != nil || *again != *first || first.ServerCA != serverCA || first.ClientCA != clientCA {
		t.Errorf("invited again: %+v, %v; before %+v", again, err, first)
	}
	other, err := invite(t.Context(), config, client, "a-w-2", netip.MustParseAddr("10.107.0.10"))
	if err != nil || other.Token == first.Token {
		t.Errorf("two nodes have one token: %v", err)
	}
	if info, err := os.Stat(memberFile(config, "a-w-1")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a token's file: %v, %v", info, err)
	}
	m, err := readMember(config, "a-w-1")
	if err != nil || m.Address != address {
		t.Errorf("%+v, %v", m, err)
	}
	secret := "bootstrap-token-" + m.ID
	if _, err := client.CoreV1().Secrets("kube-system").Get(t.Context(), secret, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := forgetMember(t.Context(), config, client, "a-w-1"); err != nil {
			t.Fatal(err)
		}
	}
	_, err = client.CoreV1().Secrets("kube-system").Get(t.Context(), secret, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("its token: %v", err)
	}
	if _, err := client.CoreV1().Nodes().Get(t.Context(), "a-w-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the node: %v", err)
	}
	if _, err := readMember(config, "a-w-1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the member: %v", err)
	}
	for _, name := range []string{"", "..", "../tls/server-ca", "a/b"} {
		if _, err := readMember(config, name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q is looked for as a file", name)
		}
	}
}

// Another authority is another cluster: a node keeps nothing of the one before.
func TestANodeJoinsAnotherServer(t *testing.T) {
	config := &Config{DataDir: t.TempDir()}
	write := func(name, content string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(config.agentPath("pki"), 0o700),
			os.WriteFile(config.agentPath(name), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	has := func(name string) bool {
		_, err := os.Stat(config.agentPath(name))
		return err == nil
	}
	write("server-ca.crt", "one")
	for _, c := range []struct {
		authority string
		kept      bool
	}{{"one", false}, {"one", true}, {"two", false}, {"two", true}} {
		write("server-ca.crt", c.authority)
		write("kubelet.kubeconfig", "x")
		write("pki/key", "x")
		if err := forgetOtherServer(config); err != nil {
			t.Fatal(err)
		}
		if has("kubelet.kubeconfig") != c.kept || has("pki/key") != c.kept {
			t.Errorf("%+v: the kubeconfig is kept: %t", c, has("kubelet.kubeconfig"))
		}
	}
}
