package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/klog/v2"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	usualLife     = 365 * 24 * time.Hour
	// shortestLife leaves every client the time to take a new certificate before the one of before has ended.
	shortestLife = 10 * time.Second
	// lifeVariable is for tests, as k3s's CATTLE_NEW_SIGNED_CERT_EXPIRATION_DAYS: what is issued lives as long as it
	// says, such as 90s, in place of a year.
	lifeVariable = "GVISOR_K3S_CERTIFICATE_LIFE"
)

// pki names the files that the components read: certificates and keys in server/tls, kubeconfigs in server/cred.
type pki struct {
	config *Config
	life   time.Duration // of what is issued
}

func (p pki) cert(name string) string { return p.config.path("server", "tls", name+".crt") }
func (p pki) key(name string) string  { return p.config.path("server", "tls", name+".key") }

// read is a certificate as its file has it, for those who are to believe it.
func (p pki) read(name string) (string, error) {
	content, err := os.ReadFile(p.cert(name))
	return string(content), err
}

func (p pki) kubeconfig(name string) string {
	return p.config.path("server", "cred", name+".kubeconfig")
}

// renewBefore is how much life a certificate must have left, or it is issued anew.
func (p pki) renewBefore() time.Duration { return p.life / 4 }

// Names of the certificate authorities. One signs what serves, one signs who calls, and one signs the aggregator's
// proxy.
const (
	serverCA        = "server-ca"
	clientCA        = "client-ca"
	requestHeaderCA = "request-header-ca"
	serviceKey      = "service"
	// loopback is what controllers and scheduler serve with. They would make RSA keys themselves, at each start.
	loopback = "loopback"
	admin    = "admin"
)

// authority is a certificate that signs others. It is made once in a cluster's life, as the key of the service accounts
// is: another one in its place would lock everybody out.
type authority struct {
	name        string
	certificate *x509.Certificate
	key         crypto.Signer
}

// leaf is a certificate that is issued anew when it differs from this description, or nears its end.
type leaf struct {
	file, ca string
	config   cert.Config
	lasting  bool // as long as its authority: copies of it are elsewhere, which nobody renews
}

func certificateLife() (time.Duration, error) {
	text := os.Getenv(lifeVariable)
	if text == "" {
		return usualLife, nil
	}
	life, err := time.ParseDuration(text)
	if err != nil || life < shortestLife || life > usualLife {
		return 0, fmt.Errorf("%s = %q: %s to %s is allowed", lifeVariable, text, shortestLife, usualLife)
	}
	return life, nil
}

// preparePKI makes what is missing, keeps what is good, and writes the kubeconfigs.
func preparePKI(c *Config) (*pki, error) {
	life, err := certificateLife()
	if err != nil {
		return nil, err
	}
	p := &pki{config: c, life: life}
	for _, folder := range []string{"tls", "cred", "manifests", "db"} {
		if err := os.MkdirAll(c.path("server", folder), 0o700); err != nil {
			return nil, err
		}
	}
	if err := p.ensure(); err != nil {
		return nil, err
	}
	return p, p.writeKubeconfigs()
}

// ensure makes every key and certificate that is missing, is damaged, nears its end or says something else than it
// should, and tells of all that it could not.
func (p pki) ensure() error {
	var problems []error
	authorities := map[string]*authority{}
	for _, name := range []string{serverCA, clientCA, requestHeaderCA} {
		authority, err := p.authority(name)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		authorities[name] = authority
	}
	if _, err := p.lastingKey(serviceKey, p.isNew()); err != nil {
		problems = append(problems, err)
	}
	for _, leaf := range p.leaves() {
		authority := authorities[leaf.ca]
		if authority == nil {
			continue // which is told already
		}
		if err := p.ensureLeaf(leaf, authority); err != nil {
			problems = append(problems, fmt.Errorf("certificate %s: %w", leaf.file, err))
		}
	}
	return errors.Join(problems...)
}

