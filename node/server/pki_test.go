package main

import (
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
)

func prepare(t *testing.T, config *Config) *pki {
	t.Helper()
	p, err := preparePKI(config)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// privates reads every file in server/tls, by name.
func privates(t *testing.T, config *Config) map[string]string {
	t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(config.path("server", "tls"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		content, err := os.ReadFile(config.path("server", "tls", entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = string(content)
	}
	return files
}

func certificate(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	certificates, err := cert.CertsFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return certificates[0]
}

func TestCertificates(t *testing.T) {
	config := configFor(t, "tls-san: [api.example.test, 198.51.100.4]\nadvertise-address: 192.0.2.8\n")
	p := prepare(t, config)
	cases := []struct {
		name, ca, common string
		groups, serves   []string
	}{
		{"apiserver", serverCA, "kube-apiserver", nil, []string{"kubernetes", "kubernetes.default.svc.cluster.local", "localhost", "node-1", "api.example.test",
			"127.0.0.1", "192.0.2.7", "192.0.2.8", "10.43.0.1", "198.51.100.4"}},
		{"kubelet-serving", serverCA, "node-1", nil, []string{"node-1", "192.0.2.7"}},
		{"apiserver-kubelet", clientCA, "kube-apiserver", []string{"system:masters"}, nil},
		{"auth-proxy", requestHeaderCA, "system:auth-proxy", nil, nil}, // not by the clients' CA: it may speak for anybody
		{"admin", clientCA, "system:admin", []string{"system:masters"}, nil},
		{"controller-manager", clientCA, "system:kube-controller-manager", nil, nil},
		{"scheduler", clientCA, "system:kube-scheduler", nil, nil},
		{"kubelet", clientCA, "system:node:node-1", []string{"system:nodes"}, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, err := tls.LoadX509KeyPair(p.cert(c.name), p.key(c.name)); err != nil {
				t.Error(err)
			}
			leaf := certificate(t, p.cert(c.name))
			if leaf.Subject.CommonName != c.common || !slices.Equal(leaf.Subject.Organization, c.groups) {
				t.Errorf("it speaks for %s", leaf.Subject)
			}
			usage := x509.ExtKeyUsageClientAuth
			if c.serves != nil {
				usage = x509.ExtKeyUsageServerAuth
			}
			for _, name := range append(c.serves, "") { // "" for any
				for _, ca := range []string{serverCA, clientCA, requestHeaderCA} {
					roots := x509.NewCertPool()
					roots.AddCert(certificate(t, p.cert(ca)))
					if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); (err == nil) != (ca == c.ca) {
						t.Errorf("for the name %q it verifies with %s: %v", name, ca, err)
					}
				}
			}
		})
	}
	filepath.WalkDir(config.DataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		info, err := entry.Info()
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[entry.IsDir()]; strings.Contains(path, "/server/") && (err != nil || info.Mode().Perm() != want) {
			t.Errorf("%s has mode %o, want %o; %v", path, info.Mode().Perm(), want, err)
		}
		return nil
	})
}

func TestKubeconfigs(t *testing.T) {
	config := configFor(t, "advertise-address: 192.0.2.8\nhttps-listen-port: 7443\n")
	p := prepare(t, config)
	for _, c := range []struct{ file, server, user string }{
		{p.kubeconfig("admin"), "https://127.0.0.1:7443", "system:admin"},
		{p.kubeconfig("controller-manager"), "https://127.0.0.1:7443", "system:kube-controller-manager"},
		{p.kubeconfig("scheduler"), "https://127.0.0.1:7443", "system:kube-scheduler"},
		{p.kubeconfig("kubelet"), "https://127.0.0.1:7443", "system:node:node-1"},
		{config.WriteKubeconfig, "https://192.0.2.8:7443", "system:admin"}, // for others, from elsewhere
	} {
		if info, err := os.Stat(c.file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: others can read the key: %v, %v", c.file, info, err)
		}
		// It is copied to other places, so it must need nothing beside itself.
		content, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := clientcmd.RESTConfigFromKubeConfig(content)
		if err != nil {
			t.Fatalf("%s: %v", c.file, err)
		}
		pair, err := tls.X509KeyPair(loaded.CertData, loaded.KeyData)
		if err != nil || pair.Leaf.Subject.CommonName != c.user || loaded.Host != c.server {
			t.Errorf("%s: %v calls %s, %v; want %s, %s", c.file, pair.Leaf.Subject, loaded.Host, err, c.user, c.server)
		}
		if ca, err := os.ReadFile(p.cert(serverCA)); err != nil || string(loaded.CAData) != string(ca) {
			t.Errorf("%s trusts another CA, %v", c.file, err)
		}
	}
}

// What is good is kept over restarts, and of what is not the least is replaced: the cluster trusts the authorities and the service key.
func TestRenewal(t *testing.T) {
	reissue := func(p *pki, name, ca string, left time.Duration) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			leaf := certificate(t, p.cert(name))
			leaf.NotAfter = time.Now().Add(left)
			key, err := p.ensureKey(name)
			if err != nil {
				t.Fatal(err)
			}
			caKey, err := p.ensureKey(ca)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.sign(name, leaf, certificate(t, p.cert(ca)), key.Public(), caKey); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(file string) func(*testing.T) {
		return func(t *testing.T) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	config := configFor(t, "")
	p := prepare(t, config)
	all := []string{"admin.crt", "apiserver-kubelet.crt", "apiserver.crt", "auth-proxy.crt", "controller-manager.crt", "kubelet-serving.crt", "kubelet.crt", "scheduler.crt"}
	cases := []struct {
		name   string
		change func(*testing.T)
		want   []string // what is replaced
	}{
		{"nothing changed", func(*testing.T) {}, nil},
		{"another name for the API server", func(*testing.T) { config.TLSSAN = []string{"new.example.test"} }, []string{"apiserver.crt"}},
		{"the node has another address", func(*testing.T) { config.NodeIP = "192.0.2.99" }, []string{"apiserver.crt", "kubelet-serving.crt"}},
		{"the node has another name", func(*testing.T) { config.NodeName = "node-2" }, []string{"apiserver.crt", "kubelet-serving.crt", "kubelet.crt"}},
		{"near its end", reissue(p, "scheduler", clientCA, renewBefore-time.Hour), []string{"scheduler.crt"}},
		{"not near its end", reissue(p, "scheduler", clientCA, renewBefore+time.Hour), nil},
		{"signed by another authority", reissue(p, "admin", serverCA, leafLife), []string{"admin.crt"}},
		{"the key is lost", remove(p.key("kubelet")), []string{"kubelet.crt", "kubelet.key"}},
		{"the certificate is lost", remove(p.cert("kubelet")), []string{"kubelet.crt"}},
		{"everything is near its end", func(t *testing.T) {
			for _, file := range all {
				name := strings.TrimSuffix(file, ".crt")
				ca := map[string]string{"apiserver": serverCA, "kubelet-serving": serverCA, "auth-proxy": requestHeaderCA}[name]
				if ca == "" {
					ca = clientCA
				}
				reissue(p, name, ca, -time.Minute)(t)
			}
		}, all},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := privates(t, config)
			c.change(t)
			changed := privates(t, config)
			prepare(t, config)
			var replaced []string
			for name, content := range privates(t, config) {
				if content != before[name] && content != changed[name] {
					replaced = append(replaced, name)
				}
			}
			slices.Sort(replaced)
			if !reflect.DeepEqual(replaced, c.want) {
				t.Errorf("replaced %v, want %v", replaced, c.want)
			}
			for _, file := range all {
				name := strings.TrimSuffix(file, ".crt")
				if _, err := tls.LoadX509KeyPair(p.cert(name), p.key(name)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if left := time.Until(certificate(t, p.cert(name)).NotAfter); left < renewBefore {
					t.Errorf("%s is good for %s only", name, left)
				}
			}
		})
	}
	// Without its key an authority can sign nothing more. Another one in its place would lock everybody out, without a word.
	if err := os.Remove(p.key(serverCA)); err != nil {
		t.Fatal(err)
	}
	config.TLSSAN = nil
	before := privates(t, config)[serverCA+".crt"]
	if _, err := preparePKI(config); err == nil || !strings.Contains(err.Error(), "certificate apiserver: ") || privates(t, config)[serverCA+".crt"] != before {
		t.Errorf("an authority without its key: %v", err)
	}
}
