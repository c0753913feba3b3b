package cadvisor

import (
	"testing"
	"time"

	"github.com/google/cadvisor/cache/memory"
	"github.com/google/cadvisor/container"
	v1 "github.com/google/cadvisor/info/v1"
	"github.com/google/cadvisor/manager"
	"github.com/google/cadvisor/utils/sysfs"
)

// cAdvisor's own manager is what a plugin is given, and tells of containers.
func TestPlugin(t *testing.T) {
	yes, interval := true, time.Hour
	config := manager.HousekeepingConfig{Interval: &interval, AllowDynamic: &yes}
	own, err := manager.New(
		memory.New(time.Minute, nil), sysfs.NewRealSysFs(), config, container.MetricSet{}, nil, nil, nil, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	factory, ok := own.(v1.MachineInfoFactory)
	if !ok {
		t.Fatalf("%T can't be given to a plugin", own)
	}
	p := plugin{func(Manager, string) {}}
	if _, err := p.Register(factory, nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := p.Register(nil, nil, nil); err == nil {
		t.Error("without a manager it does not say so")
	}
}
