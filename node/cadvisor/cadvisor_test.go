package cadvisor

import (
	"slices"
	"testing"
	"time"

	"github.com/google/cadvisor/lib/cache/memory"
	"github.com/google/cadvisor/lib/container"
	"github.com/google/cadvisor/lib/manager"
	"github.com/google/cadvisor/lib/model"
	"github.com/google/cadvisor/lib/utils/sysfs"
)

// cAdvisor's own manager is what a plugin is given, and tells of containers.
func TestPlugin(t *testing.T) {
	yes, interval := true, time.Hour
	config := manager.HousekeepingConfig{Interval: &interval, AllowDynamic: &yes, DisableContainerDiscovery: true}
	own, err := manager.New(
		memory.New(time.Minute, nil), sysfs.NewRealSysFs(), config, container.MetricSet{}, nil, nil, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	factory, ok := own.(model.MachineInfoFactory)
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

func TestSeesWhatComesToBe(t *testing.T) {
	var seen []string
	s := sink{nil, func(_ Manager, name string) { seen = append(seen, name) }}
	for name, kind := range map[string]model.EventType{
		"/comes": model.EventContainerCreation,
		"/ends":  model.EventContainerDeletion,
	} {
		if err := s.AddEvent(&model.Event{ContainerName: name, EventType: kind}); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(seen, []string{"/comes"}) {
		t.Errorf("saw %q", seen)
	}
}
