package main

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gvisor-k3s/cadvisor"
)

// lookedAt stands for cAdvisor's manager; it notes who is looked at, and when.
type lookedAt struct {
	began time.Time
	looks map[string][]time.Duration
	gone  map[string]bool
}

func (l *lookedAt) GetContainerInfoV2(
	name string, request cadvisor.RequestOptions,
) (map[string]cadvisor.ContainerInfo, error) {
	if l.gone[name] {
		return nil, errors.New("unknown container")
	}
	if request.MaxAge == nil || *request.MaxAge > time.Second || request.Recursive {
		return nil, errors.New("that is no look at one container")
	}
	l.looks[name] = append(l.looks[name], time.Since(l.began))
	return map[string]cadvisor.ContainerInfo{name: {}}, nil
}

func TestLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := &lookedAt{began: time.Now(), looks: map[string][]time.Duration{}, gone: map[string]bool{}}
		go follow(at, "/lives")
		go follow(at, "/ends")
		time.Sleep(2500 * time.Millisecond) // of the test's own clock
		at.gone["/ends"] = true
		time.Sleep(time.Hour)
		synctest.Wait()
		names := slices.Sorted(maps.Keys(at.looks))
		if !slices.Equal(names, []string{"/", "/ends", "/lives"}) {
			t.Errorf("looked at %q", names)
		}
		if got := at.looks["/ends"]; len(got) != 2 {
			t.Errorf("one that has ended was looked at after %s", got)
		}
		// What metrics-server needs: two looks soon, and two in any ten seconds of the first quarter of a minute.
		got := at.looks["/lives"]
		if len(got) < 2 || got[1] > 2*time.Second || got[len(got)-1] != 15*time.Second {
			t.Errorf("looked at after %s", got)
		}
		for i := 2; i < len(got); i++ {
			if got[i]-got[i-2] > 10*time.Second {
				t.Errorf("looked at after %s", got)
			}
		}
	})
}
