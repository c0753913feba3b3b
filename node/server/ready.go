package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

const pollEvery = 50 * time.Millisecond

// Readiness is what `ready` prints.
type Readiness struct {
	APIReady              bool   `json:"apiReady"`
	NodeReady             bool   `json:"nodeReady"`
	DefaultServiceAccount bool   `json:"defaultServiceAccount"`
	Message               string `json:"message,omitempty"` // what it waits for
}

// reached tells whether a stage is reached: "api" is /readyz and the default service account, "node" is that and a
// Ready node.
func (r Readiness) reached(c *Config, stage string) bool {
	return r.APIReady && r.DefaultServiceAccount && (stage == "api" || c.DisableAgent || r.NodeReady)
}

func reportReadiness(ctx context.Context, c *Config, stage string, seconds int) error {
	if stage != "api" && stage != "node" {
		return fmt.Errorf("--stage %q: api and node are allowed", stage)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	var state Readiness
	err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(context.Context) (bool, error) {
		// A server that was never started has no credentials yet, which is a reason to wait like any other.
		state = readiness(context.WithoutCancel(ctx), c)
		return state.reached(c, stage), nil
	})
	json.NewEncoder(os.Stdout).Encode(state)
	if err != nil {
		return fmt.Errorf("not ready (%s) after %d s: %s", stage, seconds, state.Message)
	}
	return nil
}

// readiness looks at the cluster once. A node that is Ready since before this server's start does not count: it may be
// a memory.
func readiness(ctx context.Context, c *Config) (state Readiness) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	started, err := readStages(c)
	if err != nil {
		state.Message = "the server has not started"
		return state
	}
	client, err := adminClient(c)
	if err == nil {
		_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	}
	if err != nil {
		state.Message = "the API server does not answer: " + err.Error()
		return state
	}
	state.APIReady = true
	if _, err = client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
		state.Message = err.Error()
		return state
	}
	state.DefaultServiceAccount = true
	if c.DisableAgent {
		return state
	}
	node, err := client.CoreV1().Nodes().Get(ctx, c.NodeName, metav1.GetOptions{})
	if err != nil {
		state.Message = err.Error()
		return state
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		// Times in the status have no fraction of a second.
		fresh := condition.LastHeartbeatTime.Unix() >= started["started"]/1000
		state.NodeReady = condition.Status == corev1.ConditionTrue && fresh
		if !state.NodeReady {
			state.Message = fmt.Sprintf("node %s is not Ready: %s", c.NodeName, condition.Message)
		}
	}
	return state
}

func adminClient(c *Config) (*kubernetes.Clientset, error) {
	config, err := adminConfig(c)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

func waitForAPI(ctx context.Context, c *Config) error {
	client, err := adminClient(c)
	if err != nil {
		return err
	}
	return wait.PollUntilContextTimeout(ctx, pollEvery, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil, nil
	})
}

// stages notes when the server got how far, in stages.json beside the datastore: Unix time in milliseconds by stage,
// and the process that they are of.
type stages struct {
	mu    sync.Mutex
	file  string
	times map[string]int64
}

func stagesFile(c *Config) string { return c.path("server", "stages.json") }

func newStages(c *Config) *stages {
	s := &stages{file: stagesFile(c), times: map[string]int64{"pid": int64(os.Getpid())}}
	s.reached("started")
	return s
}

func (s *stages) reached(stage string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times[stage] = time.Now().UnixMilli()
	klog.InfoS("stage reached", "stage", stage, "milliseconds", s.times[stage]-s.times["started"])
	content, err := json.Marshal(s.times)
	if err = errors.Join(err, writePrivate(s.file, content)); err != nil {
		klog.ErrorS(err, "the stage could not be noted")
	}
}

// watch notes the stages that come after the API server's.
func (s *stages) watch(ctx context.Context, c *Config) {
	for _, stage := range []string{"api", "node"} {
		err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(ctx context.Context) (bool, error) {
			return readiness(ctx, c).reached(c, stage), nil
		})
		if err == nil {
			s.reached(map[string]string{"api": "defaultServiceAccount", "node": "nodeReady"}[stage])
		}
	}
}

func readStages(c *Config) (map[string]int64, error) {
	content, err := os.ReadFile(stagesFile(c))
	if err != nil {
		return nil, err
	}
	var times map[string]int64
	return times, json.Unmarshal(content, &times)
}
