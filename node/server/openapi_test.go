package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/emicklei/go-restful/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler3"
)

func TestDocumentsAreMadeWhenAskedFor(t *testing.T) {
	made := 0
	serve := func(arguments ...string) http.Handler {
		config := server.NewConfig(serializer.NewCodecFactory(runtime.NewScheme()))
		definitions := func(common.ReferenceCallback) map[string]common.OpenAPIDefinition {
			made++
			return nil
		}
		config.OpenAPIConfig = server.DefaultOpenAPIConfig(definitions, openapi.NewDefinitionNamer())
		config.OpenAPIV3Config = server.DefaultOpenAPIV3Config(definitions, openapi.NewDefinitionNamer())
		config.OpenAPIV3Config.Definitions = nil
		leaveDocuments(config)
		handler := server.NewAPIServerHandler("test", config.Serializer, func(h http.Handler) http.Handler { return h }, nil)
		service := new(restful.WebService).Path("/apis/test/v1")
		service.Route(service.GET("/last").Operation("readLast").To(func(*restful.Request, *restful.Response) {}))
		handler.GoRestfulContainer.Add(service)
		serveDocuments(&server.GenericAPIServer{Handler: handler}, config, arguments)
		made = 0
		return handler.NonGoRestfulMux
	}
	get := func(handler http.Handler, path string) *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		request := httptest.NewRequest(http.MethodGet, path, nil)
		request.Header.Set("Accept", "application/json")
		handler.ServeHTTP(answer, request)
		return answer
	}
	addressOf := func(handler http.Handler) string {
		var index handler3.OpenAPIV3Discovery
		if err := json.Unmarshal(get(handler, openAPIv3).Body.Bytes(), &index); err != nil {
			t.Fatal(err)
		}
		return index.Paths["apis/test/v1"].ServerRelativeURL
	}

	handler := serve()
	address := addressOf(handler)
	if made != 0 {
		t.Error("a document was made for the index")
	}
	if other := addressOf(serve("feature-gates=AllAlpha=true")); other == address {
		t.Errorf("APIs of other features are cached as if they were the same: %s", other)
	}
	document := get(handler, address)
	if document.Code != http.StatusOK || !strings.Contains(document.Body.String(), `"/apis/test/v1/last"`) ||
		!strings.Contains(document.Header().Get("Cache-Control"), "immutable") {
		t.Errorf("%s: %d %v %s", address, document.Code, document.Header(), document.Body)
	}
	if made == 0 {
		t.Error("the document was there before it was asked for")
	}
	if plain := get(handler, openAPIv3+"/apis/test/v1"); plain.Code != http.StatusOK ||
		plain.Header().Get("Cache-Control") != "" {
		t.Errorf("without a hash: %d %v", plain.Code, plain.Header())
	}
	var asked sync.WaitGroup
	before := made
	for range 100 {
		asked.Go(func() { get(handler, address) })
	}
	asked.Wait()
	if made > before+5 { // the garbage collector may have taken one
		t.Errorf("100 who ask at once have the document made %d times", made-before)
	}
	if moved := get(handler, openAPIv3+"/apis/test/v1?hash=old"); moved.Code != http.StatusMovedPermanently ||
		moved.Header().Get("Location") != address {
		t.Errorf("a hash of before: %d %v", moved.Code, moved.Header())
	}
	if none := get(handler, openAPIv3+"/apis/none/v1"); none.Code != http.StatusNotFound {
		t.Errorf("an API that is not there: %d %s", none.Code, none.Body)
	}
	for range 2 {
		second := get(handler, "/openapi/v2")
		if second.Code != http.StatusOK || !strings.Contains(second.Body.String(), `"/apis/test/v1/last"`) {
			t.Errorf("version 2: %d %s", second.Code, second.Body)
		}
	}
}
