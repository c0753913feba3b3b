package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	core "k8s.io/client-go/applyconfigurations/core/v1"
	rbac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
)

// A member is a node that may join this server. It does so by a token of its own (Kubernetes' bootstrap tokens), which
// is good for a certificate in its own name and for nothing else: who is root on one node is not any other.
type member struct {
	ID      string     `json:"id"`
	Secret  string     `json:"secret"`
	Address netip.Addr `json:"address"` // where the node is
}

func (m member) token() string { return m.ID + "." + m.Secret }

// user is who calls with the token.
func (m member) user() string { return bootstrapapi.BootstrapUserPrefix + m.ID }

// membersGroup is what those are in who call with a member's token.
const membersGroup = "system:bootstrappers:gvisor-k3s:nodes"

// invitation is what a node needs to join, as it is printed.
type invitation struct {
	Token    string `json:"token"`
	ServerCA string `json:"serverCA"`
	ClientCA string `json:"clientCA"`
}

func memberFile(c *Config, node string) string { return c.path("server", "nodes", node+".json") }

// readMember reads a member; nobody is one whose name is none.
func readMember(c *Config, node string) (m member, err error) {
	if problems := validation.IsDNS1123Subdomain(node); len(problems) > 0 {
		return m, fmt.Errorf("%q is no node's name", node)
	}
	content, err := os.ReadFile(memberFile(c, node))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(content, &m)
}

// membersCommand invites a node, or has the server forget one.
func membersCommand(ctx context.Context, args []string, output io.Writer) error {
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	file := flags.String("config", "/etc/rancher/k3s/config.yaml", "the config file")
	node := flags.String("node", "", "the node's name")
	var address netip.Addr
	flags.TextVar(&address, "address", netip.Addr{}, "invite: where the node is")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	config, err := ReadConfig(*file)
	if err != nil {
		return err
	}
	client, err := adminClient(config)
	if err != nil {
		return err
	}
	if args[0] == "forget" {
		return forgetMember(ctx, config, client, *node)
	}
	if !address.Is4() || *node == config.NodeName {
		return fmt.Errorf("--node %q --address %q: another node's name and its IPv4 address are needed", *node, address)
	}
	invited, err := invite(ctx, config, client, *node, address)
	if err != nil {
		return err
	}
	return json.NewEncoder(output).Encode(invited)
}

// invite lets a node join. One that was invited before keeps its token.
func invite(
	ctx context.Context, c *Config, client kubernetes.Interface, node string, address netip.Addr,
) (*invitation, error) {
	m, err := readMember(c, node)
	if errors.Is(err, fs.ErrNotExist) {
		m, err = newMember(), nil
	}
	if err != nil {
		return nil, err
	}
	m.Address = address
	content, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(memberFile(c, node)), 0o700); err != nil {
		return nil, err
	}
	if err := writePrivate(memberFile(c, node), content); err != nil {
		return nil, err
	}
	if err := errors.Join(letNodesJoin(ctx, client), applyToken(ctx, client, node, m)); err != nil {
		return nil, err
	}
	p := pki{config: c}
	servers, err := p.read(serverCA)
	if err != nil {
		return nil, err
	}
	clients, err := p.read(clientCA)
	return &invitation{Token: m.token(), ServerCA: servers, ClientCA: clients}, err
}

func newMember() member {
	random := func(bytes int) string {
		content := make([]byte, bytes)
		_, _ = rand.Read(content) // it never fails
		return hex.EncodeToString(content)
	}
	return member{
		ID:     random(bootstrapapi.BootstrapTokenIDBytes / 2),
		Secret: random(bootstrapapi.BootstrapTokenSecretBytes / 2),
	}
}

func applyToken(ctx context.Context, client kubernetes.Interface, node string, m member) error {
	secret := core.Secret(bootstrapapi.BootstrapTokenSecretPrefix+m.ID, metav1.NamespaceSystem).
		WithType(corev1.SecretTypeBootstrapToken).
		WithStringData(map[string]string{
			bootstrapapi.BootstrapTokenIDKey:               m.ID,
			bootstrapapi.BootstrapTokenSecretKey:           m.Secret,
			bootstrapapi.BootstrapTokenDescriptionKey:      "by which the node " + node + " joins",
			bootstrapapi.BootstrapTokenUsageAuthentication: "true",
			bootstrapapi.BootstrapTokenExtraGroupsKey:      membersGroup,
		})
	_, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Apply(ctx, secret, applied)
	return err
}

// letNodesJoin gives those with a token the right to ask for a certificate, which the approver grants or leaves, and
// nodes the rights to renew theirs and to serve Services and network policies as the server's node does.
func letNodesJoin(ctx context.Context, client kubernetes.Interface) error {
	const renew = "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"
	const volumesRole = "gvisor-k3s:volumes"
	volumes := rbac.PolicyRule().WithAPIGroups("").WithResources("persistentvolumes").WithVerbs("list", "watch")
	_, err := client.RbacV1().ClusterRoles().Apply(ctx, rbac.ClusterRole(volumesRole).WithRules(volumes), applied)
	problems := []error{err}
	for name, binding := range map[string][2]string{
		"gvisor-k3s:nodes-join":     {"system:node-bootstrapper", membersGroup},
		"gvisor-k3s:nodes-renew":    {renew, nodesGroup},
		"gvisor-k3s:nodes-proxy":    {"system:node-proxier", nodesGroup},
		"gvisor-k3s:nodes-policies": {proxyRole, nodesGroup},
		"gvisor-k3s:nodes-volumes":  {volumesRole, nodesGroup},
	} {
		problems = append(problems, bindRole(ctx, client, name, binding[0], "Group", binding[1]))
	}
	return errors.Join(problems...)
}

// forgetMember takes a node away, and its token with it; one that is gone already is no error.
func forgetMember(ctx context.Context, c *Config, client kubernetes.Interface, node string) error {
	m, err := readMember(c, node)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	gone := func(err error) error {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	problems := []error{gone(client.CoreV1().Nodes().Delete(ctx, node, metav1.DeleteOptions{}))}
	if m.ID != "" {
		secret := bootstrapapi.BootstrapTokenSecretPrefix + m.ID
		problems = append(problems,
			gone(client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, secret, metav1.DeleteOptions{})))
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	if err := os.Remove(memberFile(c, node)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
