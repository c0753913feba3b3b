package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

var invited = member{ID: "abcdef", Secret: "0123456789abcdef", Address: netip.MustParseAddr("10.107.0.6")}

func testApprover() *approver {
	return &approver{member: func(node string) (member, error) {
		if node != "a-w-1" {
			return member{}, fmt.Errorf("%s: %w", node, fs.ErrNotExist)
		}
		return invited, nil
	}}
}

// asks is a request of who may join as a-w-1, or has joined, with what is changed.
func asks(
	t *testing.T,
	signer string,
	change func(asked *x509.CertificateRequest, spec *certificatesv1.CertificateSigningRequestSpec),
) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	asked := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "system:node:a-w-1", Organization: []string{"system:nodes"}},
	}
	spec := certificatesv1.CertificateSigningRequestSpec{
		SignerName: signer, Username: "system:bootstrap:abcdef", Groups: []string{membersGroup, "system:authenticated"},
		Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
	}
	if signer == certificatesv1.KubeletServingSignerName {
		asked.DNSNames, asked.IPAddresses = []string{"a-w-1"}, []net.IP{net.ParseIP("10.107.0.6")}
		spec.Username, spec.Groups = "system:node:a-w-1", []string{"system:nodes"}
		spec.Usages[1] = certificatesv1.UsageServerAuth
	}
	change(asked, &spec)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, asked, key)
	if err != nil {
		t.Fatal(err)
	}
	spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "asked"}, Spec: spec}
}

func TestWhatMembersGet(t *testing.T) {
	client, serving := certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName
	type request = x509.CertificateRequest
	type spec = certificatesv1.CertificateSigningRequestSpec
	for _, c := range []struct {
		what, signer string
		granted      bool
		change       func(*request, *spec)
	}{
		{"its own certificate to call with", client, true, func(*request, *spec) {}},
		{"another node's", client, false, func(r *request, _ *spec) { r.Subject.CommonName = "system:node:a" }},
		{"its own by another one's token", client, false, func(_ *request, s *spec) {
			s.Username = "system:bootstrap:fedcba"
		}},
		{"one by a name that looks like a token's", client, false, func(_ *request, s *spec) { s.Groups = nil }},
		{"a master's", client, false, func(r *request, _ *spec) { r.Subject.Organization = []string{"system:masters"} }},
		{"a node's and a master's", client, false, func(r *request, _ *spec) {
			r.Subject.Organization = append(r.Subject.Organization, "system:masters")
		}},
		{"one to call and to serve with", client, false, func(_ *request, s *spec) {
			s.Usages = append(s.Usages, certificatesv1.UsageServerAuth)
		}},
		{"one to call with that names an address", client, false, func(r *request, _ *spec) {
			r.IPAddresses = []net.IP{net.ParseIP("10.107.0.6")}
		}},
		{"a path in the place of a name", client, false, func(r *request, _ *spec) {
			r.Subject.CommonName = "system:node:../../a-w-1"
		}},
		{"its own certificate to serve with", serving, true, func(*request, *spec) {}},
		{"the server's address", serving, false, func(r *request, _ *spec) {
			r.IPAddresses = append(r.IPAddresses, net.ParseIP("10.107.0.2"))
		}},
		{"the server's name", serving, false, func(r *request, _ *spec) { r.DNSNames = append(r.DNSNames, "kubernetes") }},
		{"one to serve with by a token", serving, false, func(_ *request, s *spec) {
			s.Username, s.Groups = "system:bootstrap:abcdef", []string{membersGroup}
		}},
		{"another node's to serve with", serving, false, func(_ *request, s *spec) { s.Username = "system:node:a" }},
		{"what others sign", certificatesv1.KubeAPIServerClientSignerName, false, func(*request, *spec) {}},
	} {
		refusal := testApprover().look(asks(t, c.signer, c.change))
		if (refusal == nil) != c.granted {
			t.Errorf("%s: granted is wanted to be %t, and the refusal is %v", c.what, c.granted, refusal)
		}
	}
}

func TestMembersAreGranted(t *testing.T) {
	client, watched := watchedClient(t, "certificatesigningrequests")
	a := testApprover()
	a.client = client
	go a.run(t.Context())
	watched()
	requests := client.CertificatesV1().CertificateSigningRequests()
	changes, err := requests.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer changes.Stop()
	request := asks(t, certificatesv1.KubeletServingSignerName,
		func(*x509.CertificateRequest, *certificatesv1.CertificateSigningRequestSpec) {})
	if _, err := requests.Create(t.Context(), request, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for change := range changes.ResultChan() {
		conditions := change.Object.(*certificatesv1.CertificateSigningRequest).Status.Conditions
		if change.Type == watch.Modified && len(conditions) == 1 &&
			conditions[0].Type == certificatesv1.CertificateApproved {
			return
		}
	}
	t.Error("it was not granted")
}
