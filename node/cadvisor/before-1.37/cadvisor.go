// Package cadvisor is what node/server takes of cAdvisor where its kubelet is older than 1.37; see node/cadvisor.
package cadvisor

import (
	"fmt"

	"github.com/google/cadvisor/container"
	"github.com/google/cadvisor/container/common"
	"github.com/google/cadvisor/container/libcontainer"
	"github.com/google/cadvisor/events"
	"github.com/google/cadvisor/fs"
	v1 "github.com/google/cadvisor/info/v1"
	v2 "github.com/google/cadvisor/info/v2"
	"github.com/google/cadvisor/manager"
	"github.com/google/cadvisor/watcher"
)

// What cAdvisor calls the same.
type (
	ContainerHandler        = container.ContainerHandler
	ContainerHandlerFactory = container.ContainerHandlerFactory
	ContainerInfo           = v2.ContainerInfo
	ContainerStats          = v1.ContainerStats
	FsStats                 = v1.FsStats
	ListType                = container.ListType
	RequestOptions          = v2.RequestOptions
	StatsHandler            = libcontainer.Handler
)

// TypeName is the kind of a name in [RequestOptions].
const TypeName = v2.TypeName

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
	return container.RegisterPlugin("gvisor-k3s", plugin{seen})
}

type plugin struct{ seen func(Manager, string) }

func (plugin) InitializeFSContext(*fs.Context) error { return nil }

func (p plugin) Register(
	factory v1.MachineInfoFactory, _ fs.FsInfo, _ container.MetricSet,
) (watcher.ContainerWatcher, error) {
	own, ok := factory.(manager.Manager)
	if !ok {
		return nil, fmt.Errorf("%T is no manager of cAdvisor", factory)
	}
	request := events.NewRequest()
	request.EventType[v1.EventContainerCreation] = true
	request.IncludeSubcontainers = true
	request.ContainerName = "/"
	watched, err := own.WatchForEvents(request)
	if err != nil {
		return nil, err
	}
	go func() {
		for event := range watched.GetChannel() {
			p.seen(own, event.ContainerName)
		}
	}()
	return nil, nil
}
