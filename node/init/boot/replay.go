package boot

import (
	"encoding/json"
	"errors"
	"fmt"

	"gvisor-k3s/node/init/facade"
	"gvisor-k3s/node/init/service"
)

// Replayed is what of the last life is there again.
type Replayed struct {
	Facade   bool     `json:"facade"`
	Services []string `json:"services"`          // in the order of their start
	Problem  string   `json:"problem,omitempty"` // why nothing is known of the last life
}

// Replay applies the facade of the last life, and starts its services in their order. It tells everything that failed.
func Replay(client *service.Client, madeFile string) (Replayed, error) {
	replayed := Replayed{Services: []string{}}
	note, problem, err := client.Note()
	if err != nil {
		return replayed, err
	}
	replayed.Problem = problem
	var problems []error
	if note.Facade != nil {
		err := facade.Apply(*note.Facade, madeFile)
		replayed.Facade = err == nil
		problems = append(problems, err)
	}
	for _, one := range note.Services {
		description, err := json.Marshal(one)
		if err == nil {
			_, err = client.Put(description)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("service %s: %w", one.Name, err))
			continue
		}
		replayed.Services = append(replayed.Services, one.Name)
	}
	return replayed, errors.Join(problems...)
}
