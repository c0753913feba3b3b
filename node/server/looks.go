package main

import (
	"time"

	"gvisor-k3s/cadvisor"
)

// looks are the times between the looks at a new container. Two figures make a usage: the first looks are for a
// container that metrics-server knows from its beginning, and the later ones for those that were there before
// metrics-server.
var looks = []time.Duration{
	time.Second, time.Second, time.Second, time.Second, 2 * time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second,
}

// freshEnough has several containers that are new at the same time share the looks at the node.
const freshEnough = 500 * time.Millisecond

// lookEagerly has cAdvisor, which the kubelet knows its containers' usage from, look at a new container, and at the
// node as a whole, several times in the first quarter of a minute. By itself it looks at the container's beginning, and
// then after ten to thirty seconds, as chance will have it. What runs on is looked at as seldom as ever.
func lookEagerly() error {
	return cadvisor.OnCreation(func(manager cadvisor.Manager, name string) { go follow(manager, name) })
}

// follow looks at a container until it is not new any more, or gone.
func follow(manager cadvisor.Manager, name string) {
	age := freshEnough
	request := cadvisor.RequestOptions{IdType: cadvisor.TypeName, Count: 1, MaxAge: &age}
	for _, pause := range looks {
		time.Sleep(pause)
		if _, err := manager.GetContainerInfoV2(name, request); err != nil {
			return // it is gone
		}
		_, _ = manager.GetContainerInfoV2("/", request)
	}
}
