package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

const pollEvery = 50 * time.Millisecond

// How long the API server may take to answer a question, which is then asked again.
const answer = 5 * time.Second

// Readiness is what `ready` prints.
type Readiness struct {
	APIReady              bool   `json:"apiReady"`
	AgentAlive            bool   `json:"agentAlive"`
	NodeReady             bool   `json:"nodeReady"`
	DefaultServiceAccount bool   `json:"defaultServiceAccount"`
	Message               string `json:"message,omitempty"` // what it waits for
}

// The stages of a start: /readyz and the default service account; that, and controllers and scheduler answer, and the
// kubelet has told its state since the agent's start; that, and the node is Ready. Where there is no node, it is not
// waited for.
const (
	stageAPI   = "api"
	stageAgent = "agent"
	stageNode  = "node"
)

// stageNames are the stages by what they are noted as.
var stageNames = map[string]string{stageAPI: "defaultServiceAccount", stageAgent: "agentAlive", stageNode: "nodeReady"}

func (r Readiness) reached(c *Config, stage string) bool {
	switch api := r.APIReady && r.DefaultServiceAccount; stage {
	case stageAPI:
		return api
	case stageAgent:
		return api && r.AgentAlive
	default:
		return api && r.AgentAlive && (c.DisableAgent || r.NodeReady)
	}
}

func reportReadiness(ctx context.Context, c *Config, stage string, seconds int) error {
	if stageNames[stage] == "" {
		return fmt.Errorf("--stage %q: api, agent and node are allowed", stage)
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

// readiness looks at the cluster once. A node that is Ready since before this agent's start does not count: it may be a
// memory.
func readiness(ctx context.Context, c *Config) (state Readiness) {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	noted, err := readStages(c)
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
	if noted.Controllers == 0 {
		state.Message = cmp.Or(noted.Problem, "controllers and scheduler do not answer yet")
		return state
	}
	if c.DisableAgent {
		state.AgentAlive = true
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
		state.AgentAlive = condition.LastHeartbeatTime.Unix() >= noted.AgentStarted/1000
		state.NodeReady = state.AgentAlive && condition.Status == corev1.ConditionTrue
		if !state.NodeReady {
			state.Message = fmt.Sprintf("node %s is not Ready: %s", c.NodeName, condition.Message)
		}
	}
	if state.NodeReady && isTaintedNotReady(node) {
		state.NodeReady = false
		state.Message = fmt.Sprintf("node %s is Ready, and the controllers still keep pods away from it (taint %s)",
			c.NodeName, corev1.TaintNodeNotReady)
	}
	return state
}

// isTaintedNotReady tells whether pods are kept away from a node since it was not Ready a moment ago: one that is made
// now is refused once, and waits a second.
func isTaintedNotReady(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Spec.Taints, func(taint corev1.Taint) bool {
		return taint.Key == corev1.TaintNodeNotReady
	})
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
		ctx, cancel := context.WithTimeout(ctx, answer)
		defer cancel()
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err == nil, nil
	})
}

// stages notes in stages.json, beside the datastore, when the server got how far (Unix time in milliseconds by stage),
// the process that this is of, and why it gets no further.
type stages struct {
	mu    sync.Mutex
	file  string
	noted map[string]any
}

func stagesFile(c *Config) string {
	if c.Server != "" {
		return c.agentPath("stages.json")
	}
	return c.path("server", "stages.json")
}

func newStages(c *Config) *stages {
	s := &stages{file: stagesFile(c), noted: map[string]any{"pid": os.Getpid()}}
	s.reached("started")
	return s
}

func (s *stages) reached(stage string) {
	klog.InfoS("stage reached", "stage", stage)
	s.note(stage, time.Now().UnixMilli())
}

// agentStarts forgets how far the agent before it was.
func (s *stages) agentStarts() {
	s.note("agentStarted", time.Now().UnixMilli(), controllersNote, stageNames[stageAgent], stageNames[stageNode])
}

const (
	controllersNote = "controllers" // controllers and scheduler answer
	problemNote     = "problem"
)

// note writes something down, and forgets other things.
func (s *stages) note(key string, value any, forgotten ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range forgotten {
		delete(s.noted, other)
	}
	s.noted[key] = value
	content, err := json.Marshal(s.noted)
	if err = errors.Join(err, writePrivate(s.file, content)); err != nil {
		klog.ErrorS(err, "the stage could not be noted")
	}
}

// watch notes stages as they are reached, one after the other.
func (s *stages) watch(ctx context.Context, c *Config, stages ...string) {
	for _, stage := range stages {
		err := wait.PollUntilContextCancel(ctx, pollEvery, true, func(ctx context.Context) (bool, error) {
			return readiness(ctx, c).reached(c, stage), nil
		})
		if err != nil {
			return
		}
		s.reached(stageNames[stage])
	}
}

// noted is what is read of it.
type noted struct {
	Started      int64  `json:"started"`
	Datastore    int64  `json:"datastore"`
	APIReady     int64  `json:"apiReady"`
	AgentStarted int64  `json:"agentStarted"`
	Controllers  int64  `json:"controllers"`
	Problem      string `json:"problem"`
}

func readStages(c *Config) (noted noted, err error) {
	content, err := os.ReadFile(stagesFile(c))
	if err != nil {
		return noted, err
	}
	return noted, json.Unmarshal(content, &noted)
}
