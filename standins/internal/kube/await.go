package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
)

// view is what a rule judges: the object, and the objects that its rule asks for beside it.
type view struct {
	object  *unstructured.Unstructured
	related []*unstructured.Unstructured
}

// readiness is a rule's judgement.
type readiness struct {
	done    bool
	failed  bool     // waiting longer cannot help
	message string   // what is missing, or what went wrong
	details []string // more about it, one fact a line
}

// notReadyError says why an object is not up.
type notReadyError struct {
	cause   string   // "timed out after 10m0s", "failed", …
	details []string // the last condition, container states and warnings
}

func (e *notReadyError) Error() string {
	return strings.Join(append([]string{e.cause}, e.details...), "\n  - ")
}

// await waits until the object is up, as far as its kind has a rule and its annotations allow. The object returned is
// the last one seen, with an error, too.
func (p *Provider) await(
	ctx context.Context, urn resource.URN, inputs, object *unstructured.Unstructured, limit time.Duration,
) (*unstructured.Unstructured, error) {
	rule, known := p.ruleFor(object)
	if isPatch(urn, object) || !known || isTrue(inputs, skipAwaitAnnotation) {
		return object, nil
	}
	if rule.related == nil && rule.judge(view{object: object}).done {
		return object, nil
	}
	judge := func(objects view) readiness {
		if objects.object == nil {
			return readiness{failed: true, message: "it was deleted by someone else"}
		}
		// A watch may begin with what was there before the write.
		if objects.object.GetGeneration() < object.GetGeneration() {
			return readiness{message: "waiting for the API server to show the change"}
		}
		return rule.judge(objects)
	}
	return p.watch(ctx, urn, object, rule, judge, limit)
}

// awaitGone waits until the object is gone or another one has its name.
func (p *Provider) awaitGone(
	ctx context.Context, urn resource.URN, object *unstructured.Unstructured, limit time.Duration,
) (*unstructured.Unstructured, error) {
	judge := func(objects view) readiness {
		if objects.object == nil || object.GetUID() != "" && objects.object.GetUID() != object.GetUID() {
			return readiness{done: true}
		}
		finalizers := objects.object.GetFinalizers()
		all := len(finalizers)
		finalizers = slices.DeleteFunc(slices.Clone(finalizers), func(name string) bool {
			return name == metav1.FinalizerDeleteDependents
		})
		switch {
		case len(finalizers) > 0:
			return waiting("waiting for its finalizers %s: what put them there must take them off",
				strings.Join(finalizers, ", "))
		case all > 0:
			return waiting("waiting for what it owns to go")
		}
		return waiting("waiting for it to go")
	}
	return p.watch(ctx, urn, object, rule{}, judge, limit)
}

// watch judges the object after every change of it, of what its rule asks for or of its events.
func (p *Provider) watch(
	ctx context.Context, urn resource.URN, object *unstructured.Unstructured, rule rule, judge func(view) readiness,
	limit time.Duration,
) (*unstructured.Unstructured, error) {
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	defer p.status(ctx, urn, "")
	client, err := p.cluster.client(ctx, object)
	if err != nil {
		return object, err
	}
	changed := make(chan struct{}, 1)
	self := follow(ctx, client, metav1.ListOptions{FieldSelector: "metadata.name=" + object.GetName()}, changed)
	events := p.followEvents(ctx, object, changed)
	related, err := p.followRelated(ctx, object, rule, changed)
	if err != nil {
		return object, err
	}

	last, shown := object, ""
	var verdict readiness
	for {
		select {
		case <-ctx.Done():
			return last, p.notReady(ctx, last, related.objects(), verdict, ended(ctx, limit))
		case <-changed:
		}
		if !self.controller.HasSynced() {
			continue
		}
		current := view{object: self.named(object), related: related.objects()}
		verdict = judge(current)
		if current.object != nil {
			last = current.object
		}
		switch {
		case verdict.done:
			return last, nil
		case verdict.failed:
			return last, p.notReady(ctx, last, current.related, verdict, "failed")
		}
		if line := statusLine(object, verdict, latestEvent(events.objects())); line != shown {
			p.status(ctx, urn, line)
			shown = line
		}
	}
}

func ended(ctx context.Context, limit time.Duration) string {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Sprintf("timed out after %s (customTimeouts or the annotation %s change that)",
			limit, timeoutSecondsAnnotation)
	}
	return "cancelled"
}

func statusLine(object *unstructured.Unstructured, verdict readiness, event string) string {
	parts := []string{"Waiting for " + describe(object) + ": " + verdict.message}
	if len(verdict.details) > 0 {
		parts = append(parts, verdict.details[0])
	} else if event != "" {
		parts = append(parts, event)
	}
	return strings.Join(parts, "; ")
}

// inspect judges the object once, as it is.
func (p *Provider) inspect(ctx context.Context, object *unstructured.Unstructured, rule rule) error {
	current := view{object: object}
	if selection := rule.selects(object); selection != nil {
		client, err := p.cluster.client(ctx, selection.of)
		if err != nil {
			return err
		}
		list, err := client.List(ctx, selection.options)
		if err != nil {
			return err
		}
		for i := range list.Items {
			current.related = append(current.related, &list.Items[i])
		}
	}
	verdict := rule.judge(current)
	if verdict.done {
		return nil
	}
	return p.notReady(ctx, object, current.related, verdict, "not ready")
}

