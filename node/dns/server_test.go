package dns

import (
	"context"
	"errors"
	stdnet "net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mootkube/moot/testbed/loopback"
)

func TestServerWaitsForItsPort(t *testing.T) {
	addr := loopback.Addr(t)
	taken, err := stdnet.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	config := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: configName},
		Data:       map[string]string{"Corefile": corefileAnswering(int(addr.Port()), "192.0.2.5")},
	}
	client := fake.NewClientset(config)
	idle := make(chan error, 100)
	cfg := DefaultConfig()
	cfg.NodeName, cfg.Listen, cfg.StateDir = "n1", []netip.Addr{netip.MustParseAddr("127.0.0.1")}, t.TempDir()
	cfg.Kubeconfig = cfg.StateDir + "/none"
	cfg.Idle = func(err error) { idle <- err }
	probe := func([]netip.Addr) error {
		l, err := stdnet.Listen("tcp", addr.String())
		if err != nil {
			return err
		}
		return l.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&Server{cfg: cfg, client: client, probe: probe}).Run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for range 2 { // and a second try says so as well
		select {
		case err := <-idle:
			if !strings.Contains(err.Error(), "address already in use") {
				t.Fatal(err)
			}
		case err := <-done:
			done <- nil
			t.Fatalf("it ended: %v", err)
		}
		touch(t, client)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	for t.Context().Err() == nil {
		touch(t, client)
		if got, err := lookUp(int(addr.Port())); err == nil && got == "192.0.2.5" {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}

// touch makes the server look at its configuration again.
func touch(t *testing.T, client *fake.Clientset) {
	t.Helper()
	maps := client.CoreV1().ConfigMaps(namespace)
	config, err := maps.Get(t.Context(), configName, metav1.GetOptions{})
	if err == nil {
		metav1.SetMetaDataAnnotation(&config.ObjectMeta, "touched", time.Now().String())
		_, err = maps.Update(t.Context(), config, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestProbePorts(t *testing.T) {
	free := loopback.Addr(t).Addr()
	taken, err := stdnet.ListenUDP("udp", stdnet.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv4Unspecified(), port)))
	if err != nil {
		t.Skipf("port %d cannot be had: %v", port, err)
	}
	if err := probePorts([]netip.Addr{free}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("with a server on all addresses: %v", err)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := probePorts([]netip.Addr{free}); err != nil {
		t.Error(err)
	}
}
