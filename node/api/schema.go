package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	restful "github.com/emicklei/go-restful/v3"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	openapiutil "k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/apiserver/pkg/util/responsewriter"
	aggregation "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

const (
	schemaV2 = "/openapi/v2"
	schemaV3 = "/openapi/v3"
	// schemaIdle is how long a schema stays in memory after its last use: a
	// client that wants one mostly wants it more than once.
	schemaIdle = time.Minute
)

// schemas serves the OpenAPI documents of the built-in resources. Upstream
// builds all of them at the start and keeps them for ever, in both versions,
// which is more than half of an idle API server's memory; few clients ever
// ask. Here they are built when asked for and dropped when idle; what stays is
// the list of the documents with their hashes.
type schemas struct {
	container *restful.Container
	v2        *common.Config
	v3        *common.OpenAPIV3Config

	index     []byte // the list of version 3 documents
	indexTag  string
	indexTime time.Time

	mu   sync.Mutex // also: one document is built at a time
	docs map[string]*schemaDoc
}

type schemaDoc struct {
	handler http.Handler
	expire  *time.Timer
}

// installSchemas registers the documents of server, whose own must be off.
func installSchemas(server *genericapiserver.GenericAPIServer, v2 *common.Config, v3 *common.OpenAPIV3Config) (*schemas, error) {
	s := &schemas{container: server.Handler.GoRestfulContainer, v2: v2, v3: v3, docs: map[string]*schemaDoc{}}
	if err := s.buildIndex(); err != nil {
		return nil, err
	}
	m := server.Handler.NonGoRestfulMux
	m.Handle(schemaV2, http.HandlerFunc(s.serve))
	m.Handle(schemaV3, http.HandlerFunc(s.serveIndex))
	m.HandlePrefix(schemaV3+"/", http.HandlerFunc(s.serve))
	return s, nil
}

// forget drops the types that documents are built from, once all servers of
// the chain are prepared; from then on they are made again for each document.
func (s *schemas) forget() { s.v3.Definitions = nil }

// buildIndex builds each version 3 document once, for its hash.
func (s *schemas) buildIndex() error {
	index := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	for _, service := range s.container.RegisteredWebServices() {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, schemaV3, nil)
		if err != nil {
			return fmt.Errorf("list API schemas: %w", err)
		}
		answer := responsewriter.NewInMemoryResponseWriter()
		s.buildV3(service).ServeHTTP(answer, req)
		var one handler3.OpenAPIV3Discovery
		if err := json.Unmarshal(answer.Data(), &one); err != nil || answer.RespCode() != http.StatusOK {
			return fmt.Errorf("list API schema of %s: %w", service.RootPath(), errors.Join(err, errors.New(answer.String())))
		}
		maps.Copy(index.Paths, one.Paths)
	}
	data, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("list API schemas: %w", err)
	}
	s.index, s.indexTag, s.indexTime = data, fmt.Sprintf(`"%X"`, sha256.Sum256(data)), time.Now()
	return nil
}

func (s *schemas) serveIndex(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Etag", s.indexTag)
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, r, schemaV3, s.indexTime, bytes.NewReader(s.index))
}

func (s *schemas) serve(w http.ResponseWriter, r *http.Request) {
	handler := s.doc(r.URL.Path)
	if handler == nil {
		http.NotFound(w, r)
		return
	}
	handler.ServeHTTP(w, r)
}

// doc returns the handler of the document at path, nil if there is none.
func (s *schemas) doc(path string) http.Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	if doc := s.docs[path]; doc != nil {
		doc.expire.Reset(schemaIdle)
		return doc.handler
	}
	handler := s.build(path)
	if handler == nil {
		return nil
	}
	s.docs[path] = &schemaDoc{handler: handler, expire: time.AfterFunc(schemaIdle, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.docs, path)
	})}
	return handler
}

func (s *schemas) build(path string) http.Handler {
	if path == schemaV2 {
		m := mux.NewPathRecorderMux("schema")
		routes.OpenAPI{Config: s.v2}.InstallV2(s.container, m)
		return m
	}
	for _, service := range s.container.RegisteredWebServices() {
		if strings.TrimPrefix(path, schemaV3) == service.RootPath() {
			return s.buildV3(service)
		}
	}
	return nil
}

// buildV3 builds the document of one group and version, alone.
func (s *schemas) buildV3(service *restful.WebService) http.Handler {
	alone := restful.NewContainer()
	alone.Add(service)
	m := mux.NewPathRecorderMux("schema")
	routes.OpenAPI{V3Config: s.v3}.InstallV3(alone, m)
	return m
}

// useOwnTypes makes a server of the chain keep the schemas of its own types
// alone, in place of those of all of Kubernetes.
func useOwnTypes(config *genericapiserver.Config, types common.GetOpenAPIDefinitions) {
	types = openapiutil.GetOpenAPIDefinitionsWithoutDisabledFeatures(types)
	namer := openapi.NewDefinitionNamer(legacyscheme.Scheme, apiextensions.Scheme, aggregation.Scheme)
	v2 := genericapiserver.DefaultOpenAPIConfig(types, namer)
	v3 := genericapiserver.DefaultOpenAPIV3Config(types, namer)
	v2.Info.Title, v3.Info.Title = "Kubernetes", "Kubernetes"
	config.OpenAPIConfig, config.OpenAPIV3Config = v2, v3
}
