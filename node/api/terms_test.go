package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	runtimeschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/kube-openapi/pkg/handler3"

	"github.com/mootkube/moot/gossip/etcd"
	"github.com/mootkube/moot/gossip/store"
	"github.com/mootkube/moot/node/api"
	"github.com/mootkube/moot/node/pki"
	"github.com/mootkube/moot/sched"
	"github.com/mootkube/moot/testbed/loopback"
)

// patience is for machines that have far too much else to do.
const patience = 2 * time.Minute

// plane is a store, its etcd API and an API server, all real.
type plane struct {
	dir    string
	db     *store.Store
	port   int
	keys   *pki.Bundle
	admin  *rest.Config
	client kubernetes.Interface
	seen   atomic.Int64 // requests that passed the filter

	follows atomic.Bool  // this node does not lead
	asked   atomic.Int64 // how often it was asked whether it leads
	claims  atomic.Int64 // writes that are the leader's to make, as they arrive
}

func startPlane(t *testing.T) *plane {
	t.Helper()
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // upstream says much when a term is cut
	p := &plane{dir: t.TempDir(), port: int(loopback.Addr(t).Port())}
	var err error
	p.keys, err = pki.Ensure(filepath.Join(p.dir, "pki"), pki.Params{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIP: netip.MustParseAddr("10.43.0.1"),
		ClusterDomain: "cluster.local", APIPort: p.port,
	}, time.Now())
	check(t, err)
	db, err := store.Open(store.DefaultConfig(filepath.Join(p.dir, "store")))
	check(t, err)
	t.Cleanup(func() { check(t, db.Close()) })
	p.db = db
	run(t, "store", db.Run)
	socket := etcd.DefaultConfig()
	socket.Socket, socket.Store = filepath.Join(p.dir, "etcd.sock"), db
	socket.Log = slog.New(slog.DiscardHandler)
	etcdServer, err := etcd.New(socket)
	check(t, err)
	run(t, "etcd API", etcdServer.Run)
	cfg := api.DefaultConfig()
	cfg.EtcdSocket, cfg.Port, cfg.PKI, cfg.NodeIP = socket.Socket, p.port, p.keys, netip.MustParseAddr("192.0.2.1")
	cfg.Revision, cfg.Cluster = db.Revision, "the test's"
	cfg.Past = func(key string) []byte { return db.Remembered([]byte(key)).Append(nil) }
	cfg.Leads = func() bool {
		p.asked.Add(1)
		return !p.follows.Load()
	}
	cfg.Filter = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.seen.Add(1)
			if r.Method != http.MethodGet && strings.Contains(r.URL.Path, "example.net") && strings.HasPrefix(r.URL.Path, "/apis/api") {
				p.claims.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	}
	server, err := api.New(cfg)
	check(t, err)
	await(t, "etcd socket", func(ctx context.Context) bool {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket.Socket)
		return err == nil && conn.Close() == nil
	})
	run(t, "API server", server.Run)
	select {
	case <-server.Ready():
	case <-time.After(patience):
		t.Fatal("API server is not ready")
	}
	p.admin, err = clientcmd.BuildConfigFromFlags("", p.keys.Admin)
	check(t, err)
	p.admin.QPS = -1
	p.client, err = kubernetes.NewForConfig(p.admin)
	check(t, err)
	return p
}

func (p *plane) term(n uint64, exits *sched.Exits) sched.Config {
	cfg := sched.DefaultConfig()
	cfg.Term, cfg.StateDir, cfg.Exits = n, p.dir, exits
	cfg.API = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(p.port)) //nolint:gosec // a port the kernel gave
	cfg.Controllers, cfg.Scheduler, cfg.Leader = p.keys.ControllerManager, p.keys.Scheduler, p.keys.Leader
	cfg.CACert, cfg.CAKey, cfg.ServiceAccountKey = p.keys.CA.Cert, p.keys.CA.Key, p.keys.ServiceAccountKey
	cfg.APIServers = func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443")} }
	return cfg
}

