package kube

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// rule says when objects of a kind are up. Rules are pure: same view, same verdict.
type rule struct {
	judge func(view) readiness
	// related selects the objects that the verdict depends on beside the object itself, nil for none.
	related func(object *unstructured.Unstructured) *selection
}

// selection is a set of objects: the kind and namespace of one of them, and what to list.
type selection struct {
	of      *unstructured.Unstructured
	options metav1.ListOptions
}

func (r rule) selects(object *unstructured.Unstructured) *selection {
	if r.related == nil {
		return nil
	}
	return r.related(object)
}

var rules = map[schema.GroupKind]rule{
	{Kind: "Pod"}:                        {judge: podReady},
	{Kind: "Service"}:                    {judge: serviceReady, related: endpointSlices},
	{Kind: "PersistentVolumeClaim"}:      {judge: claimReady, related: storageClass},
	{Kind: "PersistentVolume"}:           {judge: volumeReady},
	{Kind: "ReplicationController"}:      {judge: replicationControllerReady},
	{Kind: "ResourceQuota"}:              {judge: quotaReady},
	{Kind: "Secret"}:                     {judge: secretReady},
	{Group: "apps", Kind: "Deployment"}:  {judge: deploymentReady, related: selectedPods},
	{Group: "apps", Kind: "StatefulSet"}: {judge: workloadReady, related: selectedPods},
	{Group: "apps", Kind: "DaemonSet"}:   {judge: workloadReady, related: selectedPods},
	{Group: "batch", Kind: "Job"}:        {judge: jobReady, related: selectedPods},
	{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}: {judge: generalReady},
}

// ruleFor returns the rule for an object. Its waitFor annotation goes before the rule of its kind; a kind without one
// is up as soon as it is created, unless awaitAll asks for the conditions that most controllers keep.
func (p *Provider) ruleFor(object *unstructured.Unstructured) (rule, bool) {
	if expressions := waitFor(object); len(expressions) > 0 {
		return rule{judge: func(objects view) readiness { return meets(objects.object, expressions) }}, true
	}
	known, found := rules[object.GroupVersionKind().GroupKind()]
	if !found && p.settings.awaitAll {
		return rule{judge: generalReady}, true
	}
	return known, found
}

// into converts an object to the Go type of its kind; what does not fit stays empty.
func into[T any](object *unstructured.Unstructured) T {
	var typed T
	_ = runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &typed)
	return typed
}

func waiting(format string, args ...any) readiness {
	return readiness{message: fmt.Sprintf(format, args...)}
}

func failed(format string, args ...any) readiness {
	return readiness{failed: true, message: fmt.Sprintf(format, args...)}
}

// generalReady judges by the conventions that kstatus knows: observed generation, conditions, replica counts.
func generalReady(objects view) readiness {
	result, err := status.Compute(objects.object)
	switch {
	case err != nil:
		return waiting("%v", err)
	case result.Status == status.CurrentStatus:
		return readiness{done: true}
	case result.Status == status.FailedStatus:
		return failed("%s", result.Message)
	}
	return waiting("%s", result.Message)
}

// workloadReady is generalReady with what keeps the workload's pods from running.
func workloadReady(objects view) readiness {
	verdict := generalReady(objects)
	for _, related := range objects.related {
		pod := into[corev1.Pod](related)
		if problem := podProblem(&pod); problem != "" && !verdict.done {
			verdict.details = append(verdict.details, "pod "+pod.Name+": "+problem)
		}
	}
	return verdict
}

func deploymentReady(objects view) readiness {
	if deployment := into[appsv1.Deployment](objects.object); deployment.Spec.Paused {
		return readiness{done: true} // nothing rolls out until someone resumes it
	}
	return workloadReady(objects)
}

// podReady waits until the pod is ready or has done its work. A pod that failed never becomes either.
func podReady(objects view) readiness {
	pod := into[corev1.Pod](objects.object)
	switch pod.Status.Phase {
	case corev1.PodSucceeded:
		return readiness{done: true}
	case corev1.PodFailed:
		return failed("the pod failed: %s", orElse(podProblem(&pod), "no reason given"))
	}
	if condition := podCondition(&pod, corev1.PodReady); condition != nil && condition.Status == corev1.ConditionTrue {
		return readiness{done: true}
	}
	return waiting("%s", orElse(podProblem(&pod), "waiting for its containers to be ready"))
}

// podProblem returns what keeps a pod from being ready, in the words of the scheduler and the kubelet, or "".
func podProblem(pod *corev1.Pod) string {
	if pod.Status.Phase == corev1.PodSucceeded {
		return ""
	}
	if scheduled := podCondition(pod, corev1.PodScheduled); scheduled == nil && pod.Spec.NodeName == "" {
		return "waiting for the scheduler"
	} else if scheduled != nil && scheduled.Status != corev1.ConditionTrue {
		return fmt.Sprintf("not scheduled: [%s] %s", scheduled.Reason, scheduled.Message)
	}
	var problems []string
	if pod.Status.Reason != "" || pod.Status.Message != "" {
		problems = append(problems, strings.TrimSpace(fmt.Sprintf("[%s] %s", pod.Status.Reason, pod.Status.Message)))
	}
	for _, container := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if problem := containerProblem(&container); problem != "" {
			problems = append(problems, fmt.Sprintf("container %q: %s", container.Name, problem))
		}
	}
	ready := podCondition(pod, corev1.PodReady)
	if len(problems) == 0 && ready != nil && ready.Status != corev1.ConditionTrue {
		return ready.Message
	}
	return strings.Join(problems, "; ")
}