// notReady collects what is known about an object that is not up: its last verdict, and the warnings about it and
// about the objects that its rule asks for.
func (p *Provider) notReady(
	ctx context.Context, object *unstructured.Unstructured, related []*unstructured.Unstructured, verdict readiness,
	cause string,
) error {
	result := &notReadyError{cause: cause}
	if verdict.message != "" {
		result.details = append(result.details, verdict.message)
	}
	result.details = append(result.details, verdict.details...)
	// The operation's own time may be over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, subject := range append([]*unstructured.Unstructured{object}, related...) {
		if len(result.details) > 12 {
			break
		}
		result.details = append(result.details, p.warnings(ctx, subject)...)
	}
	return result
}

var eventKind = &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Event"}}

func eventsOf(object *unstructured.Unstructured) (*unstructured.Unstructured, metav1.ListOptions) {
	kind := eventKind.DeepCopy()
	kind.SetNamespace(object.GetNamespace())
	if object.GetNamespace() == "" {
		kind.SetNamespace(metav1.NamespaceDefault)
	}
	return kind, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(object.GetUID())}
}

// warnings returns the last warnings about an object, oldest first. They are an addition: without access to events
// there are none.
func (p *Provider) warnings(ctx context.Context, object *unstructured.Unstructured) []string {
	kind, options := eventsOf(object)
	client, err := p.cluster.client(ctx, kind)
	if err != nil {
		return nil
	}
	list, err := client.List(ctx, options)
	if err != nil {
		return nil
	}
	var lines []string
	for _, event := range sortedEvents(pointers(list.Items)) {
		if event.Type == corev1.EventTypeWarning {
			lines = append(lines, fmt.Sprintf("event on %s: [%s] %s", describe(object), event.Reason, event.Message))
		}
	}
	lines = slices.Compact(lines) // a controller that tries again says the same again
	return lines[max(0, len(lines)-3):]
}

func latestEvent(objects []*unstructured.Unstructured) string {
	events := sortedEvents(objects)
	if len(events) == 0 {
		return ""
	}
	last := events[len(events)-1]
	return fmt.Sprintf("[%s] %s", last.Reason, last.Message)
}

func sortedEvents(objects []*unstructured.Unstructured) []corev1.Event {
	var events []corev1.Event
	for _, object := range objects {
		var event corev1.Event
		if runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &event) == nil {
			events = append(events, event)
		}
	}
	when := func(event corev1.Event) time.Time {
		if event.LastTimestamp.IsZero() {
			return event.EventTime.Time
		}
		return event.LastTimestamp.Time
	}
	slices.SortStableFunc(events, func(a, b corev1.Event) int { return when(a).Compare(when(b)) })
	return events
}

func pointers(items []unstructured.Unstructured) []*unstructured.Unstructured {
	var result []*unstructured.Unstructured
	for i := range items {
		result = append(result, &items[i])
	}
	return result
}

// followed is a set of objects that a watch keeps up to date.
type followed struct {
	store      cache.Store
	controller cache.Controller
}

// follow keeps the selected objects up to date until ctx ends, and puts a token into changed after each change. A
// broken watch is begun anew by the informer.
func follow(
	ctx context.Context, client dynamic.ResourceInterface, selection metav1.ListOptions, changed chan<- struct{},
) *followed {
	notify := func() {
		select {
		case changed <- struct{}{}:
		default: // one token says it all
		}
	}
	silent := logr.Discard()
	f := &followed{}
	f.store, f.controller = cache.NewInformerWithOptions(cache.InformerOptions{
		Logger: &silent,
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				options.FieldSelector, options.LabelSelector = selection.FieldSelector, selection.LabelSelector
				options.ResourceVersion = "" // the state after our write, not an older one from a cache
				return client.List(ctx, options)
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				options.FieldSelector, options.LabelSelector = selection.FieldSelector, selection.LabelSelector
				return client.Watch(ctx, options)
			},
		},
		ObjectType: &unstructured.Unstructured{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { notify() },
			UpdateFunc: func(any, any) { notify() },
			DeleteFunc: func(any) { notify() },
		},
	})
	go f.controller.RunWithContext(ctx)
	go func() { // nothing selected is a state, too
		select {
		case <-f.controller.HasSyncedChecker().Done():
			notify()
		case <-ctx.Done():
		}
	}()
	return f
}

func (f *followed) objects() []*unstructured.Unstructured {
	if f == nil {
		return nil
	}
	var objects []*unstructured.Unstructured
	for _, item := range f.store.List() {
		objects = append(objects, item.(*unstructured.Unstructured))
	}
	slices.SortFunc(objects, func(a, b *unstructured.Unstructured) int {
		return strings.Compare(a.GetName(), b.GetName())
	})
	return objects
}

func (f *followed) named(object *unstructured.Unstructured) *unstructured.Unstructured {
	for _, candidate := range f.objects() {
		if candidate.GetName() == object.GetName() {
			return candidate
		}
	}
	return nil
}

func (p *Provider) followRelated(
	ctx context.Context, object *unstructured.Unstructured, rule rule, changed chan<- struct{},
) (*followed, error) {
	selection := rule.selects(object)
	if selection == nil {
		return nil, nil
	}
	client, err := p.cluster.client(ctx, selection.of)
	if err != nil {
		return nil, err
	}
	return follow(ctx, client, selection.options, changed), nil
}

// followEvents follows what the cluster reports about the object. Without access to events there is nothing to follow.
func (p *Provider) followEvents(
	ctx context.Context, object *unstructured.Unstructured, changed chan<- struct{},
) *followed {
	kind, options := eventsOf(object)
	client, err := p.cluster.client(ctx, kind)
	if err != nil {
		return nil
	}
	return follow(ctx, client, options, changed)
}
