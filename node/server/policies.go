package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
)

// tellOfPolicies says at each network policy that nothing enforces it, lest somebody relies on it.
func (c *components) tellOfPolicies(ctx context.Context) error {
	client, err := adminClient(c.config)
	if err != nil {
		return err
	}
	return tellOfPolicies(ctx, client)
}

func tellOfPolicies(ctx context.Context, client kubernetes.Interface) error {
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	defer broadcaster.Shutdown()
	recorder := broadcaster.NewRecorder(scheme.Scheme, "gvisor-k3s")
	tell := func(object any) {
		if policy, ok := object.(*networkingv1.NetworkPolicy); ok {
			recorder.Eventf(policy, nil, corev1.EventTypeWarning, "NotEnforced", "Serving",
				"Nothing enforces this policy: gVisor has no netfilter to do it with. "+
					"Every pod of this node reaches every other.")
		}
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	informer := factory.Networking().V1().NetworkPolicies().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: tell,
		UpdateFunc: func(before, after any) {
			if before.(*networkingv1.NetworkPolicy).Generation != after.(*networkingv1.NetworkPolicy).Generation {
				tell(after)
			}
		},
	}); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	return nil
}
