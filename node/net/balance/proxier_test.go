package balance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"

	"github.com/mootkube/moot/ebpf"
	"github.com/mootkube/moot/testbed/loopback"
)

// ledger is a kernel that keeps what it is told. The real one is tried in
// package ebpf, and with this package by the end-to-end tests.
type ledger struct {
	mu      sync.Mutex
	holds   map[ebpf.Frontend]ebpf.Service
	applied int
	gone    []ebpf.Target
	fail    error
	devices chan []string
}

func (l *ledger) Apply(set map[ebpf.Frontend]ebpf.Service, gone []ebpf.Frontend) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	l.applied += len(set) + len(gone)
	maps.Copy(l.holds, set)
	for _, f := range gone {
		delete(l.holds, f)
	}
	return nil
}

func (l *ledger) Resync(want map[ebpf.Frontend]ebpf.Service) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	l.holds = maps.Clone(want)
	return nil
}

func (l *ledger) Disconnect(_ context.Context, gone []ebpf.Target) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = append(l.gone, gone...)
	return len(gone), nil
}

func (l *ledger) SetAddresses([]netip.Addr) error { return nil }

func (l *ledger) SetDevices(uplinks, _ []string) error {
	select {
	case l.devices <- uplinks:
	default:
	}
	return nil
}

// running is a proxier that has been told that there is nothing yet.
func running(t *testing.T, edit func(*Config)) (*Proxier, *ledger) {
	t.Helper()
	cfg := Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.1.1")},
		Recorder: events.NewFakeRecorder(10), Speaks: func() bool { return true }, Log: slog.New(slog.DiscardHandler),
	}
	if edit != nil {
		edit(&cfg)
	}
	k := &ledger{holds: map[ebpf.Frontend]ebpf.Service{}, devices: make(chan []string, 1)}
	p, err := newProxier(cfg, k)
	if err != nil {
		t.Fatal(err)
	}
	p.OnServiceSynced()
	p.OnEndpointSlicesSynced()
	return p, k
}

func step(t *testing.T, p *Proxier) {
	t.Helper()
	if err := p.step(); err != nil {
		t.Error(err)
	}
}

// What was served before stays until all is known again.
func TestStart(t *testing.T) {
	k := &ledger{holds: map[ebpf.Frontend]ebpf.Service{{Protocol: ebpf.TCP}: {}}}
	p, err := newProxier(Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.1.1")},
		Recorder: events.NewFakeRecorder(1), Speaks: func() bool { return true }, Log: slog.New(slog.DiscardHandler),
	}, k)
	if err != nil {
		t.Fatal(err)
	}
	p.OnServiceAdd(web(nil))
	p.OnServiceSynced()
	step(t, p)
	if len(k.holds) != 1 || k.applied != 0 || p.Health().Healthy {
		t.Errorf("served before the endpoints were known: %v", k.holds)
	}
	p.OnEndpointSliceAdd(slice(corev1.ProtocolTCP, "n1"))
	p.OnEndpointSlicesSynced()
	if got := text(k.holds); got != "TCP 10.43.0.9:80 from inside: 1*" || !p.Health().Healthy {
		t.Errorf("served at the start:\n%s", got)
	}
}

// Who cannot be led elsewhere at once is so as soon as that works.
func TestSetServingIsTriedAgain(t *testing.T) {
	p, k := running(t, func(c *Config) { c.Homes = []Home{{Service: webName(), Serving: true}} })
	p.OnServiceAdd(web(nil))
	p.OnEndpointSliceAdd(slice(corev1.ProtocolTCP, "n1", "n2"))
	step(t, p)
	<-p.kick
	k.fail = errors.New("the map is full")
	if err := p.SetServing(webName(), false); err == nil {
		t.Error("no error")
	}
	k.fail = nil
	select {
	case <-p.kick:
		step(t, p)
	default:
		t.Error("not tried again")
	}
	if got := text(k.holds); got != "TCP 10.43.0.9:80 from inside: 2" {
		t.Errorf("it leads to\n%s", got)
	}
}

// A change touches what it concerns and no more, and a failure is made up for.
func TestChangesAreSmall(t *testing.T) {
	p, k := running(t, nil)
	for i := range 50 {
		s := web(func(s *corev1.ServiceSpec) {
			s.ClusterIP = fmt.Sprintf("10.43.1.%d", i)
			s.ClusterIPs = []string{s.ClusterIP}
		})
		s.Name = fmt.Sprintf("s%d", i)
		p.OnServiceAdd(s)
	}
	p.OnServiceAdd(web(nil))
	step(t, p)
	before := k.applied
	p.OnEndpointSliceAdd(slice(corev1.ProtocolTCP, "n1", "n2"))
	step(t, p)
	step(t, p)
	if got := k.applied - before; got != 1 {
		t.Errorf("a change of one Service wrote %d frontends", got)
	}
	k.fail = errors.New("the map is full")
	p.OnEndpointSliceUpdate(nil, slice(corev1.ProtocolTCP, "n1"))
	if p.step() == nil || p.Health().Healthy {
		t.Error("a failure went unnoticed")
	}
	k.fail = nil
	if err := p.step(); err != nil || len(k.holds) != 51 || !strings.Contains(text(k.holds), "10.43.0.9:80 from inside: 1*") {
		t.Errorf("after the failure: %v\n%s", err, text(k.holds))
	}
}

