// Package cadvisor is what node/server takes of cAdvisor, which the kubelet knows its containers' usage from. It is
// here because the kubelets before 1.37 link another module of it: before-1.37 is this package for them.
package cadvisor

import (
	"fmt"

	"github.com/google/cadvisor/lib/container"
	"github.com/google/cadvisor/lib/container/common"
	"github.com/google/cadvisor/lib/container/libcontainer"
	"github.com/google/cadvisor/lib/fs"
	"github.com/google/cadvisor/lib/manager"
	"github.com/google/cadvisor/lib/model"
	"github.com/google/cadvisor/lib/watcher"
)

// What cAdvisor calls the same.
type (
	ContainerHandler        = container.ContainerHandler
	ContainerHandlerFactory = container.ContainerHandlerFactory
	ContainerInfo           = model.ContainerInfo
	ContainerStats          = model.ContainerStats
	FsStats                 = model.FsStats
	ListType                = container.ListType
	RequestOptions          = model.RequestOptions
	StatsHandler            = libcontainer.Handler
)

// TypeName is the kind of a name in [RequestOptions].
const TypeName = model.TypeName

// ListSelf has a container's own processes listed, without those below it.
const ListSelf = container.ListSelf

// What cAdvisor calls the same.
var (
	ClearContainerHandlerFactories = container.ClearContainerHandlerFactories
	MakeCgroupPaths                = common.MakeCgroupPaths
	NewStatsHandler                = libcontainer.NewHandler
)

// Network is what of a cgroup is measured beside CPU and memory.
var Network = container.MetricSet{container.NetworkUsageMetrics: struct{}{}}

// Factories are those that are asked for a cgroup's handler, in their order.
func Factories() []ContainerHandlerFactory { return container.GetReorderedFactoryList(watcher.Raw) }

// Register adds a factory after those that are registered.
func Register(factory ContainerHandlerFactory) {
	container.RegisterContainerHandlerFactory(factory, []watcher.ContainerWatchSource{watcher.Raw})
}

// NewHandler is the handler of a cgroup, of the first factory that knows it, and whether that accepts it.
func NewHandler(name string) (ContainerHandler, bool, error) {
	return container.NewContainerHandler(name, watcher.Raw, nil, true)
}

// Manager has the containers looked at.
type Manager interface {
	GetContainerInfoV2(name string, request RequestOptions) (map[string]ContainerInfo, error)
}

// OnCreation has seen called with each container that comes to be once a manager of cAdvisor is started, and with that
// manager. It must not keep others waiting.
func OnCreation(seen func(from Manager, name string)) error {
	*manager.InitialSplayFactor, *manager.JitterFactor = 0, 0 // chance is for many nodes that look at once
	return container.RegisterPlugin("gvisor-k3s", plugin{seen})
}

type plugin struct{ seen func(Manager, string) }

func (plugin) InitializeFSContext(*fs.Context) error { return nil }

func (p plugin) Register(
	factory model.MachineInfoFactory, _ fs.FsInfo, _ container.MetricSet,
) (watcher.ContainerWatcher, error) {
	own, ok := factory.(manager.Manager)
	if !ok {
		return nil, fmt.Errorf("%T is no manager of cAdvisor", factory)
	}
	own.SetEventSink(sink{own, p.seen})
	return nil, nil
}

type sink struct {
	own  Manager
	seen func(Manager, string)
}

// AddEvent is told of a new container before anybody else is.
func (s sink) AddEvent(event *model.Event) error {
	if event.EventType == model.EventContainerCreation {
		s.seen(s.own, event.ContainerName)
	}
	return nil
}
