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
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// renewBefore is how much life a certificate must have left at the server's start, or it is issued anew.
	renewBefore = 90 * 24 * time.Hour
)

// pki names the files that the components read: certificates and keys in server/tls, kubeconfigs in server/cred.
type pki struct {
	config *Config
}

func (p pki) cert(name string) string { return p.config.path("server", "tls", name+".crt") }
func (p pki) key(name string) string  { return p.config.path("server", "tls", name+".key") }
func (p pki) kubeconfig(name string) string {
	return p.config.path("server", "cred", name+".kubeconfig")
}

// Names of the certificate authorities. One signs what serves, one signs who calls, and one signs the aggregator's proxy.
const (
	serverCA        = "server-ca"
	clientCA        = "client-ca"
	requestHeaderCA = "request-header-ca"
	serviceKey      = "service"
)

// leaf is a certificate that is issued anew when it differs from this description.
type leaf struct {
	file, ca string
	config   cert.Config
}

// preparePKI makes what is missing, keeps what is good, and writes the kubeconfigs. The authorities are never replaced.
func preparePKI(c *Config) (*pki, error) {
	p := &pki{config: c}
	for _, folder := range []string{p.config.path("server", "tls"), p.config.path("server", "cred"), c.path("server", "manifests"), c.path("server", "db")} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{serverCA, clientCA, requestHeaderCA} {
		if err := p.ensureCA(name); err != nil {
			return nil, err
		}
	}
	if _, err := p.ensureKey(serviceKey); err != nil {
		return nil, err
	}
	serving := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	calling := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	names := cert.AltNames{DNSNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.ClusterDomain, "localhost", c.NodeName}}
	for _, name := range append([]string{"127.0.0.1", c.NodeIP, c.AdvertiseAddress, c.apiServerIP()}, c.TLSSAN...) {
		if ip := net.ParseIP(name); ip != nil {
			names.IPs = append(names.IPs, ip)
		} else {
			names.DNSNames = append(names.DNSNames, name)
		}
	}
	node := cert.AltNames{DNSNames: []string{c.NodeName}, IPs: []net.IP{net.ParseIP(c.NodeIP)}}
	clients := map[string]cert.Config{
		"admin":              {CommonName: "system:admin", Organization: []string{"system:masters"}},
		"controller-manager": {CommonName: "system:kube-controller-manager"},
		"scheduler":          {CommonName: "system:kube-scheduler"},
		"kube-proxy":         {CommonName: "system:kube-proxy"},
		"kubelet":            {CommonName: "system:node:" + c.NodeName, Organization: []string{"system:nodes"}},
	}
	leaves := []leaf{
		{"apiserver", serverCA, cert.Config{CommonName: "kube-apiserver", AltNames: names, Usages: serving}},
		{"kubelet-serving", serverCA, cert.Config{CommonName: c.NodeName, AltNames: node, Usages: serving}},
		{"apiserver-kubelet", clientCA, cert.Config{CommonName: "kube-apiserver", Organization: []string{"system:masters"}, Usages: calling}},
		{"auth-proxy", requestHeaderCA, cert.Config{CommonName: "system:auth-proxy", Usages: calling}},
	}
	for _, name := range sortedKeys(clients) {
		client := clients[name]
		client.Usages = calling
		leaves = append(leaves, leaf{name, clientCA, client})
	}
	for _, leaf := range leaves {
		if err := p.ensureLeaf(leaf); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", leaf.file, err)
		}
	}
	for _, name := range sortedKeys(clients) {
		if err := p.writeKubeconfig(p.kubeconfig(name), name, c.localURL()); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(c.WriteKubeconfig), 0o755); err != nil {
		return nil, err
	}
	return p, p.writeKubeconfig(c.WriteKubeconfig, "admin", fmt.Sprintf("https://%s", net.JoinHostPort(c.AdvertiseAddress, fmt.Sprint(c.HTTPSListenPort))))
}

func (p pki) ensureKey(name string) (crypto.Signer, error) {
	if _, err := os.Stat(p.key(name)); errors.Is(err, os.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		encoded, err := keyutil.MarshalPrivateKeyToPEM(key)
		if err != nil {
			return nil, err
		}
		if err := writePrivate(p.key(name), encoded); err != nil {
			return nil, err
		}
	}
	key, err := keyutil.PrivateKeyFromFile(p.key(name))
	if err != nil {
		return nil, err
	}
	return key.(crypto.Signer), nil
}

func (p pki) ensureCA(name string) error {
	if _, err := os.Stat(p.cert(name)); err == nil {
		return nil
	}
	key, err := p.ensureKey(name)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: fmt.Sprintf("gvisor-k3s-%s@%d", name, now.Unix())}, NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true}
	return p.sign(name, template, template, key.Public(), key)
}

func (p pki) ensureLeaf(l leaf) error {
	ca, err := cert.CertsFromFile(p.cert(l.ca))
	if err != nil {
		return err
	}
	key, err := p.ensureKey(l.file)
	if err != nil {
		return err
	}
	if current, err := cert.CertsFromFile(p.cert(l.file)); err == nil && l.describes(current[0]) && current[0].CheckSignatureFrom(ca[0]) == nil &&
		key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(current[0].PublicKey) {
		return nil
	}
	caKey, err := p.ensureKey(l.ca)
	if err != nil {
		return err
	}
	return p.sign(l.file, &x509.Certificate{Subject: pkix.Name{CommonName: l.config.CommonName, Organization: l.config.Organization}, NotAfter: time.Now().Add(leafLife),
		DNSNames: l.config.AltNames.DNSNames, IPAddresses: l.config.AltNames.IPs, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.config.Usages}, ca[0], key.Public(), caKey)
}

func (l leaf) describes(c *x509.Certificate) bool {
	sameIPs := slices.EqualFunc(c.IPAddresses, l.config.AltNames.IPs, net.IP.Equal)
	return time.Until(c.NotAfter) > renewBefore && c.Subject.CommonName == l.config.CommonName && slices.Equal(c.Subject.Organization, l.config.Organization) &&
		slices.Equal(c.DNSNames, l.config.AltNames.DNSNames) && sameIPs
}

func (p pki) sign(name string, template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template.SerialNumber, template.NotBefore = serial, time.Now().Add(-5*time.Minute) // clocks differ
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return err
	}
	return writePrivate(p.cert(name), pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: der}))
}

// writeKubeconfig writes a kubeconfig that holds all it needs, so that it works from anywhere.
func (p pki) writeKubeconfig(file, client, server string) error {
	read := func(path string) []byte { content, _ := os.ReadFile(path); return content }
	name := p.config.NodeName
	content, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: server, CertificateAuthorityData: read(p.cert(serverCA))}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {ClientCertificateData: read(p.cert(client)), ClientKeyData: read(p.key(client))}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	})
	if err != nil {
		return err
	}
	return writePrivate(file, content)
}
