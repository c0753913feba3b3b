package kube

import (
	"strings"
	"testing"
)

func TestRules(t *testing.T) {
	const (
		done = "done"
		fail = "failed"
		wait = "waiting"
	)
	pod := func(status string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: n1}, status: " + status + "}"
	}
	service := func(spec, status string) string {
		return "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: " + spec + ", status: " + status + "}"
	}
	slice := func(endpoints string) string {
		return "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s-1}, endpoints: " + endpoints + "}"
	}
	claim := func(phase string) string {
		return "{apiVersion: v1, kind: PersistentVolumeClaim, spec: {storageClassName: c}, status: {phase: " + phase + "}}"
	}
	deployment := func(spec, status string) string {
		return "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, generation: 2}, " +
			"spec: " + spec + ", status: " + status + "}"
	}
	job := func(spec, status string) string {
		return "{apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: " + spec + ", status: " + status + "}"
	}
	pulling := pod(`{phase: Pending, conditions: [{type: PodScheduled, status: "True"}], containerStatuses:
		[{name: c, state: {waiting: {reason: ImagePullBackOff, message: "Back-off pulling image \"nope\""}}}]}`)
	tests := map[string]struct {
		object  string
		related []string
		want    string
		says    string // part of the message or the details
	}{
		"pod ready": {object: pod(`{phase: Running, conditions: [{type: Ready, status: "True"}]}`), want: done},
		"pod running": {
			object: pod(`{phase: Running, conditions: [{type: PodScheduled, status: "True"}, ` +
				`{type: Ready, status: "False", message: "containers with unready status: [c]"}]}`),
			want: wait, says: "unready status",
		},
		"pod succeeded": {object: pod(`{phase: Succeeded}`), want: done},
		"pod failed": {
			object: pod(`{phase: Failed, conditions: [{type: PodScheduled, status: "True"}], ` +
				`containerStatuses: [{name: c, state: {terminated: {exitCode: 3, reason: Error}}}]}`),
			want: fail, says: "exit code 3",
		},
		"pod not scheduled": {
			object: pod(`{phase: Pending, conditions: [{type: PodScheduled, status: "False", ` +
				`reason: Unschedulable, message: "0/1 nodes are available"}]}`),
			want: wait, says: "[Unschedulable] 0/1 nodes",
		},
		"pod without status": {object: "{apiVersion: v1, kind: Pod, metadata: {name: p}}", want: wait, says: "scheduler"},
		"pod pulling": {
			object: pulling, want: wait, says: `container "c": [ImagePullBackOff] Back-off pulling image "nope"`,
		},
		"pod creating": {
			object: pod(`{phase: Pending, conditions: [{type: PodScheduled, status: "True"}], ` +
				`containerStatuses: [{name: c, state: {waiting: {reason: ContainerCreating}}}]}`),
			want: wait, says: "waiting for its containers",
		},
		"pod in a crash loop": {
			object: pod(`{phase: Running, conditions: [{type: PodScheduled, status: "True"}], containerStatuses: [{name: c, ` +
				`state: {waiting: {reason: CrashLoopBackOff, message: "back-off 10s"}}, ` +
				`lastState: {terminated: {exitCode: 1, reason: Error}}}]}`),
			want: wait, says: "[CrashLoopBackOff] back-off 10s, exit code 1 [Error]",
		},
		"deployment available": {
			object: deployment(`{replicas: 1, progressDeadlineSeconds: 600}`,
				`{observedGeneration: 2, replicas: 1, updatedReplicas: 1, readyReplicas: 1, availableReplicas: 1, conditions: `+
					`[{type: Progressing, status: "True", reason: NewReplicaSetAvailable}, {type: Available, status: "True"}]}`),
			want: done,
		},
		"deployment not observed": {
			object: deployment(`{replicas: 1}`,
				`{observedGeneration: 1, replicas: 1, updatedReplicas: 1, readyReplicas: 1, availableReplicas: 1, `+
					`conditions: [{type: Available, status: "True"}]}`),
			want: wait,
		},
		"deployment rolling": {
			object:  deployment(`{replicas: 2}`, `{observedGeneration: 2, replicas: 2, updatedReplicas: 1}`),
			related: []string{pulling}, want: wait, says: "pod p: container",
		},
		"deployment stuck": {
			object: deployment(`{replicas: 1, progressDeadlineSeconds: 1}`,
				`{observedGeneration: 2, conditions: [{type: Progressing, status: "False", reason: ProgressDeadlineExceeded}]}`),
			related: []string{pulling}, want: fail, says: "ImagePullBackOff",
		},
		"deployment paused": {object: deployment(`{paused: true}`, `{}`), want: done},
		"job complete":      {object: job(`{}`, `{conditions: [{type: Complete, status: "True"}]}`), want: done},
		"job running": {
			object: job(`{}`, `{active: 1, conditions: [{type: Complete, status: "False"}]}`), related: []string{pulling},
			want: wait, says: "active 1",
		},
		"job failed": {
			object: job(`{}`, `{conditions: [{type: Failed, status: "True", `+
				`reason: BackoffLimitExceeded, message: "Job has reached the specified backoff limit"}]}`),
			want: fail, says: "[BackoffLimitExceeded]",
		},
		"job suspended": {object: job(`{suspend: true}`, `{}`), want: done},
		"service not seen": {
			object: service(`{selector: {a: b}, clusterIP: 10.0.0.1}`, `{}`), want: wait, says: "endpoints",
		},
		"service no pods": {object: service(`{selector: {a: b}}`, `{}`), related: []string{slice("[]")}, want: done},
		"service pod ready": {
			object: service(`{selector: {a: b}}`, `{}`), related: []string{slice("[{conditions: {ready: true}}]")}, want: done,
		},
		"service pod coming": {
			object:  service(`{selector: {a: b}}`, `{}`),
			related: []string{slice("[{conditions: {ready: true}}, {conditions: {ready: false}}]")},
			want:    wait, says: "1 of its endpoints",
		},
		"service pod going": {
			object:  service(`{selector: {a: b}}`, `{}`),
			related: []string{slice("[{conditions: {ready: false, terminating: true}}]")}, want: done,
		},
		"service headless": {object: service(`{selector: {a: b}, clusterIP: None}`, `{}`), want: done},
		"service external": {object: service(`{type: ExternalName, selector: {a: b}}`, `{}`), want: done},
		"service by hand":  {object: service(`{}`, `{}`), want: done},
		"balancer waiting": {
			object: service(`{type: LoadBalancer, selector: {a: b}}`, `{}`), related: []string{slice("[]")},
			want: wait, says: "no address yet",
		},
		"balancer there": {
			object:  service(`{type: LoadBalancer, selector: {a: b}}`, `{loadBalancer: {ingress: [{ip: 1.2.3.4}]}}`),
			related: []string{slice("[]")}, want: done,
		},
		"claim bound":   {object: claim("Bound"), want: done},
		"claim pending": {object: claim("Pending"), want: wait, says: "Pending"},
		"claim for consumer": {
			object:  claim("Pending"),
			related: []string{"{apiVersion: storage.k8s.io/v1, kind: StorageClass, volumeBindingMode: WaitForFirstConsumer}"},
			want:    done,
		},
		"claim lost":       {object: claim("Lost"), want: fail},
		"volume available": {object: "{apiVersion: v1, kind: PersistentVolume, status: {phase: Available}}", want: done},
		"volume pending":   {object: "{apiVersion: v1, kind: PersistentVolume, status: {phase: Pending}}", want: wait},
		"quota in force": {
			object: "{apiVersion: v1, kind: ResourceQuota, spec: {hard: {cpu: '1'}}, status: {hard: {cpu: 1000m}}}", want: done,
		},
		"quota not yet": {object: "{apiVersion: v1, kind: ResourceQuota, spec: {hard: {cpu: '1'}}}", want: wait},
		"secret":        {object: "{apiVersion: v1, kind: Secret, type: Opaque}", want: done},
		"token missing": {
			object: "{apiVersion: v1, kind: Secret, type: kubernetes.io/service-account-token}", want: wait,
		},
		"token there": {
			object: "{apiVersion: v1, kind: Secret, type: kubernetes.io/service-account-token, data: {token: eA==}}", want: done,
		},
		"definition new": {object: "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition}", want: wait},
		"definition there": {
			object: `{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, ` +
				`status: {conditions: [{type: NamesAccepted, status: "True"}, {type: Established, status: "True"}]}}`,
			want: done,
		},
		"controller": {
			object: "{apiVersion: v1, kind: ReplicationController, spec: {replicas: 2}, status: {availableReplicas: 1}}",
			want:   wait, says: "1/2",
		},
		"waitFor met": {
			object: `{apiVersion: a/v1, kind: X, status: {phase: Up}, ` +
				`metadata: {annotations: {pulumi.com/waitFor: "jsonpath={.status.phase}=Up"}}}`,
			want: done,
		},
		"waitFor not met": {
			object: `{apiVersion: a/v1, kind: X, status: {ip: x, conditions: [{type: Ready, status: "False"}]}, ` +
				`metadata: {annotations: {pulumi.com/waitFor: '["condition=Ready", "jsonpath={.status.ip}"]'}}}`,
			want: wait, says: "condition=Ready",
		},
		"waitFor before the rule": {
			object: `{apiVersion: v1, kind: Pod, status: {phase: Pending, conditions: [{type: Ready, status: "False"}]}, ` +
				`metadata: {annotations: {pulumi.com/waitFor: "condition=Ready=False"}}}`,
			want: done,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			objects := view{object: fromYAML(t, test.object)}
			for _, related := range test.related {
				objects.related = append(objects.related, fromYAML(t, related))
			}
			rule, found := (&Provider{}).ruleFor(objects.object)
			if !found {
				t.Fatal("no rule")
			}
			verdict := rule.judge(objects)
			got := wait
			if verdict.done {
				got = done
			} else if verdict.failed {
				got = fail
			}
			text := strings.Join(append(verdict.details, verdict.message), "\n")
			if got != test.want || !strings.Contains(text, test.says) {
				t.Errorf("got %s, want %s with %q:\n%s", got, test.want, test.says, text)
			}
		})
	}
}

func TestKindsWithoutARule(t *testing.T) {
	object := fromYAML(t, "{apiVersion: a/v1, kind: X, status: {conditions: [{type: Ready, status: 'False'}]}}")
	if _, found := (&Provider{}).ruleFor(object); found {
		t.Error("it waits")
	}
	rule, found := (&Provider{settings: settings{awaitAll: true}}).ruleFor(object)
	if !found || rule.judge(view{object: object}).done {
		t.Error("awaitAll: it does not wait")
	}
}

func TestParseConditionRefuses(t *testing.T) {
	for _, text := range []string{"Ready", "condition=", "jsonpath={.status", "jsonpath={.a[}"} {
		if _, err := parseCondition(text); err == nil || !strings.Contains(err.Error(), waitForAnnotation) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