func containerProblem(container *corev1.ContainerStatus) string {
	var parts []string
	pending := container.State.Waiting
	if pending != nil && pending.Reason != "ContainerCreating" && pending.Reason != "PodInitializing" {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("[%s] %s", pending.Reason, pending.Message)))
	}
	for _, state := range []*corev1.ContainerStateTerminated{
		container.State.Terminated, container.LastTerminationState.Terminated,
	} {
		if !container.Ready && state != nil && state.ExitCode != 0 {
			part := fmt.Sprintf("exit code %d [%s] %s", state.ExitCode, state.Reason, state.Message)
			parts = append(parts, strings.TrimSpace(part))
		}
	}
	return strings.Join(parts, ", ")
}

func podCondition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// jobReady waits until the job has done its work. A suspended one waits for someone to resume it.
func jobReady(objects view) readiness {
	job := into[batchv1.Job](objects.object)
	for _, condition := range job.Status.Conditions {
		switch {
		case condition.Status != corev1.ConditionTrue:
		case condition.Type == batchv1.JobComplete:
			return readiness{done: true}
		case condition.Type == batchv1.JobFailed:
			verdict := failed("the job failed: [%s] %s", condition.Reason, condition.Message)
			verdict.details = podProblems(objects.related)
			return verdict
		}
	}
	if job.Spec.Suspend != nil && *job.Spec.Suspend {
		return readiness{done: true}
	}
	verdict := waiting("active %d, succeeded %d, failed %d", job.Status.Active, job.Status.Succeeded, job.Status.Failed)
	verdict.details = podProblems(objects.related)
	return verdict
}

func podProblems(pods []*unstructured.Unstructured) []string {
	var problems []string
	for _, object := range pods {
		pod := into[corev1.Pod](object)
		if problem := podProblem(&pod); problem != "" {
			problems = append(problems, "pod "+pod.Name+": "+problem)
		}
	}
	return problems
}

// serviceReady waits until a load balancer has an address, and until the service's endpoints are known and each of them
// is ready. A service that selects no pod yet is up: its pods may be somebody else's.
func serviceReady(objects view) readiness {
	service := into[corev1.Service](objects.object)
	if service.Spec.Type == corev1.ServiceTypeLoadBalancer && len(service.Status.LoadBalancer.Ingress) == 0 {
		return waiting("no address yet for the load balancer: a controller in the cluster must assign one")
	}
	if service.Spec.Type == corev1.ServiceTypeExternalName || service.Spec.ClusterIP == corev1.ClusterIPNone ||
		len(service.Spec.Selector) == 0 {
		return readiness{done: true}
	}
	if len(objects.related) == 0 {
		return waiting("waiting for the cluster to find its endpoints")
	}
	pending := 0
	for _, object := range objects.related {
		for _, endpoint := range into[discoveryv1.EndpointSlice](object).Endpoints {
			ready, terminating := endpoint.Conditions.Ready, endpoint.Conditions.Terminating
			if ready != nil && !*ready && (terminating == nil || !*terminating) {
				pending++
			}
		}
	}
	if pending > 0 {
		return waiting("%d of its endpoints not ready", pending)
	}
	return readiness{done: true}
}

func endpointSlices(service *unstructured.Unstructured) *selection {
	slice := &unstructured.Unstructured{
		Object: map[string]any{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"},
	}
	slice.SetNamespace(service.GetNamespace())
	return &selection{
		of: slice, options: metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service.GetName()},
	}
}