// One process leads again and again: each term turns a Deployment into pods
// that are bound to a node, some terms end while they are being built, and
// nothing piles up.
func TestTerms(t *testing.T) {
	exits := sched.CatchExits()
	p := startPlane(t)
	checkAnonymous(t, p)
	checkSchemas(t, p)
	checkCustomResource(t, p)
	checkProtobufIsRead(t, p)
	checkFollower(t, p)
	checkMadeAgain(t, p)
	addNode(t, p)
	first := 0
	for n := uint64(1); n <= 6; n++ {
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- sched.Run(ctx, p.term(n, exits)) }()
		if n%2 == 0 {
			// End it once its controllers have begun to talk to the API server.
			from := p.seen.Load()
			await(t, "requests of the term", func(context.Context) bool { return p.seen.Load() > from+int64(10*n) })
		} else {
			deploy(t, p, fmt.Sprintf("web-%d", n), done)
			if n == 1 {
				checkAddress(t, p)
			}
		}
		end()
		select {
		case err := <-done:
			check(t, err)
		case <-time.After(patience):
			t.Fatalf("term %d does not end", n)
		}
		if n == 1 {
			// The first term makes the API server open caches that it keeps.
			first = settled(t)
		}
	}
	// Requests that wait to be tried again take seconds to give up. What stays
	// are upstream's work queues of controllers that were made and never run, two
	// goroutines each: how many depends on when a term ends that is being built.
	bound := first + 60
	await(t, fmt.Sprintf("goroutines but those of work queues to fall to %d", bound), func(context.Context) bool {
		runtime.GC() // client transports go with their clients
		return goroutines(t) <= bound
	})
	t.Logf("%d goroutines but those of work queues, %d after the first term; %d with them", goroutines(t), first, runtime.NumGoroutine())
	slices, err := p.client.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kubernetes"})
	check(t, err)
	checkStoredJSON(t, p)
	checkSharedUIDs(t, p)
	if len(slices.Items) != 1 || slices.Items[0].Endpoints[0].Addresses[0] != "192.0.2.1" {
		t.Errorf("endpoints of default/kubernetes: %+v", slices.Items)
	}
}

func checkAnonymous(t *testing.T, p *plane) {
	t.Helper()
	config := rest.AnonymousClientConfig(p.admin)
	client, err := rest.HTTPClientFor(config)
	check(t, err)
	for _, path := range []string{"/api/v1/namespaces", "/version", "/livez"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, config.Host+path, nil)
		check(t, err)
		resp, err := client.Do(req)
		check(t, err)
		check(t, resp.Body.Close())
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without credentials: %s", path, resp.Status)
		}
	}
}

// checkSchemas fetches every document that the index lists, as kubectl would.
func checkSchemas(t *testing.T, p *plane) {
	t.Helper()
	get := func(path string, accept string) []byte {
		data, err := p.client.Discovery().RESTClient().Get().RequestURI(path).SetHeader("Accept", accept).DoRaw(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return data
	}
	var index handler3.OpenAPIV3Discovery
	check(t, json.Unmarshal(get("/openapi/v3", "application/json"), &index))
	seen := 0
	for group, doc := range index.Paths {
		var v3 struct {
			OpenAPI string         `json:"openapi"`
			Paths   map[string]any `json:"paths"`
		}
		check(t, json.Unmarshal(get(doc.ServerRelativeURL, "application/json"), &v3))
		if len(v3.Paths) == 0 || !strings.HasPrefix(v3.OpenAPI, "3.") {
			t.Errorf("the document of %s is empty", group)
		}
		seen++
	}
	for _, group := range []string{"api/v1", "apis/apps/v1", "apis/apiextensions.k8s.io/v1", "apis/apiregistration.k8s.io/v1"} {
		if _, ok := index.Paths[group]; !ok {
			t.Errorf("no document of %s among %d", group, seen)
		}
	}
	if pb := get(index.Paths["api/v1"].ServerRelativeURL, "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"); len(pb) == 0 {
		t.Error("no protobuf of api/v1")
	}
	for range 2 { // built, then remembered
		v2, err := p.client.Discovery().OpenAPISchema()
		check(t, err)
		names := map[string]bool{}
		for _, d := range v2.GetDefinitions().GetAdditionalProperties() {
			names[d.GetName()] = true
		}
		if !names["io.k8s.api.apps.v1.Deployment"] || !names["io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService"] {
			t.Errorf("version 2 lacks definitions: it has %d", len(names))
		}
	}
}

// checkCustomResource makes a kind, applies an object of it from the server's
// side, which needs the kind's schema, and looks for its document.
func checkCustomResource(t *testing.T, p *plane) {
	t.Helper()
	kinds, err := apiextensionsclient.NewForConfig(p.admin)
	check(t, err)
	_, err = kinds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), boatKind("example.org"), metav1.CreateOptions{})
	check(t, err)
	awaitBoat(t, p, "example.org")
	await(t, "document of Boat", func(ctx context.Context) bool {
		data, err := p.client.Discovery().RESTClient().Get().RequestURI("/openapi/v3").DoRaw(ctx)
		return err == nil && strings.Contains(string(data), "apis/example.org/v1")
	})
}

