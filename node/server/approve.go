package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

const (
	nodesGroup = "system:nodes"
	nodePrefix = "system:node:"
)

// approver grants the members the certificates that they ask for: the first one to call the API server with, and what
// their kubelets serve with. What else is asked for is left to others; Kubernetes' own controller grants a kubelet that
// has a certificate the next one.
type approver struct {
	client kubernetes.Interface
	member func(node string) (member, error)
}

func (c *components) approveMembers(ctx context.Context) error {
	client, err := adminClient(c.config)
	if err != nil {
		return err
	}
	a := &approver{client: client, member: func(node string) (member, error) { return readMember(c.config, node) }}
	return a.run(ctx)
}

func (a *approver) run(ctx context.Context) error {
	factory := informers.NewSharedInformerFactory(a.client, 0)
	handle := func(object any) {
		request, ok := object.(*certificatesv1.CertificateSigningRequest)
		if !ok || len(request.Status.Conditions) > 0 || len(request.Status.Certificate) > 0 {
			return
		}
		if refusal := a.look(request); refusal != nil {
			klog.V(1).InfoS("a certificate is not granted", "request", request.Name, "reason", refusal)
			return
		}
		if err := a.approve(ctx, request); err != nil {
			klog.ErrorS(err, "granting a certificate", "request", request.Name)
		}
	}
	_, err := factory.Certificates().V1().CertificateSigningRequests().Informer().AddEventHandler(
		cache.ResourceEventHandlerFuncs{AddFunc: handle, UpdateFunc: func(_, after any) { handle(after) }})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	return nil
}

func (a *approver) approve(ctx context.Context, request *certificatesv1.CertificateSigningRequest) error {
	request = request.DeepCopy()
	request.Status.Conditions = append(request.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Member",
		Message: "a node that may join asks for its own certificate", LastUpdateTime: metav1.Now(),
	})
	_, err := a.client.CertificatesV1().CertificateSigningRequests().
		UpdateApproval(ctx, request.Name, request, metav1.UpdateOptions{})
	return err
}

// look tells why a request is not granted, if it is not.
func (a *approver) look(request *certificatesv1.CertificateSigningRequest) error {
	asked, err := parseRequest(request.Spec.Request)
	if err != nil {
		return err
	}
	name, isNode := strings.CutPrefix(asked.Subject.CommonName, nodePrefix)
	if !isNode || !slices.Equal(asked.Subject.Organization, []string{nodesGroup}) {
		return fmt.Errorf("%s is no node", asked.Subject)
	}
	m, err := a.member(name)
	if err != nil {
		return err
	}
	spec := request.Spec
	switch spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		if spec.Username != m.user() || !slices.Contains(spec.Groups, membersGroup) {
			return fmt.Errorf("%s is not who may join as %s", spec.Username, name)
		}
		if len(asked.DNSNames)+len(asked.IPAddresses)+len(asked.EmailAddresses)+len(asked.URIs) > 0 {
			return errors.New("it names somebody beside the node")
		}
		return only(spec.Usages, certificatesv1.UsageClientAuth)
	case certificatesv1.KubeletServingSignerName:
		if spec.Username != asked.Subject.CommonName || !slices.Contains(spec.Groups, nodesGroup) {
			return fmt.Errorf("%s is not the node %s", spec.Username, name)
		}
		for _, ip := range asked.IPAddresses {
			if address, ok := netip.AddrFromSlice(ip); !ok || address.Unmap() != m.Address {
				return fmt.Errorf("%s is not where %s is", ip, name)
			}
		}
		others := slices.DeleteFunc(slices.Clone(asked.DNSNames), func(dns string) bool { return dns == name })
		if len(others)+len(asked.EmailAddresses)+len(asked.URIs) > 0 {
			return errors.New("it names somebody beside the node")
		}
		return only(spec.Usages, certificatesv1.UsageServerAuth)
	}
	return fmt.Errorf("%s signs for others", spec.SignerName)
}

// only tells of a usage that is neither the one nor what every key is used for.
func only(usages []certificatesv1.KeyUsage, usage certificatesv1.KeyUsage) error {
	allowed := []certificatesv1.KeyUsage{
		usage, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment,
	}
	for _, asked := range usages {
		if !slices.Contains(allowed, asked) {
			return fmt.Errorf("it asks for %s", asked)
		}
	}
	return nil
}

func parseRequest(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it is no certificate request")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}
