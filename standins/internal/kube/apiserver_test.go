package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// apiServer is as much of an API server as a provider needs: discovery, create, apply, get, list, watch and delete of
// objects in memory, without validation. A dry run changes nothing.
type apiServer struct {
	*httptest.Server
	mutex    sync.Mutex
	kinds    map[string][]metav1.APIResource // by "v1" or "apps/v1"
	objects  map[string]map[string]any       // by path of the object
	watchers map[chan map[string]any]string  // by path of the collection
	revision int
	history  []historic // of all changes, for a watch that begins late
	requests []string   // "METHOD /path?query"

	unauthorized bool   // it takes no credentials any more
	warning      string // for every answer about an object

	// written stands for the controllers: it may change what was created or applied before it is stored.
	written func(object *unstructured.Unstructured)
	// refuse may answer a write with an error.
	refuse func(method string, object *unstructured.Unstructured) *metav1.Status
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{objects: map[string]map[string]any{}, watchers: map[chan map[string]any]string{}}
	s.kinds = map[string][]metav1.APIResource{
		"v1": {
			{Name: "configmaps", Kind: "ConfigMap", Namespaced: true}, {Name: "events", Kind: "Event", Namespaced: true},
			{Name: "namespaces", Kind: "Namespace"}, {Name: "pods", Kind: "Pod", Namespaced: true},
			{Name: "pods/eviction", Kind: "Eviction", Namespaced: true},
			{Name: "secrets", Kind: "Secret", Namespaced: true}, {Name: "services", Kind: "Service", Namespaced: true},
		},
		"discovery.k8s.io/v1": {{Name: "endpointslices", Kind: "EndpointSlice", Namespaced: true}},
		"apps/v1":             {{Name: "deployments", Kind: "Deployment", Namespaced: true}},
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

type historic struct {
	revision int
	path     string
	event    map[string]any
}

// kubeconfig is how to reach the server.
func (s *apiServer) kubeconfig() string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"test",
		"clusters":[{"name":"test","cluster":{"server":%q}}],"users":[{"name":"test","user":{}}],
		"contexts":[{"name":"test","context":{"cluster":"test","user":"test"}}]}`, s.URL)
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.String())
	group, collection, name := splitPath(r.URL.Path)
	resources, served := s.kinds[group]
	s.mutex.Unlock()
	path := strings.TrimSuffix(r.URL.Path, "/")
	dryRun := r.URL.Query().Has("dryRun")
	if s.warning != "" && collection != "" {
		w.Header().Add("Warning", fmt.Sprintf("299 - %q", s.warning))
	}
	switch {
	case s.unauthorized:
		answer(w, 401, statusOf(401, metav1.StatusReasonUnauthorized, "Unauthorized"))
	case !served:
		missing := statusOf(404, metav1.StatusReasonNotFound, "the server could not find the requested resource")
		answer(w, http.StatusNotFound, missing)
	case collection == "":
		answer(w, http.StatusOK, map[string]any{"kind": "APIResourceList", "groupVersion": group, "resources": resources})
	case r.Method == http.MethodPost:
		object := body(r)
		s.write(w, r, path+"/"+object.GetName(), object, dryRun)
	case r.Method == http.MethodPatch:
		s.write(w, r, path, body(r), dryRun)
	case r.Method == http.MethodDelete:
		s.remove(w, path)
	case r.URL.Query().Get("watch") != "":
		s.watch(w, r, path)
	case name != "":
		s.mutex.Lock()
		object, found := s.objects[path]
		s.mutex.Unlock()
		if !found {
			answer(w, 404, statusOf(404, metav1.StatusReasonNotFound, path+" not found"))
			return
		}
		answer(w, 200, object)
	default:
		s.mutex.Lock()
		items := []any{}
		for where, object := range s.objects {
			if strings.HasPrefix(where, path+"/") && selected(object, r) {
				items = append(items, object)
			}
		}
		list := map[string]any{"kind": "List", "apiVersion": group, "items": items,
			"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.revision)}}
		s.mutex.Unlock()
		answer(w, 200, list)
	}
}

// splitPath returns the group and version, the collection's name and the object's.
func splitPath(path string) (group, collection, name string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if parts[0] == "api" {
		group, parts = parts[1], parts[2:]
	} else {
		group, parts = parts[1]+"/"+parts[2], parts[3:]
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	if len(parts) > 0 {
		collection = parts[0]
	}
	if len(parts) > 1 {
		name = parts[1]
	}
	return group, collection, name
}

func selected(object map[string]any, r *http.Request) bool {
	field, value, given := strings.Cut(r.URL.Query().Get("fieldSelector"), "=")
	if !given {
		return true
	}
	found, _, _ := unstructured.NestedString(object, strings.Split(field, ".")...)
	return found == value
}

func (s *apiServer) write(
	w http.ResponseWriter, r *http.Request, path string, object *unstructured.Unstructured, dryRun bool,
) {
	if s.refuse != nil {
		if refused := s.refuse(r.Method, object); refused != nil {
			answer(w, int(refused.Code), refused)
			return
		}
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	old, exists := s.objects[path]
	event := "MODIFIED"
	if r.Method == http.MethodPost {
		if exists {
			answer(w, 409, statusOf(409, metav1.StatusReasonAlreadyExists, path+" already exists"))
			return
		}
	}
	var merged map[string]any
	if exists {
		merged = merge(old, object.Object)
	} else {
		event, merged = "ADDED", merge(map[string]any{}, object.Object)
	}
	stored := &unstructured.Unstructured{Object: merged}
	if stored.GetUID() == "" {
		stored.SetUID(types.UID("uid-" + path))
	}
	stored.SetGeneration(stored.GetGeneration() + 1)
	if s.written != nil {
		s.written(stored)
	}
	if !dryRun {
		s.put(path, stored, event)
	}
	answer(w, 200, stored.Object)
}

// put stores an object and tells the watchers. The mutex is held.
func (s *apiServer) put(path string, object *unstructured.Unstructured, event string) {
	s.revision++
	object.SetResourceVersion(strconv.Itoa(s.revision))
	s.objects[path] = object.Object
	s.tell(path, event, object.Object)
}

// change lets a controller change a stored object.
func (s *apiServer) change(t *testing.T, path string, change func(*unstructured.Unstructured)) {
	t.Helper()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	stored, found := s.objects[path]
	if !found {
		t.Fatalf("there is no %s", path)
	}
	object := (&unstructured.Unstructured{Object: stored}).DeepCopy()
	change(object)
	s.put(path, object, "MODIFIED")
}

func (s *apiServer) remove(w http.ResponseWriter, path string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	object, found := s.objects[path]
	if !found {
		answer(w, 404, statusOf(404, metav1.StatusReasonNotFound, path+" not found"))
		return
	}
	if live := (&unstructured.Unstructured{Object: object}).DeepCopy(); len(live.GetFinalizers()) > 0 {
		live.SetDeletionTimestamp(&metav1.Time{})
		s.put(path, live, "MODIFIED")
		answer(w, 200, live.Object)
		return
	}
	s.drop(path)
	answer(w, 200, object)
}

// drop deletes an object for good. The mutex is held.
func (s *apiServer) drop(path string) {
	object := (&unstructured.Unstructured{Object: s.objects[path]}).DeepCopy()
	delete(s.objects, path)
	s.revision++
	object.SetResourceVersion(strconv.Itoa(s.revision))
	s.tell(path, "DELETED", object.Object)
}

func (s *apiServer) tell(path, event string, object map[string]any) {
	change := map[string]any{"type": event, "object": object}
	s.history = append(s.history, historic{s.revision, path, change})
	for watcher, collection := range s.watchers {
		if strings.HasPrefix(path, collection+"/") {
			watcher <- change
		}
	}
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, collection string) {
	if r.URL.Query().Has("sendInitialEvents") { // an older server: the client lists, then watches
		answer(w, 422, statusOf(422, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden for watch"))
		return
	}
	events := make(chan map[string]any, 100)
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	s.mutex.Lock()
	for _, past := range s.history {
		if past.revision > since && strings.HasPrefix(past.path, collection+"/") {
			events <- past.event
		}
	}
	s.watchers[events] = collection
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		delete(s.watchers, events)
		s.mutex.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case event := <-events:
			if selected(event["object"].(map[string]any), r) {
				_ = json.NewEncoder(w).Encode(event)
				w.(http.Flusher).Flush()
			}
		}
	}
}

// seen counts the requests so far.
func (s *apiServer) seen(wanted string) int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	count := 0
	for _, request := range s.requests {
		if request == wanted {
			count++
		}
	}
	return count
}

func (s *apiServer) object(path string) map[string]any {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.objects[path]
}

func body(r *http.Request) *unstructured.Unstructured {
	content, _ := io.ReadAll(r.Body)
	object := &unstructured.Unstructured{}
	_ = json.Unmarshal(content, &object.Object)
	return object
}

func merge(old, new map[string]any) map[string]any {
	merged := maps.Clone(old)
	for key, value := range new {
		oldMap, isMap := merged[key].(map[string]any)
		if newMap, both := value.(map[string]any); isMap && both {
			value = merge(oldMap, newMap)
		}
		merged[key] = value
	}
	return merged
}

func statusOf(code int32, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
		Code: code, Reason: reason, Message: message}
}

func answer(w http.ResponseWriter, code int, content any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(content)
}