// Two Services with one address: the older serves, the other after it.
func TestTwoClaims(t *testing.T) {
	p, k := running(t, nil)
	at := func(name string, uid types.UID, age time.Duration) *corev1.Service {
		s := web(func(s *corev1.ServiceSpec) { s.Ports[0].Name = name })
		s.Name, s.UID = name, uid
		s.CreationTimestamp = metav1.NewTime(time.Unix(1e9, 0).Add(-age))
		return s
	}
	holder := func() string {
		for _, s := range k.holds {
			return s.Name
		}
		return ""
	}
	younger, older := at("younger", "y", time.Hour), at("older", "o", 2*time.Hour)
	p.OnServiceAdd(younger)
	step(t, p)
	p.OnServiceAdd(older)
	step(t, p)
	if got := holder(); got != "shop/older:older" {
		t.Errorf("%s has the address", got)
	}
	p.OnServiceDelete(older)
	step(t, p)
	if got := holder(); got != "shop/younger:younger" {
		t.Errorf("%s has the address after the older went", got)
	}
	// The name is taken again by a younger one.
	p.OnServiceAdd(at("older", "o2", 0))
	step(t, p)
	if got := holder(); got != "shop/younger:younger" {
		t.Errorf("%s has the address after the name was taken again", got)
	}
	p.OnServiceDelete(younger)
	p.OnServiceDelete(at("older", "o2", 0))
	step(t, p)
	if len(k.holds) != 0 || len(p.table.claims) != 0 {
		t.Errorf("left: %v", k.holds)
	}
}

func TestEndedConnections(t *testing.T) {
	for _, c := range []struct {
		name          string
		protocol      corev1.Protocol
		before, after []string
		want          string
	}{
		{"a pod drains", corev1.ProtocolTCP, []string{"n1", "n2"}, []string{"n1 draining", "n2"}, ""},
		{"a pod that drained is gone", corev1.ProtocolTCP, []string{"n2", "n1 draining"}, []string{"n2"}, "10.42.0.2:8080"},
		{"a pod that ended is gone", corev1.ProtocolTCP, []string{"n2", "n1 ending"}, []string{"n2"}, "10.42.0.2:8080"},
		{"a pod was taken out of the Service", corev1.ProtocolTCP, []string{"n2", "n1"}, []string{"n2"}, ""},
		{"a pod is not ready", corev1.ProtocolTCP, []string{"n1"}, []string{"n1 unready"}, ""},
		{"UDP: a pod drains", corev1.ProtocolUDP, []string{"n1"}, []string{"n1 draining"}, ""},
		{"UDP: a pod is not ready", corev1.ProtocolUDP, []string{"n1", "n2"}, []string{"n1 unready", "n2"}, "10.42.0.1:8080"},
		{"UDP: a pod was taken out", corev1.ProtocolUDP, []string{"n1", "n2"}, []string{"n1"}, "10.42.0.2:8080"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, k := running(t, nil)
			p.OnServiceAdd(web(func(s *corev1.ServiceSpec) { s.Ports[0].Protocol = c.protocol }))
			p.OnEndpointSliceAdd(slice(c.protocol, c.before...))
			step(t, p)
			p.OnEndpointSliceUpdate(nil, slice(c.protocol, c.after...))
			step(t, p)
			p.disconnect(t.Context())
			var got []string
			for _, g := range k.gone {
				got = append(got, g.Addr.String())
			}
			slices.Sort(got)
			if strings.Join(got, " ") != c.want {
				t.Errorf("ended %v, want %q", got, c.want)
			}
		})
	}
}

func TestRefusedProtocol(t *testing.T) {
	recorder := events.NewFakeRecorder(10)
	p, _ := running(t, func(c *Config) { c.Recorder = recorder })
	sctp := web(func(s *corev1.ServiceSpec) { s.Ports[0].Protocol = corev1.ProtocolSCTP })
	p.OnServiceAdd(sctp)
	p.OnServiceUpdate(sctp, sctp)
	select {
	case e := <-recorder.Events:
		if !strings.Contains(e, "SCTP is not balanced") {
			t.Errorf("event: %s", e)
		}
	default:
		t.Error("no event")
	}
	if len(recorder.Events) != 0 {
		t.Error("told more than once")
	}
}

// The health check port of a Service tells whether this node has a pod of it.
func TestHealthCheckPort(t *testing.T) {
	p, _ := running(t, nil)
	svc := web(func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		s.Ports[0].NodePort = 30080
		s.HealthCheckNodePort = int32(loopback.Addr(t).Port())
	})
	p.OnServiceAdd(svc)
	ask := func(pods ...string) (int, string) {
		p.OnEndpointSliceUpdate(nil, slice(corev1.ProtocolTCP, pods...))
		step(t, p)
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", svc.Spec.HealthCheckNodePort)) //nolint:noctx // a test
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, body := ask("n1", "n1", "n2"); code != http.StatusOK || !strings.Contains(body, `"localEndpoints": 2`) {
		t.Errorf("with two pods here: %d %s", code, body)
	}
	if code, body := ask("n2"); code != http.StatusServiceUnavailable {
		t.Errorf("with none here: %d %s", code, body)
	}
	p.OnServiceDelete(svc)
	step(t, p)
}

func TestRunLooksAtTheHost(t *testing.T) {
	p, k := running(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	<-k.devices
	<-p.Ready()
	p.Disconnect([]ebpf.Target{{Addr: netip.MustParseAddrPort("10.42.0.1:80"), Protocol: ebpf.TCP}})
	for {
		k.mu.Lock()
		n := len(k.gone)
		k.mu.Unlock()
		if n == 1 {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("stopped: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
