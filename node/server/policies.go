package main

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	rbac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

// proxyRole is what the service proxy may do beside what Kubernetes lets a kube-proxy do: read what network policies
// are about.
const proxyRole = "gvisor-k3s:network-policies"

func (c *components) letProxyReadPolicies(ctx context.Context) error {
	client, err := adminClient(c.config)
	if err != nil {
		return err
	}
	try := func(ctx context.Context) (bool, error) {
		err := letProxyReadPolicies(ctx, client)
		if err != nil {
			klog.V(1).InfoS("the service proxy's rights", "err", err)
		}
		return err == nil, nil
	}
	if err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, try); err == nil {
		<-ctx.Done()
	}
	return nil
}

func letProxyReadPolicies(ctx context.Context, client kubernetes.Interface) error {
	read := func(group, resource string) *rbac.PolicyRuleApplyConfiguration {
		return rbac.PolicyRule().WithAPIGroups(group).WithResources(resource).WithVerbs("list", "watch")
	}
	role := rbac.ClusterRole(proxyRole).WithRules(
		read("networking.k8s.io", "networkpolicies"), read("", "pods"), read("", "namespaces"),
	)
	if _, err := client.RbacV1().ClusterRoles().Apply(ctx, role, applied); err != nil {
		return err
	}
	return bindRole(ctx, client, proxyRole, proxyRole, "User", "system:kube-proxy")
}

// applied is how this program applies what it keeps in the cluster.
var applied = metav1.ApplyOptions{FieldManager: "gvisor-k3s", Force: true}

// bindRole gives a user or a group a role in the whole cluster.
func bindRole(ctx context.Context, client kubernetes.Interface, binding, role, kind, subject string) error {
	const group = "rbac.authorization.k8s.io"
	_, err := client.RbacV1().ClusterRoleBindings().Apply(ctx, rbac.ClusterRoleBinding(binding).
		WithRoleRef(rbac.RoleRef().WithAPIGroup(group).WithKind("ClusterRole").WithName(role)).
		WithSubjects(rbac.Subject().WithAPIGroup(group).WithKind(kind).WithName(subject)), applied)
	return err
}
