package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// framingBytes is what a message may be longer than its keys and values, as in etcd.
const framingBytes = 512 << 10

// streamWorkers is how many goroutines wait for requests; each watch takes one
// up, and beyond them a request gets one of its own. There are about as many
// watches as kinds of objects.
const streamWorkers = 256

// Server serves the API. Its zero value is not usable; see [New].
type Server struct {
	cfg     Config
	streams streams
	ready   chan struct{}
}

// New checks the configuration and returns a server that does nothing yet.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, streams: streams{stopping: make(chan struct{})}, ready: make(chan struct{})}, nil
}

// Ready is closed once connections are accepted.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends or the socket fails. It may be called once. On a
// cancelled ctx it ends the streams, lets requests under way finish for up to
// Config.StopTimeout, and returns nil.
func (s *Server) Run(ctx context.Context) error {
	listener := s.cfg.Listener
	if listener == nil {
		var err error
		if listener, err = listen(ctx, s.cfg.Socket); err != nil {
			return err
		}
	}
	g := grpc.NewServer(s.options()...)
	s.register(g)
	healthServer := health.NewServer()
	grpc_health_v1.RegisterHealthServer(g, healthServer)
	s.cfg.Log.Info("etcd API is served", "address", listener.Addr().String())
	close(s.ready)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		// Serve returns nil after a stop, an error if the stop came first.
		if err := g.Serve(netutil.LimitListener(listener, s.cfg.MaxConnections)); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve etcd API: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		healthServer.Shutdown()
		close(s.streams.stopping)
		timer := time.AfterFunc(s.cfg.StopTimeout, g.Stop)
		defer timer.Stop()
		g.GracefulStop()
		return nil
	})
	err := group.Wait()
	s.streams.running.Wait()
	return err
}

func (s *Server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		// Fixed windows: gRPC else measures the connection with a ping for every
		// request that is not pipelined, which a local socket has no use for.
		grpc.InitialWindowSize(1 << 20),
		grpc.InitialConnWindowSize(4 << 20),
		// kube-apiserver opens a connection for every resource, most of them idle.
		grpc.ReadBufferSize(16 << 10),
		grpc.MaxRecvMsgSize(s.cfg.MaxRequestBytes + framingBytes),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(s.cfg.MaxStreams),
		// A goroutine for each request would grow its stack anew each time.
		grpc.NumStreamWorkers(streamWorkers),
		grpc.UnknownServiceHandler(refuse()),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: s.cfg.KeepAliveMinTime}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
	}
}

func (s *Server) clientURL() string {
	if s.cfg.Socket != "" {
		return "unix://" + s.cfg.Socket
	}
	addr := s.cfg.Listener.Addr()
	if _, ok := addr.(*net.UnixAddr); ok {
		return "unix://" + addr.String()
	}
	return "http://" + addr.String()
}

// streams lets handlers of streams without an end of their own stop with the server.
type streams struct {
	stopping chan struct{}
	running  sync.WaitGroup
}

// serve runs handle, which reads a stream until it fails, and returns when it
// does, when something calls fail, when the client has gone, or when the server
// stops. In all but the first case handle is told by its context and by the
// stream, which ends with the handler, and is waited for by Server.Run.
func (s *streams) serve(ctx context.Context, handle func(ctx context.Context, fail func(error)) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	s.running.Go(func() { done <- handle(ctx, cancel) })
	select {
	case err := <-done:
		return statusError(err)
	case <-s.stopping:
		return rpctypes.ErrGRPCStopped
	case <-ctx.Done():
		return statusError(context.Cause(ctx))
	}
}
