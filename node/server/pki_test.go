package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	"k8s.io/klog/v2"
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
		{
			"apiserver",
			serverCA,
			"kube-apiserver",
			nil,
			[]string{"kubernetes", "kubernetes.default.svc.cluster.local", "localhost", "node-1", "api.example.test",
				"127.0.0.1", "192.0.2.7", "192.0.2.8", "10.43.0.1", "198.51.100.4"},
		},
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
					usages := []x509.ExtKeyUsage{usage}
					_, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, KeyUsages: usages})
					if (err == nil) != (ca == c.ca) {
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
		want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[entry.IsDir()]
		if strings.Contains(path, "/server/") && (err != nil || info.Mode().Perm() != want) {
			t.Errorf("%s has mode %o, want %o; %v", path, info.Mode().Perm(), want, err)
		}
		return nil
	})
}

func TestKubeconfigs(t *testing.T) {
	config := configFor(t, "advertise-address: 192.0.2.8\nhttps-listen-port: 7443\n")
	p := prepare(t, config)
	for _, c := range []struct{ file, client, server, user string }{
		{p.kubeconfig("admin"), "admin", "https://127.0.0.1:7443", "system:admin"},
		{
			p.kubeconfig("controller-manager"), "controller-manager",
			"https://127.0.0.1:7443", "system:kube-controller-manager",
		},
		{p.kubeconfig("scheduler"), "scheduler", "https://127.0.0.1:7443", "system:kube-scheduler"},
		{p.kubeconfig("kube-proxy"), "kube-proxy", "https://127.0.0.1:7443", "system:kube-proxy"},
		{p.kubeconfig("kubelet"), "kubelet", "https://127.0.0.1:7443", "system:node:node-1"},
		{config.WriteKubeconfig, "", "https://192.0.2.8:7443", "system:admin"}, // for others, from elsewhere
	} {
		if info, err := os.Stat(c.file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: others can read the key: %v, %v", c.file, info, err)
		}
		content, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := clientcmd.RESTConfigFromKubeConfig(content)
		if err != nil {
			t.Fatalf("%s: %v", c.file, err)
		}
		if c.client == "" {
			// It is copied to other places, so it must need nothing beside itself.
			if loaded.CertFile+loaded.KeyFile+loaded.CAFile != "" {
				t.Errorf("%s goes by other files", c.file)
			}
		} else if loaded.CertFile != p.cert(c.client) || loaded.KeyFile != p.key(c.client) {
			// Or client-go would never see a renewed certificate.
			t.Errorf("%s goes by %q and %q", c.file, loaded.CertFile, loaded.KeyFile)
		}
		if err := rest.LoadTLSFiles(loaded); err != nil {
			t.Fatalf("%s: %v", c.file, err)
		}
		pair, err := tls.X509KeyPair(loaded.CertData, loaded.KeyData)
		if err != nil || pair.Leaf.Subject.CommonName != c.user || loaded.Host != c.server {
			t.Errorf("%s: it calls %s, %v; want %s, %s", c.file, loaded.Host, err, c.user, c.server)
		}
		if ca, err := os.ReadFile(p.cert(serverCA)); err != nil || string(loaded.CAData) != string(ca) {
			t.Errorf("%s trusts another CA, %v", c.file, err)
		}
	}
}

// leafOf describes a certificate as the server does.
func leafOf(t *testing.T, p *pki, name string) leaf {
	t.Helper()
	for _, leaf := range p.leaves() {
		if leaf.file == name {
			return leaf
		}
	}
	t.Fatalf("there is no certificate %s", name)
	return leaf{}
}

