package etcd

import (
	"context"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mootkube/moot/gossip/store"
)

func TestConfigValidate(t *testing.T) {
	valid := func() Config {
		c := DefaultConfig()
		c.Socket, c.Store, c.Log = "/s", (*store.Store)(nil), slog.New(slog.DiscardHandler)
		return c
	}
	if c := valid(); c.Validate() != nil {
		t.Fatalf("the default configuration is refused: %v", c.Validate())
	}
	for name, spoil := range map[string]func(*Config){
		"nothing to serve on":  func(c *Config) { c.Socket = "" },
		"two to serve on":      func(c *Config) { c.Listener = &net.UnixListener{} },
		"socket path too long": func(c *Config) { c.Socket = "/" + strings.Repeat("x", 107) },
		"no store":             func(c *Config) { c.Store = nil },
		"no log":               func(c *Config) { c.Log = nil },
		"no cluster":           func(c *Config) { c.ClusterID = 0 },
		"no request bytes":     func(c *Config) { c.MaxRequestBytes = 0 },
		"no watches":           func(c *Config) { c.MaxWatches = -1 },
		"no interval":          func(c *Config) { c.ProgressInterval = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			c := valid()
			spoil(&c)
			if _, err := New(c); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestSocketIsForItsOwnerOnly(t *testing.T) {
	s := serve(t, nil)
	info, err := os.Stat(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode is %v", info.Mode())
	}
	entries, err := os.ReadDir(filepath.Dir(s.socket))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("beside the socket there are %v", entries)
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(shortDir(t), "sock")
	first, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another process serves there") {
		t.Errorf("a second server on the socket: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := listen(t.Context(), path)
	if err != nil {
		t.Fatalf("a socket left behind is in the way: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(shortDir(t), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "precious" {
		t.Errorf("the file is now %q, %v", content, err)
	}
}

// TestEveryMethodIsServedOrRefused goes through the whole API: what is not
// served must say so, and what to do instead.
func TestEveryMethodIsServedOrRefused(t *testing.T) {
	conn := serve(t, nil).dial()
	served, refused := 0, 0
	for _, desc := range []grpc.ServiceDesc{
		pb.KV_ServiceDesc, pb.Watch_ServiceDesc, pb.Lease_ServiceDesc,
		pb.Cluster_ServiceDesc, pb.Maintenance_ServiceDesc, pb.Auth_ServiceDesc,
	} {
		var methods []string
		for _, m := range desc.Methods {
			methods = append(methods, m.MethodName)
		}
		for _, m := range desc.Streams {
			methods = append(methods, m.StreamName)
		}
		for _, m := range methods {
			err := callEmpty(t, conn, "/"+desc.ServiceName+"/"+m)
			if status.Code(err) != codes.Unimplemented {
				served++
				continue
			}
			refused++
			if text := status.Convert(err).Message(); !strings.Contains(text, m+" is not served: ") {
				t.Errorf("%s is refused with %q", m, text)
			}
		}
	}
	if served != 15 || refused != 27 {
		t.Errorf("%d methods are served and %d refused; DESIGN.md says 15 and 27", served, refused)
	}
	if err := callEmpty(t, conn, "/some.Other/Method"); status.Code(err) != codes.Unimplemented {
		t.Errorf("another API's method: %v", err)
	}
}

// callEmpty sends one empty message and waits for an answer or the end.
func callEmpty(t *testing.T, conn *grpc.ClientConn, method string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil && err != io.EOF { //nolint:errorlint // grpc returns it bare
		return err
	}
	if strings.HasSuffix(method, "/Watch") {
		return nil // an empty watch request is rightly not answered
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(&emptypb.Empty{})
}

func TestHealth(t *testing.T) {
	r, err := grpc_health_v1.NewHealthClient(serve(t, nil).dial()).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health is %v, %v", r, err)
	}
}

func TestStatusAndMembers(t *testing.T) {
	s := serve(t, func(_ *store.Config, c *Config) { c.Name, c.MemberID, c.ClusterID = "n1", 7, 9 })
	rev := s.put("/k", "v")
	conn := s.dial()
	st, err := pb.NewMaintenanceClient(conn).Status(t.Context(), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.Version != "3.7.2" || st.Leader != 7 || st.Header.MemberId != 7 || st.Header.ClusterId != 9 || st.Header.Revision != rev || st.DbSize <= 0 {
		t.Errorf("status is %v", st)
	}
	m, err := pb.NewClusterClient(conn).MemberList(t.Context(), &pb.MemberListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Members) != 1 || m.Members[0].Name != "n1" || m.Members[0].ID != 7 || m.Members[0].ClientURLs[0] != "unix://"+s.socket {
		t.Errorf("members are %v", m.Members)
	}
	alarms, err := pb.NewMaintenanceClient(conn).Alarm(t.Context(), &pb.AlarmRequest{})
	if err != nil || len(alarms.Alarms) != 0 {
		t.Errorf("alarms are %v, %v", alarms, err)
	}
	if _, err := pb.NewMaintenanceClient(conn).Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE}); status.Code(err) != codes.Unimplemented {
		t.Errorf("raising an alarm: %v", err)
	}
}

// TestStopEndsStreams: streams that would go on for ever do not hold up the end.
func TestStopEndsStreams(t *testing.T) {
	s := serve(t, func(_ *store.Config, c *Config) { c.StopTimeout = time.Hour })
	w := s.watch(&pb.WatchCreateRequest{Key: []byte("/a")})
	keepAlive, err := pb.NewLeaseClient(s.dial()).LeaseKeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := keepAlive.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
		t.Fatal(err)
	}
	if r, err := keepAlive.Recv(); err != nil || r.TTL != 0 {
		t.Fatalf("keep a lease alive that is not there: %v, %v", r, err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
	if _, err := keepAlive.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the keepalive ended with %v", err)
	}
}

func TestServeOnGivenListener(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, func(_ *store.Config, c *Config) { c.Socket, c.Listener = "", l })
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