func (p pki) leaves() []leaf {
	c := p.config
	serving := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	calling := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	api := cert.AltNames{DNSNames: []string{
		"kubernetes",
		"kubernetes.default",
		"kubernetes.default.svc",
		"kubernetes.default.svc." + c.ClusterDomain,
		"localhost",
		c.NodeName,
	}}
	for _, name := range append([]string{"127.0.0.1", c.NodeIP, c.AdvertiseAddress, c.apiServerIP()}, c.TLSSAN...) {
		if ip := net.ParseIP(name); ip != nil {
			api.IPs = append(api.IPs, ip)
		} else {
			api.DNSNames = append(api.DNSNames, name)
		}
	}
	node := cert.AltNames{DNSNames: []string{c.NodeName}, IPs: []net.IP{net.ParseIP(c.NodeIP)}}
	local := cert.AltNames{DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	masters := []string{"system:masters"}
	leaves := []leaf{
		{file: "apiserver", ca: serverCA, config: cert.Config{CommonName: "kube-apiserver", AltNames: api}},
		{file: "kubelet-serving", ca: serverCA, config: cert.Config{CommonName: c.NodeName, AltNames: node}},
		{file: loopback, ca: serverCA, config: cert.Config{CommonName: "localhost", AltNames: local}},
		{file: "apiserver-kubelet", ca: clientCA, config: cert.Config{CommonName: "kube-apiserver", Organization: masters}},
		{file: "auth-proxy", ca: requestHeaderCA, config: cert.Config{CommonName: "system:auth-proxy"}},
	}
	clients := p.clients()
	for _, name := range sortedKeys(clients) {
		leaves = append(leaves, leaf{file: name, ca: clientCA, config: clients[name], lasting: name == admin})
	}
	for i := range leaves {
		leaves[i].config.Usages = calling
		if leaves[i].ca == serverCA {
			leaves[i].config.Usages = serving
		}
	}
	return leaves
}

// clients are those who call the API server with a kubeconfig.
func (p pki) clients() map[string]cert.Config {
	return map[string]cert.Config{
		admin:                {CommonName: "system:admin", Organization: []string{"system:masters"}},
		"controller-manager": {CommonName: "system:kube-controller-manager"},
		"scheduler":          {CommonName: "system:kube-scheduler"},
		"kube-proxy":         {CommonName: "system:kube-proxy"},
		"kubelet": {
			CommonName:   "system:node:" + p.config.NodeName,
			Organization: []string{"system:nodes"},
		},
	}
}

// damaged is a file that was not written whole: a full disk leaves such ones.
type damaged struct{ file, how string }

func (d *damaged) Error() string { return d.file + " is damaged: " + d.how }

// isDamaged tells damage from what may pass, such as a disk that can't be read.
func isDamaged(err error) bool {
	var as *damaged
	return errors.As(err, &as)
}

func readKey(file string) (crypto.Signer, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	key, err := keyutil.ParsePrivateKeyPEM(content)
	if err != nil {
		return nil, &damaged{file, fmt.Sprintf("no private key is in its %d bytes", len(content))}
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, &damaged{file, fmt.Sprintf("a %T signs nothing", key)}
	}
	return signer, nil
}

func readCertificate(file string) (*x509.Certificate, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	certificates, err := cert.ParseCertsPEM(content)
	if err != nil {
		return nil, &damaged{file, fmt.Sprintf("no certificate is in its %d bytes", len(content))}
	}
	return certificates[0], nil
}

func isOf(certificate *x509.Certificate, key crypto.Signer) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(certificate.PublicKey)
}

func (p pki) makeKey(name string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	encoded, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, err
	}
	return key, writePrivate(p.key(name), encoded)
}

// isNew tells whether nothing can depend on the authorities yet: a server that was killed in its first seconds has made
// some of them, and goes on. Data of another cluster are as new.
func (p pki) isNew() bool {
	_, err := os.Stat(p.config.datastoreFile())
	seeded, _ := isSeeded(p.config) // what it cannot read is told before
	return errors.Is(err, fs.ErrNotExist) || seeded
}

// irreplaceable adds the remedy to what is wrong with a file that is never made anew.
func irreplaceable(problem error) error {
	return fmt.Errorf("%w; everything in this cluster and every kubeconfig for it goes by this file, so it is not made "+
		"anew: put back a copy of it, or make the cluster anew (gvisor-k3s destroy, then up)", problem)
}

// lastingKey reads a key that is made once in a cluster's life.
func (p pki) lastingKey(name string, mayMake bool) (crypto.Signer, error) {
	key, err := readKey(p.key(name))
	if err == nil {
		return key, nil
	}
	if mayMake && errors.Is(err, fs.ErrNotExist) {
		return p.makeKey(name)
	}
	return nil, irreplaceable(err)
}

func (p pki) authority(name string) (*authority, error) {
	certificate, err := readCertificate(p.cert(name))
	missing := errors.Is(err, fs.ErrNotExist) && p.isNew()
	if err != nil && !missing {
		return nil, irreplaceable(err)
	}
	key, err := p.lastingKey(name, missing)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if missing {
		template := &x509.Certificate{
			Subject:               pkix.Name{CommonName: fmt.Sprintf("gvisor-k3s-%s@%d", name, now.Unix())},
			NotAfter:              now.Add(authorityLife),
			KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			BasicConstraintsValid: true,
			IsCA:                  true,
		}
		if err := p.sign(name, template, &authority{name, template, key}, key.Public()); err != nil {
			return nil, err
		}
		if certificate, err = readCertificate(p.cert(name)); err != nil {
			return nil, err
		}
	}
	if !isOf(certificate, key) {
		return nil, irreplaceable(&damaged{p.cert(name), "it is not of the key in " + p.key(name)})
	}
	if now.After(certificate.NotAfter) {
		return nil, fmt.Errorf("%s ended on %s, and with it all that it signed: make the cluster anew "+
			"(gvisor-k3s destroy, then up), or set this machine's clock right", p.cert(name), certificate.NotAfter)
	}
	return &authority{name, certificate, key}, nil
}