// boatKind is the kind Boat of a group.
func boatKind(group string) *apiextensions.CustomResourceDefinition {
	schema := apiextensions.JSONSchemaProps{Type: "object", Properties: map[string]apiextensions.JSONSchemaProps{
		"spec": {Type: "object", Properties: map[string]apiextensions.JSONSchemaProps{"size": {Type: "integer"}}},
	}}
	return &apiextensions.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "boats." + group},
		Spec: apiextensions.CustomResourceDefinitionSpec{
			Group: group, Scope: apiextensions.NamespaceScoped,
			Names: apiextensions.CustomResourceDefinitionNames{Plural: "boats", Kind: "Boat"},
			Versions: []apiextensions.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true, Schema: &apiextensions.CustomResourceValidation{OpenAPIV3Schema: &schema},
			}},
		},
	}
}

// awaitBoat waits until the API server takes a Boat.
func awaitBoat(t *testing.T, p *plane, group string) {
	t.Helper()
	objects, err := dynamic.NewForConfig(p.admin)
	check(t, err)
	boats := objects.Resource(runtimeschema.GroupVersionResource{Group: group, Version: "v1", Resource: "boats"}).Namespace("default")
	boat := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/v1", "kind": "Boat", "metadata": map[string]any{"name": "one", "labels": map[string]any{"a": "b"}},
		"spec": map[string]any{"size": int64(7)},
	}}
	await(t, "kind Boat of "+group, func(ctx context.Context) bool {
		_, err := boats.Apply(ctx, "one", boat, metav1.ApplyOptions{FieldManager: "test"})
		return err == nil
	})
}

func addNode(t *testing.T, p *plane) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	node, err := p.client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{})
	check(t, err)
	node.Status.Capacity = corev1.ResourceList{"cpu": resource.MustParse("8"), "memory": resource.MustParse("8Gi"), "pods": resource.MustParse("110")}
	node.Status.Allocatable = node.Status.Capacity
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	_, err = p.client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	check(t, err)
}

// deploy creates a Deployment and waits until its pod is bound to the node.
func deploy(t *testing.T, p *plane, name string, ended <-chan error) {
	t.Helper()
	labels := map[string]string{"app": name}
	_, err := p.client.AppsV1().Deployments("default").Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Containers: []corev1.Container{{Name: "c", Image: "none"}},
					// No kubelet renews this node, and the controllers say so.
					Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
				},
			},
		},
	}, metav1.CreateOptions{})
	check(t, err)
	await(t, "pod of "+name, func(ctx context.Context) bool {
		select {
		case err := <-ended:
			t.Fatalf("term ended: %v", err)
		default:
		}
		pods, err := p.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		return err == nil && len(pods.Items) == 1 && pods.Items[0].Spec.NodeName == "n1"
	})
}

// goroutines returns how many there are but those of upstream's work queues.
func goroutines(t *testing.T) int {
	t.Helper()
	var profile bytes.Buffer
	check(t, pprof.Lookup("goroutine").WriteTo(&profile, 1))
	n := 0
	for stack := range strings.SplitSeq(profile.String(), "\n\n") {
		if head := stackHead.FindStringSubmatch(stack); head != nil && !queueLoop.MatchString(stack) {
			alike, err := strconv.Atoi(head[1])
			check(t, err)
			n += alike
		}
	}
	return n
}

// What a goroutine profile has before the stack that some share, and in that of a
// work queue's own.
var (
	stackHead = regexp.MustCompile(`(?m)^(\d+) @ `)
	queueLoop = regexp.MustCompile(`client-go/util/workqueue\.\(\*\w+\[\.\.\.\]\)\.(waitingLoop|updateUnfinishedWorkLoop)`)
)

// settled returns the number of goroutines, but those of work queues, once it stops
// falling.
func settled(t *testing.T) int {
	t.Helper()
	last := goroutines(t)
	steady := 0
	await(t, "goroutines to end", func(context.Context) bool {
		runtime.GC()
		now := goroutines(t)
		if now >= last {
			steady++
		} else {
			steady = 0
		}
		last = now
		return steady == 20
	})
	return last
}

func await(t *testing.T, what string, done func(context.Context) bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		return done(ctx), nil
	})
	if err != nil {
		t.Fatalf("waited for %s: %v", what, err)
	}
}

// run runs a part until the test's end, after what was started later.
func run(t *testing.T, name string, part func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Errorf("%s: %v", name, err)
		}
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