// selectedPods are the pods of a workload.
func selectedPods(workload *unstructured.Unstructured) *selection {
	written, found, _ := unstructured.NestedMap(workload.Object, "spec", "selector")
	if !found {
		return nil
	}
	var labels metav1.LabelSelector
	if runtime.DefaultUnstructuredConverter.FromUnstructured(written, &labels) != nil {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(&labels)
	if err != nil {
		return nil
	}
	pod := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Pod"}}
	pod.SetNamespace(workload.GetNamespace())
	return &selection{of: pod, options: metav1.ListOptions{LabelSelector: selector.String()}}
}

// claimReady waits until the claim is bound. One that waits for its first consumer is as far as it gets alone.
func claimReady(objects view) readiness {
	claim := into[corev1.PersistentVolumeClaim](objects.object)
	if claim.Status.Phase == corev1.ClaimBound {
		return readiness{done: true}
	}
	if claim.Status.Phase == corev1.ClaimLost {
		return failed("its volume %s is lost", claim.Spec.VolumeName)
	}
	for _, object := range objects.related {
		mode := into[storagev1.StorageClass](object).VolumeBindingMode
		if mode != nil && *mode == storagev1.VolumeBindingWaitForFirstConsumer && claim.Status.Phase == corev1.ClaimPending {
			return readiness{done: true}
		}
	}
	return waiting("not bound to a volume yet (phase %s)", orElse(string(claim.Status.Phase), "unknown"))
}

func storageClass(claim *unstructured.Unstructured) *selection {
	name, _, _ := unstructured.NestedString(claim.Object, "spec", "storageClassName")
	if name == "" {
		return nil
	}
	class := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass"}}
	return &selection{of: class, options: metav1.ListOptions{FieldSelector: "metadata.name=" + name}}
}

func volumeReady(objects view) readiness {
	volume := into[corev1.PersistentVolume](objects.object)
	switch volume.Status.Phase {
	case corev1.VolumeAvailable, corev1.VolumeBound:
		return readiness{done: true}
	case corev1.VolumeFailed:
		return failed("[%s] %s", volume.Status.Reason, volume.Status.Message)
	}
	return waiting("not available yet (phase %s)", orElse(string(volume.Status.Phase), "unknown"))
}

func replicationControllerReady(objects view) readiness {
	controller := into[corev1.ReplicationController](objects.object)
	want := int32(1)
	if controller.Spec.Replicas != nil {
		want = *controller.Spec.Replicas
	}
	if controller.Status.ObservedGeneration >= controller.Generation && controller.Status.AvailableReplicas == want {
		return readiness{done: true}
	}
	return waiting("available: %d/%d", controller.Status.AvailableReplicas, want)
}

func quotaReady(objects view) readiness {
	quota := into[corev1.ResourceQuota](objects.object)
	if equality.Semantic.DeepEqual(quota.Spec.Hard, quota.Status.Hard) {
		return readiness{done: true}
	}
	return waiting("its limits are not in force yet")
}

// secretReady waits for the token of a service account; any other secret is complete as it is.
func secretReady(objects view) readiness {
	secret := into[corev1.Secret](objects.object)
	if secret.Type != corev1.SecretTypeServiceAccountToken || len(secret.Data[corev1.ServiceAccountTokenKey]) > 0 {
		return readiness{done: true}
	}
	return waiting("no token yet for the service account %q", secret.Annotations[corev1.ServiceAccountNameKey])
}

// waitFor returns the expressions of the waitFor annotation: one, or a JSON list of them.
func waitFor(object *unstructured.Unstructured) []string {
	text := object.GetAnnotations()[waitForAnnotation]
	if text == "" {
		return nil
	}
	var list []string
	if json.Unmarshal([]byte(text), &list) == nil {
		return list
	}
	return []string{text}
}

// parseCondition reads what `kubectl wait --for` takes: "condition=Ready", "condition=Ready=False",
// "jsonpath={.status.phase}" (there is a value) or "jsonpath={.status.phase}=Running".
func parseCondition(expression string) (func(*unstructured.Unstructured) bool, error) {
	if rest, found := strings.CutPrefix(expression, "condition="); found && rest != "" {
		kind, want, given := strings.Cut(rest, "=")
		if !given {
			want = "True"
		}
		return func(object *unstructured.Unstructured) bool {
			conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
			for _, element := range conditions {
				if condition, known := element.(map[string]any); known &&
					strings.EqualFold(fmt.Sprint(condition["type"]), kind) {
					return strings.EqualFold(fmt.Sprint(condition["status"]), want)
				}
			}
			return false
		}, nil
	}
	problem := func(why any) error {
		return fmt.Errorf("the annotation %s: %q: %v; write condition=TYPE, condition=TYPE=STATUS, jsonpath={PATH} or "+
			"jsonpath={PATH}=VALUE, or a JSON list of such", waitForAnnotation, expression, why)
	}
	rest, found := strings.CutPrefix(expression, "jsonpath=")
	if !found {
		return nil, problem("unknown form")
	}
	rest = strings.Trim(rest, "'\"")
	template, want, given := rest, "", false
	if end := strings.LastIndex(rest, "}"); end >= 0 {
		template = rest[:end+1]
		want, given = strings.CutPrefix(rest[end+1:], "=")
	}
	if !strings.HasPrefix(template, "{") {
		template = "{" + template + "}"
	}
	path := jsonpath.New("waitFor").AllowMissingKeys(true)
	if err := path.Parse(template); err != nil {
		return nil, problem(err)
	}
	return func(object *unstructured.Unstructured) bool {
		results, err := path.FindResults(object.Object)
		if err != nil || len(results) == 0 || len(results[0]) == 0 {
			return false
		}
		return !given || fmt.Sprint(results[0][0].Interface()) == strings.Trim(want, "'\"")
	}, nil
}

func meets(object *unstructured.Unstructured, expressions []string) readiness {
	for _, expression := range expressions {
		met, err := parseCondition(expression)
		if err != nil {
			return failed("%v", err)
		}
		if !met(object) {
			return waiting("%s is not met", expression)
		}
	}
	return readiness{done: true}
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
