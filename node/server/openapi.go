package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"weak"

	"github.com/emicklei/go-restful/v3"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/component-base/version"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler3"
)

const openAPIv3 = "/openapi/v3"

// documents are the OpenAPI documents of the built-in APIs, each made when it is asked for. kube-apiserver makes all of
// them before it serves, and keeps them: half of its live memory, for what kubectl asks once for each kind and keeps
// in files. The aggregated ones, and those of custom resources, are made upstream's way.
type documents struct {
	server *server.GenericAPIServer
	config *server.Config
	// hash is what a client knows a document's content by, so that it need not be made to tell whether it is another.
	hash string

	mutex sync.Mutex
	// groups serve those that were asked for of late: any pod may ask for many at once, of which each is made once. The
	// garbage collector takes them.
	groups map[string]weak.Pointer[handler3.OpenAPIService]
}

// leaveDocuments has kube-apiserver make no documents of its own. It is called before the server is made.
func leaveDocuments(config *server.Config) {
	config.SkipOpenAPIInstallation = true
	// Without them kube-openapi puts functions here that hold the definitions of all types, in each config.
	config.OpenAPIConfig.GetOperationIDAndTagsFromRoute = operationOf
	config.OpenAPIV3Config.GetOperationIDAndTagsFromRoute = operationOf
}

func operationOf(route common.Route) (string, []string, error) {
	adapter, ok := route.(*restfuladapter.RouteAdapter)
	if !ok {
		return "", nil, fmt.Errorf("a %T is no route of go-restful", route)
	}
	return openapi.GetOperationIDAndTags(adapter.Route)
}

// serveDocuments has kube-apiserver's documents served from these. It is called before the server is prepared.
// arguments are those of the API server that users give: they turn features, and so APIs, on and off.
func serveDocuments(served *server.GenericAPIServer, config *server.Config, arguments []string) {
	content := strings.Join(append([]string{version.Get().GitVersion}, arguments...), "\n")
	documents := &documents{
		server: served,
		config: config,
		hash:   fmt.Sprintf("%X", sha256.Sum256([]byte(content))),
		groups: map[string]weak.Pointer[handler3.OpenAPIService]{},
	}
	second := sync.OnceValue(documents.second)
	paths := served.Handler.NonGoRestfulMux
	paths.HandleFunc("/openapi/v2", func(w http.ResponseWriter, r *http.Request) { second().ServeHTTP(w, r) })
	paths.HandleFunc(openAPIv3, documents.serveIndex)
	paths.HandlePrefix(openAPIv3+"/", http.HandlerFunc(documents.serveGroup))
}

// second is what serves the one document of version 2, which is kept from then on.
func (d *documents) second() http.Handler {
	made := mux.NewPathRecorderMux("openapi-v2")
	routes.OpenAPI{Config: d.config.OpenAPIConfig}.InstallV2(d.server.Handler.GoRestfulContainer, made)
	return made
}

// serveIndex tells the documents of version 3, one for each group and version of an API.
func (d *documents) serveIndex(w http.ResponseWriter, r *http.Request) {
	index := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	for _, service := range d.server.Handler.GoRestfulContainer.RegisteredWebServices() {
		name := strings.TrimPrefix(service.RootPath(), "/")
		index.Paths[name] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: d.address(name)}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(index) // it fails for who has gone
}

func (d *documents) address(name string) string {
	address := url.URL{Path: openAPIv3 + "/" + name, RawQuery: url.Values{"hash": {d.hash}}.Encode()}
	return address.String()
}

// serveGroup serves a document of version 3.
func (d *documents) serveGroup(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, openAPIv3+"/")
	group := d.group(name)
	if group == nil {
		http.NotFound(w, r)
		return
	}
	if hash := r.URL.Query().Get("hash"); hash != "" {
		if hash != d.hash {
			http.Redirect(w, r, d.address(name), http.StatusMovedPermanently)
			return
		}
		// Such an answer stays right for ever: kube-openapi's handler says the same for its own hash.
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).Format(time.RFC1123))
		r = r.Clone(r.Context())
		r.URL.RawQuery = ""
	}
	group.HandleGroupVersion(w, r)
}

// group makes a document of version 3, as kube-apiserver does for all, unless somebody has it; nil if there is no such.
func (d *documents) group(name string) *handler3.OpenAPIService {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if made := d.groups[name].Value(); made != nil {
		return made
	}
	services := d.server.Handler.GoRestfulContainer.RegisteredWebServices()
	for _, service := range slices.Backward(services) { // of two with one path the last is told, as by kube-apiserver
		if strings.TrimPrefix(service.RootPath(), "/") != name {
			continue
		}
		container := restful.NewContainer()
		container.Add(service)
		made := routes.OpenAPI{V3Config: d.config.OpenAPIV3Config}.
			InstallV3(container, mux.NewPathRecorderMux("openapi-v3"))
		d.groups[name] = weak.Make(made)
		return made
	}
	return nil
}