// reissue signs a certificate again, by the authority ca, so that it ends at another time.
func reissue(t *testing.T, p *pki, name, ca string, end time.Time) {
	t.Helper()
	changed := certificate(t, p.cert(name))
	changed.NotAfter = end
	authority, err := p.authority(ca)
	if err != nil {
		t.Fatal(err)
	}
	key, err := readKey(p.key(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.sign(name, changed, authority, key.Public()); err != nil {
		t.Fatal(err)
	}
}

// differing is the names of the files whose content is not the same in both.
func differing(before, after map[string]string) []string {
	var names []string
	for name, content := range after {
		if content != before[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// What is good is kept over restarts, and of what is not the least is replaced: the cluster trusts the authorities and
// the service key, and copies of the admin's certificate are elsewhere.
func TestRenewal(t *testing.T) {
	ending := func(name string, left time.Duration) func(*testing.T, *pki) {
		return func(t *testing.T, p *pki) {
			reissue(t, p, name, leafOf(t, p, name).ca, time.Now().Add(left))
		}
	}
	remove := func(files ...string) func(*testing.T, *pki) {
		return func(t *testing.T, p *pki) {
			for _, file := range files {
				if err := os.Remove(p.config.path("server", "tls", file)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	overwrite := func(file, content string) func(*testing.T, *pki) {
		return func(t *testing.T, p *pki) {
			if err := os.WriteFile(p.config.path("server", "tls", file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	config := configFor(t, "")
	p := prepare(t, config)
	exists(t, config)
	var all []string
	for _, leaf := range p.leaves() {
		all = append(all, leaf.file+".crt")
	}
	slices.Sort(all)
	quarter := usualLife / 4
	cases := []struct {
		name   string
		change func(*testing.T, *pki)
		want   []string // what is replaced
	}{
		{"nothing changed", func(*testing.T, *pki) {}, nil},
		{"another name for the API server",
			func(*testing.T, *pki) { config.TLSSAN = []string{"new.example.test"} },
			[]string{"apiserver.crt"}},
		{"the node has another address",
			func(*testing.T, *pki) { config.NodeIP = "192.0.2.99" },
			[]string{"apiserver.crt", "kubelet-serving.crt"}},
		{"the node has another name",
			func(*testing.T, *pki) { config.NodeName = "node-2" },
			[]string{"apiserver.crt", "kubelet-serving.crt", "kubelet.crt"}},
		{"near its end", ending("scheduler", quarter-time.Hour), []string{"scheduler.crt"}},
		{"not near its end", ending("scheduler", quarter+time.Hour), nil},
		{"it has ended", ending("scheduler", -time.Hour), []string{"scheduler.crt"}},
		{"signed by another authority",
			func(t *testing.T, p *pki) { reissue(t, p, "scheduler", serverCA, time.Now().Add(usualLife)) },
			[]string{"scheduler.crt"}},
		// As those were that an earlier release issued: whoever copies it now has it for the cluster's life.
		{"the admin's ends before the cluster", ending("admin", usualLife), []string{"admin.crt"}},
		{"the key is lost", remove("kubelet.key"), []string{"kubelet.crt", "kubelet.key"}},
		{"the certificate is lost", remove("kubelet.crt"), []string{"kubelet.crt"}},
		{"both are lost", remove("kubelet.crt", "kubelet.key"), []string{"kubelet.crt", "kubelet.key"}},
		{"the key is empty", overwrite("apiserver.key", ""), []string{"apiserver.crt", "apiserver.key"}},
		{"the certificate is empty", overwrite("apiserver.crt", ""), []string{"apiserver.crt"}},
		{"half a certificate",
			overwrite("admin.crt", privates(t, config)["admin.crt"][:200]),
			[]string{"admin.crt"}},
		{"another's key",
			overwrite("scheduler.key", privates(t, config)["kubelet.key"]),
			[]string{"scheduler.crt"}},
		{"everything has ended", func(t *testing.T, p *pki) {
			for _, file := range all {
				ending(strings.TrimSuffix(file, ".crt"), -time.Minute)(t, p)
			}
		}, all},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := privates(t, config)
			c.change(t, p)
			changed := privates(t, config)
			prepare(t, config)
			after := privates(t, config)
			replaced := slices.DeleteFunc(differing(before, after), func(name string) bool {
				content, kept := changed[name]
				return kept && content == after[name]
			})
			if !slices.Equal(replaced, c.want) {
				t.Errorf("replaced %v, want %v", replaced, c.want)
			}
			for _, file := range all {
				name := strings.TrimSuffix(file, ".crt")
				if _, err := tls.LoadX509KeyPair(p.cert(name), p.key(name)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				leaf := certificate(t, p.cert(name))
				if left := time.Until(leaf.NotAfter); left < quarter {
					t.Errorf("%s is good for %s only", name, left)
				}
				ca := certificate(t, p.cert(leafOf(t, p, name).ca))
				if leaf.NotAfter.After(ca.NotAfter) || name == "admin" && !leaf.NotAfter.Equal(ca.NotAfter) {
					t.Errorf("%s ends on %s, and its authority on %s", name, leaf.NotAfter, ca.NotAfter)
				}
			}
		})
	}
	t.Run("a certificate of a clock that went wrong", func(t *testing.T) {
		template := certificate(t, p.cert("scheduler"))
		ca, err := p.authority(clientCA)
		if err != nil {
			t.Fatal(err)
		}
		key, err := readKey(p.key("scheduler"))
		if err != nil {
			t.Fatal(err)
		}
		template.NotBefore = time.Now().Add(time.Hour)
		reason := p.fault(leafOf(t, p, "scheduler"), ca, template, key)
		if reason != "it is not valid yet" {
			t.Errorf("the reason to renew it is %q", reason)
		}
	})
}

// A full disk leaves files that are empty or half. What can be made anew is, and the log says so by the file's name;
// the kubeconfig is what it was before.
func TestDamagedFilesAreTold(t *testing.T) {
	config := configFor(t, "")
	p := prepare(t, config)
	exists(t, config)
	kubeconfigs := []string{config.WriteKubeconfig, p.kubeconfig("kubelet")}
	before := map[string]string{}
	for _, file := range kubeconfigs {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		before[file] = string(content)
	}
	damagedFiles := []string{p.key("scheduler"), p.cert("kubelet-serving")}
	for _, file := range append(kubeconfigs, damagedFiles...) {
		if err := os.Truncate(file, 10); err != nil {
			t.Fatal(err)
		}
	}
	log := logged(t, func() { prepare(t, config) })
	for _, file := range damagedFiles {
		if !strings.Contains(log, file+" is damaged: ") {
			t.Errorf("nothing is told of %s:\n%s", file, log)
		}
	}
	for file, content := range before {
		if now, err := os.ReadFile(file); err != nil || string(now) != content {
			t.Errorf("%s is another one, %v", file, err)
		}
	}
	if again := logged(t, func() { prepare(t, config) }); again != "" {
		t.Errorf("with nothing to do it says:\n%s", again)
	}
}

// logged is what act has to say.
func logged(t *testing.T, act func()) string {
	t.Helper()
	defer klog.CaptureState().Restore()
	var log bytes.Buffer
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(&log, nil)))
	act()
	return log.String()
}

// exists has the cluster look as if it had been started before.
func exists(t *testing.T, config *Config) {
	t.Helper()
	if err := os.WriteFile(config.datastoreFile(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Another authority in the place of a lost or damaged one would lock everybody out, without a word.
func TestAuthoritiesAreNeverReplaced(t *testing.T) {
	for _, file := range []string{
		"server-ca.crt", "server-ca.key",
		"client-ca.crt", "client-ca.key",
		"request-header-ca.crt", "request-header-ca.key",
		"service.key",
	} {
		for how, damage := range map[string]func(path string) error{
			"missing":   os.Remove,
			"empty":     func(path string) error { return os.Truncate(path, 0) },
			"half":      func(path string) error { return os.Truncate(path, 100) },
			"garbled":   func(path string) error { return os.WriteFile(path, []byte("no PEM"), 0o600) },
			"another's": func(path string) error { return anothers(path) },
		} {
			if file == "service.key" && how == "another's" {
				continue // there is nothing to tell it by
			}
			t.Run(file+" "+how, func(t *testing.T) {
				config := configFor(t, "")
				p := prepare(t, config)
				exists(t, config)
				path := config.path("server", "tls", file)
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
				// Leaves that are to be renewed by it, and by others.
				for _, leaf := range p.leaves() {
					if err := os.Remove(p.cert(leaf.file)); err != nil {
						t.Fatal(err)
					}
				}
				before := privates(t, config)
				_, err := preparePKI(config)
				if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "gvisor-k3s destroy") {
					t.Errorf("the file and the remedy are not told: %v", err)
				}
				for _, name := range differing(before, privates(t, config)) {
					ca := leafOf(t, p, strings.TrimSuffix(name, ".crt")).ca
					if ca == strings.TrimSuffix(strings.TrimSuffix(file, ".crt"), ".key") {
						t.Errorf("%s was made by a damaged authority", name)
					}
				}
			})
		}
	}
}

// anothers puts another authority's certificate or key in the place of one.
func anothers(path string) error {
	name := map[string]string{"server-ca": "client-ca", "client-ca": "server-ca", "request-header-ca": "client-ca"}
	extension := filepath.Ext(path)
	other := name[strings.TrimSuffix(filepath.Base(path), extension)] + extension
	content, err := os.ReadFile(filepath.Join(filepath.Dir(path), other))
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}

// A server that is killed in its first seconds goes on where it was: nobody trusts its authorities yet.
func TestFirstStartGoesOn(t *testing.T) {
	for _, files := range [][]string{
		{"server-ca.crt"},
		{"client-ca.crt", "client-ca.key", "service.key"},
		{"request-header-ca.crt", "request-header-ca.key", "service.key", "admin.crt", "admin.key"},
	} {
		config := configFor(t, "")
		p := prepare(t, config)
		for _, file := range files {
			if err := os.Remove(config.path("server", "tls", file)); err != nil {
				t.Fatal(err)
			}
		}
		prepare(t, config)
		for _, leaf := range p.leaves() {
			if err := certificate(t, p.cert(leaf.file)).CheckSignatureFrom(certificate(t, p.cert(leaf.ca))); err != nil {
				t.Errorf("without %v: %s: %v", files, leaf.file, err)
			}
		}
	}
}

// Nothing outlives its authority, and near the authority's end nothing is issued again and again.
func TestAuthorityNearItsEnd(t *testing.T) {
	config := configFor(t, "")
	p := prepare(t, config)
	exists(t, config)
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	reissue(t, p, clientCA, clientCA, end)
	for _, leaf := range p.leaves() {
		if err := os.Remove(p.cert(leaf.file)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.ensure(); err != nil {
		t.Fatal(err)
	}
	before := privates(t, config)
	for _, leaf := range p.leaves() {
		if got := certificate(t, p.cert(leaf.file)).NotAfter; leaf.ca == clientCA && !got.Equal(end) {
			t.Errorf("%s ends on %s, its authority on %s", leaf.file, got, end)
		}
	}
	if err := p.look(); err == nil || !strings.Contains(err.Error(), p.cert(clientCA)+" ends on ") {
		t.Errorf("the end is not told before it comes: %v", err)
	}
	if again := differing(before, privates(t, config)); again != nil {
		t.Errorf("issued again: %v", again)
	}
	reissue(t, p, clientCA, clientCA, time.Now().Add(-time.Hour))
	if _, err := preparePKI(config); err == nil || !strings.Contains(err.Error(), p.cert(clientCA)+" ended on ") {
		t.Errorf("an authority that has ended: %v", err)
	}
}

func TestCertificateLife(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": usualLife, "90s": 90 * time.Second, "10s": shortestLife, "8760h": usualLife,
		"9s": 0, "8761h": 0, "90": 0, "long": 0, "-90s": 0,
	} {
		t.Setenv(lifeVariable, text)
		got, err := certificateLife()
		if got != want || (err == nil) != (want != 0) || err != nil && !strings.Contains(err.Error(), lifeVariable) {
			t.Errorf("%q: got %s, %v", text, got, err)
		}
	}
}
