package main

import (
	"fmt"
	"time"

	"github.com/google/cadvisor/lib/container"
	"github.com/google/cadvisor/lib/fs"
	"github.com/google/cadvisor/lib/manager"
	cadvisor "github.com/google/cadvisor/lib/model"
	"github.com/google/cadvisor/lib/watcher"
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
	*manager.InitialSplayFactor, *manager.JitterFactor = 0, 0 // chance is for many nodes that look at once
	return container.RegisterPlugin("gvisor-k3s", &looker{})
}

// looker is a plugin of cAdvisor. As such it gets to know the kubelet's manager of cAdvisor, and from it of containers.
type looker struct {
	manager interface {
		GetContainerInfoV2(string, cadvisor.RequestOptions) (map[string]cadvisor.ContainerInfo, error)
	}
}

func (l *looker) InitializeFSContext(*fs.Context) error { return nil }

func (l *looker) Register(
	factory cadvisor.MachineInfoFactory, _ fs.FsInfo, _ container.MetricSet,
) (watcher.ContainerWatcher, error) {
	manager, ok := factory.(manager.Manager)
	if !ok {
		return nil, fmt.Errorf("%T is no manager of cAdvisor", factory)
	}
	l.manager = manager
	manager.SetEventSink(l)
	return nil, nil
}

// AddEvent is told of a new container before anybody else is, and must not keep the others waiting.
func (l *looker) AddEvent(event *cadvisor.Event) error {
	if event.EventType == cadvisor.EventContainerCreation {
		go l.follow(event.ContainerName)
	}
	return nil
}

// follow looks at a container until it is not new any more, or gone.
func (l *looker) follow(name string) {
	age := freshEnough
	request := cadvisor.RequestOptions{IdType: cadvisor.TypeName, Count: 1, MaxAge: &age}
	for _, pause := range looks {
		time.Sleep(pause)
		if _, err := l.manager.GetContainerInfoV2(name, request); err != nil {
			return // it is gone
		}
		_, _ = l.manager.GetContainerInfoV2("/", request)
	}
}