func (p pki) ensureLeaf(l leaf, ca *authority) error {
	key, err := readKey(p.key(l.file))
	if isDamaged(err) {
		klog.Warningf("%s; it is made anew", err)
	}
	if isDamaged(err) || errors.Is(err, fs.ErrNotExist) {
		key, err = p.makeKey(l.file)
	}
	if err != nil {
		return err
	}
	current, err := readCertificate(p.cert(l.file))
	switch {
	case err == nil:
		reason := p.fault(l, ca, current, key)
		if reason == "" {
			return nil
		}
		klog.InfoS("certificate is issued anew", "file", p.cert(l.file), "reason", reason, "end", current.NotAfter)
	case isDamaged(err):
		klog.Warningf("%s; it is made anew", err)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return p.sign(l.file, &x509.Certificate{
		Subject:     pkix.Name{CommonName: l.config.CommonName, Organization: l.config.Organization},
		NotAfter:    p.endOf(l, ca),
		DNSNames:    l.config.AltNames.DNSNames,
		IPAddresses: l.config.AltNames.IPs,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: l.config.Usages,
	}, ca, key.Public())
}

// endOf is when what is issued now ends; nothing outlives its authority.
func (p pki) endOf(l leaf, ca *authority) time.Time {
	last := ca.certificate.NotAfter
	if end := time.Now().Add(p.life); !l.lasting && end.Before(last) {
		return end
	}
	return last
}

// fault is why a certificate has to be issued anew, or nothing.
func (p pki) fault(l leaf, ca *authority, c *x509.Certificate, key crypto.Signer) string {
	left := time.Until(c.NotAfter)
	beforeAuthority := c.NotAfter.Before(ca.certificate.NotAfter) // or a new one would end at the same time
	switch {
	case !isOf(c, key):
		return "it is not of its key"
	case c.CheckSignatureFrom(ca.certificate) != nil:
		return "another authority has signed it"
	case c.Subject.CommonName != l.config.CommonName,
		!slices.Equal(c.Subject.Organization, l.config.Organization),
		!slices.Equal(c.DNSNames, l.config.AltNames.DNSNames),
		!slices.EqualFunc(c.IPAddresses, l.config.AltNames.IPs, net.IP.Equal):
		return "it names somebody else"
	case l.lasting && beforeAuthority:
		return "it ends before its authority"
	case !l.lasting && beforeAuthority && left <= p.renewBefore():
		return "it nears its end"
	case time.Now().Before(c.NotBefore):
		return "it is not valid yet" // it was issued while the clock was wrong
	}
	return ""
}

func (p pki) sign(name string, template *x509.Certificate, ca *authority, public crypto.PublicKey) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-5 * time.Minute) // clocks differ
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, public, ca.key)
	if err != nil {
		return err
	}
	return writePrivate(p.cert(name), pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: der}))
}

// writeKubeconfigs writes a kubeconfig for each client, and the one that leaves this machine.
func (p pki) writeKubeconfigs() error {
	c := p.config
	for _, name := range sortedKeys(p.clients()) {
		// The files are named, and not their content: whoever goes by such a kubeconfig looks for renewed ones
		// (client-go's transport/cert_rotation.go), and keeps what an inline one says for ever.
		user := &clientcmdapi.AuthInfo{ClientCertificate: p.cert(name), ClientKey: p.key(name)}
		cluster := &clientcmdapi.Cluster{Server: c.localURL(), CertificateAuthority: p.cert(serverCA)}
		if err := p.writeKubeconfig(p.kubeconfig(name), cluster, user); err != nil {
			return err
		}
	}
	contents := [3][]byte{}
	for i, file := range []string{p.cert(serverCA), p.cert(admin), p.key(admin)} {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		contents[i] = content
	}
	if err := os.MkdirAll(filepath.Dir(c.WriteKubeconfig), 0o755); err != nil {
		return err
	}
	server := "https://" + net.JoinHostPort(c.AdvertiseAddress, fmt.Sprint(c.HTTPSListenPort))
	// It is copied to other places, so it needs nothing beside itself.
	return p.writeKubeconfig(c.WriteKubeconfig,
		&clientcmdapi.Cluster{Server: server, CertificateAuthorityData: contents[0]},
		&clientcmdapi.AuthInfo{ClientCertificateData: contents[1], ClientKeyData: contents[2]})
}

func (p pki) writeKubeconfig(file string, cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo) error {
	name := p.config.NodeName
	content, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: cluster},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: user},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	})
	if err != nil {
		return err
	}
	return writePrivate(file, content)
}
