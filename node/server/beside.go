package main

import "context"

// runBeside runs what of this server another one does not have: k3s, whose load balancers and whose provisioner are
// images that have to be pulled. Both read the same config file, and keep the admin's kubeconfig at the same place
// (k3s: pkg/daemons/control/deps).
func runBeside(ctx context.Context, config *Config, claims bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	components := newComponents(config, nil, cancel)
	components.startOwn(ctx)
	if claims {
		components.start(ctx, localStorage, components.localStorage)
	}
	<-ctx.Done()
	components.wait()
	return endOf(ctx)
}

// startOwn starts what Kubernetes' own components do not do.
func (c *components) startOwn(ctx context.Context) {
	c.start(ctx, "the service proxy's rights", c.letProxyReadPolicies)
	c.start(ctx, "load balancers", c.loadBalancers)
	c.start(ctx, "the node's labels", c.labelNode)
}
