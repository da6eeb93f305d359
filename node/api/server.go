package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/features"
	genericapiserver "k8s.io/apiserver/pkg/server"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	aggregator "k8s.io/kube-aggregator/pkg/apiserver"
	aggregation "k8s.io/kube-aggregator/pkg/generated/openapi"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/mootkube/moot/gossip/crdt"
)

const (
	// stopWithin bounds how long exec, port-forward and log streams keep a
	// stopping server; watches end at once.
	stopWithin = 2 * time.Second
	// startWithin bounds how long a stop waits for a start to be finished.
	startWithin = 20 * time.Second
	// readyPoll is how often a starting server is asked whether it is ready.
	readyPoll = 25 * time.Millisecond
)

// Server is one API server; see the package comment for its life.
type Server struct {
	cfg   Config
	opts  *options.ServerRunOptions
	ready chan struct{}
}

// New checks cfg and the user's arguments and sets the process's feature
// gates. It starts nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure API server: %w", err)
	}
	opts := options.NewServerRunOptions()
	if err := cfg.parse(opts); err != nil {
		return nil, err
	}
	// Not the flag: a user's --authentication-config may allow some paths.
	opts.Authentication.Anonymous.Allow = opts.Authentication.Anonymous.FlagsSet && opts.Authentication.Anonymous.Allow
	if err := opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("--apiserver-arg feature-gates: %w", err)
	}
	if utilfeature.DefaultFeatureGate.Enabled(features.CBORServingAndStorage) {
		return nil, errors.New("--apiserver-arg feature-gates: stored CBOR cannot be merged; add CBORServingAndStorage=false")
	}
	return &Server{cfg: cfg, opts: opts, ready: make(chan struct{})}, nil
}

// Ready is closed once the server answers requests and all its start-up work
// is done.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends. The store must answer on its socket already.
func (s *Server) Run(ctx context.Context) error {
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // the daemon's own clients use what is deprecated knowingly
	listener, err := s.listen(ctx)
	if err != nil {
		return err
	}
	// The server closes it too; before it gets so far, nobody else does.
	defer listener.Close() //nolint:errcheck // closed twice after a normal run
	s.opts.SecureServing.Listener = listener
	server, schemas, err := s.build(ctx)
	if err != nil {
		return fmt.Errorf("build API server: %w", err)
	}
	prepared, err := server.PrepareRun()
	if err != nil {
		return fmt.Errorf("prepare API server: %w", err)
	}
	schemas.forget()
	// A start-up hook that is cut short ends the process: a start is finished
	// before it is undone.
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, serve := errgroup.WithContext(serve)
	group.Go(func() error {
		if err := prepared.Run(serve); err != nil {
			return fmt.Errorf("serve API: %w", err)
		}
		if ctx.Err() == nil {
			return errors.New("serve API: stopped by itself")
		}
		return nil
	})
	group.Go(func() error { return s.awaitReady(serve, server.GenericAPIServer.LoopbackClientConfig) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			s.finishStart(serve)
			stop()
		case <-serve.Done():
		}
		return nil
	})
	return group.Wait()
}

// finishStart blocks until the server is ready, for a bounded time.
func (s *Server) finishStart(ctx context.Context) {
	timer := time.NewTimer(startWithin)
	defer timer.Stop()
	select {
	case <-s.ready:
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	network := "tcp4"
	if s.cfg.NodeIP.Is6() || s.cfg.BothFamilies {
		network = "tcp" // both families
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, network, ":"+strconv.Itoa(s.cfg.Port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on port %d: another process has it; stop that or choose another with --api-port", s.cfg.Port)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for API clients: %w", err)
	}
	return listener, nil
}

// build assembles the chain of servers; some of their goroutines run from here
// on and end with the server.
func (s *Server) build(ctx context.Context) (*aggregator.APIAggregator, *schemas, error) {
	completed, err := s.opts.Complete(ctx)
	if err != nil {
		return nil, nil, err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return nil, nil, utilerrors.NewAggregate(errs)
	}
	config, err := app.NewConfig(completed)
	if err != nil {
		return nil, nil, err
	}
	// It renews, every few seconds, a record that only serves to forward
	// requests to API servers of other versions, which Moot does not do.
	config.KubeAPIs.ControlPlane.Generic.DisabledPostStartHooks.Insert("peer-endpoint-reconciler-controller")
	// The aggregator is the head of the chain: its handlers see each request.
	head := &config.Aggregator.GenericConfig.Config
	resources := &guard{newest: func() crdt.Revision { return crdt.Revision(s.cfg.Revision()) }, catchUp: s.cfg.CatchUp}
	if s.cfg.Revision != nil {
		resources.install(head)
	}
	if s.cfg.Filter != nil {
		inner := head.BuildHandlerChainFunc
		head.BuildHandlerChainFunc = func(h http.Handler, c *genericapiserver.Config) http.Handler {
			return s.cfg.Filter(inner(h, c))
		}
	}
	if s.cfg.Leads != nil {
		(&leaderWrites{leads: s.cfg.Leads, stopped: ctx.Done()}).install(config)
	}
	changeStorage(config, &identities{
		cluster: s.cfg.Cluster, past: s.cfg.Past,
		namespaces: config.KubeAPIs.ControlPlane.VersionedInformers.Core().V1().Namespaces().Lister(),
	})
	ports, err := newPorts(config)
	if err != nil {
		return nil, nil, err
	}
	generic := config.KubeAPIs.ControlPlane.Generic
	generic.SkipOpenAPIInstallation = true // see schemas
	useOwnTypes(&config.ApiExtensions.GenericConfig.Config, apiextensions.GetOpenAPIDefinitions)
	useOwnTypes(&config.Aggregator.GenericConfig.Config, aggregation.GetOpenAPIDefinitions)
	complete, err := config.Complete()
	if err != nil {
		return nil, nil, err
	}
	server, err := app.CreateServerChain(complete)
	if err != nil {
		return nil, nil, err
	}
	resources.learnServices(server)
	kube, ok := server.GenericAPIServer.NextDelegate().(*genericapiserver.GenericAPIServer)
	if !ok {
		return nil, nil, fmt.Errorf("find the server of built-in resources: it is a %T", server.GenericAPIServer.NextDelegate())
	}
	schemas, err := installSchemas(kube, generic.OpenAPIConfig, generic.OpenAPIV3Config)
	if err != nil {
		return nil, nil, err
	}
	server.GenericAPIServer.ShutdownTimeout = stopWithin
	if err := server.GenericAPIServer.AddPostStartHook("moot-bootstrap-roles", ensureRoles); err != nil {
		return nil, nil, err
	}
	if err := server.GenericAPIServer.AddPostStartHook(portsHook, ports.hook); err != nil {
		return nil, nil, err
	}
	return server, schemas, nil
}

// awaitReady closes the ready signal once /readyz says ok.
func (s *Server) awaitReady(ctx context.Context, config *rest.Config) error {
	config = rest.CopyConfig(config)
	config.Timeout = 15 * time.Second // under emulation an answer takes seconds
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("await API server: %w", err)
	}
	err = wait.PollUntilContextCancel(ctx, readyPoll, true, func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/readyz", nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, nil // not listening yet
		}
		_ = resp.Body.Close() // fails when the request ran out of time: ask again
		return resp.StatusCode == http.StatusOK, nil
	})
	switch {
	case ctx.Err() != nil:
		return nil // stopped before it was ready
	case err != nil:
		return fmt.Errorf("await API server: %w", err)
	}
	close(s.ready)
	return nil
}
